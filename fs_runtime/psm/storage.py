"""A PSM on disk: a folder with the weights of purifier and mapper, and a card that says what they are for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.psm.files import write_file
from fs_runtime.psm.mapper import SmoothnessMapper
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.unet import UNetPurifier

CARD = "card.json"
_FORMAT = 1
_PARTS = ("purifier", "mapper")


class PsmError(CheckpointError):
    """A PSM that cannot be used, with the reason and the remedy in its message."""


@dataclass(frozen=True, slots=True)
class Psm:
    """A purifier and a mapper for one encoder, in evaluation mode.

    Attributes:
        purifier: Denoiser before the encoder.
        mapper: Residual network after the encoder.
        sigma: Noise level it was trained to be used at.
        card: Contents of its ``card.json``.
    """

    purifier: PsmNetwork
    mapper: PsmNetwork
    sigma: float
    card: dict[str, Any]


_KINDS: dict[str, type[PsmNetwork]] = {
    network.kind: network for network in (UNetPurifier, DiffusionPurifier, SmoothnessMapper)
}


def save_psm(
    folder: Path, purifier: PsmNetwork, mapper: PsmNetwork, encoder: VisionEncoder, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes ``purifier.safetensors``, ``mapper.safetensors`` and ``card.json``.

    Args:
        folder: Where to; made if need be.
        purifier: The first network.
        mapper: The second.
        encoder: What they were trained for.
        facts: What else the card says; ``sigma`` with the ``served`` noise level is needed.

    Returns:
        The card.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    card: dict[str, Any] = {
        "format": _FORMAT,
        "encoder": {"fingerprint": encoder.fingerprint, "family": encoder.family, **facts.get("encoder", {})},
    }
    for part, module in zip(_PARTS, (purifier, mapper), strict=True):
        config = module.describe()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        write_file(folder / f"{part}.safetensors", save(weights))
        card[part] = {
            "kind": module.kind,
            "config": config,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "fingerprint": fingerprint({"kind": module.kind, "config": config}, module),
        }
    card |= {name: fact for name, fact in facts.items() if name not in card}
    write_file(folder / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    return card


def load_psm(folder: str | Path, encoder: VisionEncoder) -> Psm:
    """Loads a PSM onto the encoder's device, with the encoder's arithmetic.

    Args:
        folder: Written by :func:`save_psm`.
        encoder: The encoder it is to be used with.

    Raises:
        PsmError: It was made for another encoder, is incomplete or damaged, or needs a package that is not installed.
    """
    folder = Path(folder)
    card = _read_card(folder)
    try:
        made_for, sigma = card["encoder"], float(card["sigma"]["served"])
        if made_for["fingerprint"] != encoder.fingerprint:
            raise PsmError(
                f"the PSM in {folder} was trained for another encoder, {made_for.get('model', 'unnamed')} "
                f"({_short(made_for['fingerprint'])}); this one is {_short(encoder.fingerprint)}. Train one for it "
                "with `fs-serve train psm`, or go without: --psm none"
            )
        parts = [_load_part(folder, part, card[part]) for part in _PARTS]
    except (KeyError, TypeError) as error:
        raise PsmError(f"{folder / CARD} lacks or distorts {error}; copy the PSM again") from error
    for module in parts:
        for parameter in module.parameters():  # buffers keep float32: they scale features
            parameter.data = parameter.data.to(encoder.dtype)
        module.to(encoder.device).eval().requires_grad_(False)
    return Psm(parts[0], parts[1], sigma, card)


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


def _load_part(folder: Path, part: str, described: dict[str, Any]) -> PsmNetwork:
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
        raise PsmError(f"the {part} in {folder} needs a package: pip install 'fs-serve[diffusion]'") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise PsmError(f"{path} is damaged or does not fit its card; copy the PSM again ({error})") from error
    found = fingerprint({"kind": kind, "config": config}, module)
    if found != described["fingerprint"]:
        raise PsmError(f"{path} is damaged: its digest is not the one in its card; copy the PSM again")
    module.fingerprint = found
    return module


def _short(digest: str) -> str:
    return str(digest)[: len("sha256:") + 12]
