"""Denoisers of the package deepinv as purifiers: networks that others trained on photographs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.encoders import CheckpointError
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.weight_file import read_weights


@dataclass(frozen=True, slots=True)
class DenoiserFacts:
    """What is known of one denoiser of deepinv.

    Attributes:
        stride: Sides are padded to a multiple of this, and cropped again, so that the network sees one picture and not
            parts of it.
        smallest: Shortest side that it reads.
        sigma: Smallest and largest noise level that published weights were trained for, in pixels of [0, 1].
        downloaded: The same of the weights that deepinv downloads; None for ``sigma``.
        parameters: Numbers in its weights.
        live: Numbers in memory at once for each pixel of a picture during a pass; measured.
        arguments: Of its class, for three colours.
    """

    stride: int
    smallest: int
    sigma: tuple[float, float]
    parameters: int
    live: int
    downloaded: tuple[float, float] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


# Noise levels: Zhang et al. 2021 (2008.13751) and deepinv's page of weights; Zhang et al. 2018 (1710.04026); Zhang et
# al. 2023 (2203.13278), whose published weights saw other faults of pictures too; Zamir et al. 2022 (2111.09881);
# Dhariwal and Nichol 2021 (2105.05233): those of the first and the last timestep.
DENOISERS = {
    "DRUNet": DenoiserFacts(8, 32, (0.0, 50 / 255), 32_640_960, 620, downloaded=(0.0, 20 / 255)),
    "FFDNet": DenoiserFacts(
        2, 2, (0.0, 75 / 255), 854_700, 150, arguments={"n_conv_layers": 12, "nf": 96, "img_channels": 3}
    ),
    "SCUNet": DenoiserFacts(64, 64, (2 / 255, 50 / 255), 17_946_072, 1940),
    "Restormer": DenoiserFacts(8, 8, (0.0, 50 / 255), 26_111_668, 2660),
    "DiffUNet": DenoiserFacts(32, 32, (0.005, 78.0), 552_814_086, 2900, arguments={"large_model": True}),
}


class DeepinvPurifier(PsmNetwork):
    """A denoiser of deepinv (BSD-3-Clause): ``model(x, sigma)`` on pixels in [0, 1] and noise levels in the same units.

    Its weights stay in float32, and lower precisions are autocast: several of these networks mix in numbers of float32.

    Args:
        denoiser: The network.
        description: ``name`` in :data:`DENOISERS`, and the ``arguments`` of its class.

    Attributes:
        sigma_range: Smallest and largest noise level of its training, in pixels of [0, 1].
    """

    kind = "deepinv"

    def __init__(self, denoiser: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._description = description
        self._facts = DENOISERS[description["name"]]
        self.sigma_range = self._facts.sigma
        self._dtype = torch.float32

    @classmethod
    def from_pretrained(cls, name: str, weights: str | None = None) -> Self:
        """A denoiser with trained weights.

        Args:
            name: In :data:`DENOISERS`.
            weights: File with its weights, ``.pth`` or ``.safetensors``; None for deepinv's own, which it downloads and
                keeps in torch's cache. FFDNet's may also be those of its authors.

        Raises:
            CheckpointError: deepinv is not installed, has no such denoiser, the file cannot be used, or nothing can be
                downloaded.
        """
        if name not in DENOISERS:
            raise CheckpointError(
                f"deepinv:{name} is no purifier here; known are {', '.join(DENOISERS)}, whose noise levels are known"
            )
        facts = DENOISERS[name]
        description = {"name": name, "arguments": dict(facts.arguments)}
        try:
            purifier = cls(_build(description, downloaded=weights is None), description)
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"a denoiser of deepinv needs that package: pip install 'fs-serve[deepinv]' ({error})"
            ) from None
        if weights is None:
            purifier.sigma_range = facts.downloaded or facts.sigma
        else:
            purifier._load(Path(weights))
        return purifier

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(_build(description, downloaded=False), description)

    @override
    def describe(self) -> dict[str, Any]:
        return self._description

    @override
    def use_precision(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Purifies ``(B, 3, H, W)`` pixels with ``(B,)`` noise levels; the result has the dtype of ``x``."""
        height, width = x.shape[-2:]
        padded = functional.pad(x.float(), (0, self._padding(width), 0, self._padding(height)), mode="replicate")
        lower = self._dtype != torch.float32  # else as the caller has it, who may train with autocast
        with torch.autocast(x.device.type, self._dtype) if lower else nullcontext():
            purified: Tensor = self.denoiser(padded, sigma.float())
        return purified[..., :height, :width].to(x.dtype)

    def _padding(self, side: int) -> int:
        """Pixels to add to a side."""
        wanted = max(side, self._facts.smallest)
        return wanted + -wanted % self._facts.stride - side

    def _load(self, path: Path) -> None:
        weights = read_weights(path)
        if self._description["name"] == "FFDNet" and "model.0.weight" in weights:
            weights = _ffdnet_of_its_authors(weights)
        try:
            missing, unexpected = self.denoiser.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit {self._description['name']}: {error}") from None
        computed = {name for name, _ in self.denoiser.named_buffers()}  # of a schedule, which no file holds
        if strange := [*(name for name in missing if name not in computed), *unexpected]:
            raise CheckpointError(
                f"{path} does not fit {self._description['name']} for three colours: {len(strange)} of its weights are "
                f"missing or unknown, the first is {strange[0]}"
            )


def _build(description: dict[str, Any], *, downloaded: bool) -> nn.Module:
    """The network, with deepinv's own weights or with fresh ones."""
    name = description["name"]
    if name not in DENOISERS:
        raise ValueError(f"deepinv has no denoiser {name!r} that is known here; known are {', '.join(DENOISERS)}")
    models = import_module("deepinv.models")
    arguments = dict(description["arguments"])
    if not downloaded:
        arguments["pretrained"] = None
    try:
        network: nn.Module = getattr(models, name)(**arguments)
    except (OSError, import_module("deepinv.utils").DownloadError) as error:
        raise CheckpointError(
            f"deepinv cannot download the weights of {name}: {error}. Where there is no network, fetch the file "
            f"elsewhere and name it: deepinv:{name}:FILE"
        ) from None
    return network.eval()


def _ffdnet_of_its_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FFDNet's weights as its authors lay them out, with deepinv's names.

    The authors give the noise level one channel beside the 12 of the unshuffled picture; deepinv unshuffles it too, to
    four channels with the same values. The weights of the one become those of the first of the four.
    """
    found = {}
    for name, tensor in weights.items():
        number, _, part = name.removeprefix("model.").partition(".")
        layer = int(number) // 2  # there is a ReLU between any two
        last = layer == DENOISERS["FFDNet"].arguments["n_conv_layers"] - 1
        found[f"blocks.{layer}.{part}" if last else f"blocks.{layer}.0.{part}"] = tensor
    first = found["blocks.0.0.weight"]
    found["blocks.0.0.weight"] = torch.cat([first, torch.zeros_like(first[:, :3])], dim=1)
    return found
