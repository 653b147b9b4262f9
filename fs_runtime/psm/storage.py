"""A PSM on disk: a folder with the weights of purifier and mapper, and a card that describes them."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.psm import PsmFacts
from fs_runtime.psm.deepinv import DeepinvPurifier
from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.psm.mapper import SmoothnessMapper
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.residual_unet import ResidualUNetPurifier
from fs_runtime.psm.unet import UNetPurifier
from fs_runtime.system.files import write_file

CARD = "card.json"
ANY_ENCODER = "any"
_FORMAT = 1
_Part = Literal["purifier", "mapper"]


class PsmError(CheckpointError):
    """A PSM that cannot be used, with the reason and the remedy in its message."""


@dataclass(frozen=True, slots=True)
class Psm:
    """A purifier and a mapper for one encoder, or a purifier for any, in evaluation mode.

    Attributes:
        purifier: Denoiser before the encoder.
        mapper: Residual network after the encoder; None if the purifier is for any encoder.
        sigma: Noise level that it was trained to serve at.
        facts: About it, for answers.
        card: Contents of its ``card.json``.
    """

    purifier: PsmNetwork
    mapper: PsmNetwork | None
    sigma: float
    facts: PsmFacts
    card: dict[str, Any]


_KINDS: dict[str, type[PsmNetwork]] = {
    network.kind: network
    for network in (UNetPurifier, ResidualUNetPurifier, DiffusionPurifier, DeepinvPurifier, SmoothnessMapper)
}


def save_psm(
    folder: Path, purifier: PsmNetwork, mapper: PsmNetwork, encoder: VisionEncoder, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes ``purifier.safetensors``, ``mapper.safetensors`` and ``card.json``.

    Args:
        folder: Created if it is missing.
        purifier: The first network.
        mapper: The second.
        encoder: The encoder that they were trained for.
        facts: Further entries of the card; needs ``sigma`` with the ``served`` noise level and the range ``trained``.

    Returns:
        The card.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    made_for = {"fingerprint": encoder.fingerprint, "family": encoder.family, **facts.get("encoder", {})}
    parts = {"purifier": _save_part(folder, "purifier", purifier), "mapper": _save_part(folder, "mapper", mapper)}
    return _write_card(folder, {"encoder": made_for, **parts}, facts)


def save_purifier(folder: Path, purifier: PsmNetwork, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes ``purifier.safetensors`` and ``card.json`` of a purifier that is for any encoder.

    The weights are rounded to float16, which halves the file and changes pixels by less than one 8-bit step.

    Args:
        folder: Created if it is missing.
        purifier: The network.
        facts: Further entries of the card; needs ``sigma`` with the ``served`` noise level and the range ``trained``.

    Returns:
        The card: its ``encoder`` is ``"any"`` and its ``mapper`` null.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    rounded = copy.deepcopy(purifier).half().float()
    described = _save_part(folder, "purifier", rounded, torch.float16)
    return _write_card(folder, {"encoder": ANY_ENCODER, "purifier": described, "mapper": None}, facts)


def load_psm(folder: str | Path, encoder: VisionEncoder, dtype: torch.dtype | None = None) -> Psm:
    """Loads a PSM onto the encoder's device.

    Args:
        folder: Written by :func:`save_psm` or :func:`save_purifier`.
        encoder: The encoder it is to be used with.
        dtype: Of the weights; the encoder's by default. Float32 keeps them as they were stored.

    Raises:
        PsmError: It was made for another encoder, is incomplete or damaged, or needs a package that is not installed.
    """
    folder = Path(folder)
    card = _read_card(folder)
    try:
        made_for = card["encoder"]
        for_any = made_for == ANY_ENCODER
        if not for_any and made_for["fingerprint"] != encoder.fingerprint:
            raise PsmError(
                f"the PSM in {folder} was trained for another encoder, {made_for.get('model', 'unnamed')} "
                f"({_short(made_for['fingerprint'])}); this one is {_short(encoder.fingerprint)}. Train one for it "
                "with `fs-serve train psm`, or go without: --psm none"
            )
        if for_any and card["mapper"] is not None:
            raise PsmError(f"{folder / CARD} is for any encoder, and yet has a mapper, which fits one; copy it again")
        sigma, low, high = _noise_levels(folder, card["sigma"])
        facts = PsmFacts(str(card.get("name", folder.resolve().name)), "any" if for_any else "this", low, high)
        purifier = _load_part(folder, "purifier", card["purifier"])
        mapper = None if for_any else _load_part(folder, "mapper", card["mapper"])
    except (KeyError, TypeError) as error:
        raise PsmError(f"{folder / CARD} lacks or distorts {error}; copy the PSM again") from error
    for module in (purifier, mapper):
        if module is not None:
            prepare_for_inference(module, encoder.device, dtype or encoder.dtype)
    return Psm(purifier, mapper, sigma, facts, card)


def load_purifier(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PsmNetwork, dict[str, Any]]:
    """Loads the purifier of a PSM by itself, whatever encoder it is for, in evaluation mode.

    Returns:
        The network and the PSM's card.

    Raises:
        PsmError: It is incomplete or damaged, or needs a package that is not installed.
    """
    folder = Path(folder)
    card = _read_card(folder)
    try:
        purifier = _load_part(folder, "purifier", card["purifier"])
    except (KeyError, TypeError) as error:
        raise PsmError(f"{folder / CARD} lacks or distorts {error}; copy the PSM again") from error
    return prepare_for_inference(purifier, device, dtype), card


def prepare_for_inference(module: PsmNetwork, device: str | torch.device, dtype: torch.dtype) -> PsmNetwork:
    """Moves a network to device and dtype, in evaluation mode and without gradients."""
    module.use_precision(dtype)
    return module.to(device).eval().requires_grad_(False)


def _save_part(folder: Path, part: _Part, module: PsmNetwork, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Writes a network's weights, cast to ``dtype`` without loss if given; returns the network's entry for the card."""
    config = module.describe()
    weights = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    write_file(folder / f"{part}.safetensors", save(weights))
    return {
        "kind": module.kind,
        "config": config,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "fingerprint": fingerprint({"kind": module.kind, "config": config}, module),
    }


def _write_card(folder: Path, known: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    card = {"format": _FORMAT, **known} | {name: fact for name, fact in facts.items() if name not in known}
    write_file(folder / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    return card


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PsmError(f"{folder} holds no PSM: {CARD} is missing. Give the folder that `train psm` wrote") from None
    except (ValueError, OSError) as error:
        raise PsmError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise PsmError(f"{path} is not a card of format {_FORMAT}, which this version reads; train the PSM again")
    return card


def _noise_levels(folder: Path, levels: dict[str, Any]) -> tuple[float, float, float]:
    """The noise level to serve at, and the smallest and largest of training."""
    served, trained = levels["served"], levels["trained"]
    numbers = [served, *trained] if isinstance(trained, list) else []
    known = len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers)
    if not (known and 0 < served < math.inf and 0 < trained[0] <= trained[1] < math.inf):
        raise PsmError(
            f"{folder / CARD} distorts sigma: 'served' must be a level above 0 and 'trained' two such levels in rising "
            f"order, not {served!r} and {trained!r}; copy the PSM again"
        )
    return float(served), float(trained[0]), float(trained[1])


def _load_part(folder: Path, part: _Part, described: dict[str, Any]) -> PsmNetwork:
    kind, config = described["kind"], described["config"]
    if kind not in _KINDS:
        raise PsmError(f"the {part} in {folder} is of kind {kind!r}; this version knows {', '.join(_KINDS)}")
    path = folder / f"{part}.safetensors"
    try:
        module = _KINDS[kind].from_description(config)
        module.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise PsmError(f"{path} is missing; copy the PSM again") from None
    except ModuleNotFoundError as error:
        raise PsmError(f"the {part} in {folder} needs a package: pip install 'fs-serve[{kind}]'") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise PsmError(f"{path} is damaged or does not fit its card; copy the PSM again ({error})") from error
    found = fingerprint({"kind": kind, "config": config}, module)
    if found != described["fingerprint"]:
        raise PsmError(f"{path} is damaged: its digest is not the one in its card; copy the PSM again")
    module.fingerprint = found
    return module


def _short(digest: str) -> str:
    return str(digest)[: len("sha256:") + 12]
