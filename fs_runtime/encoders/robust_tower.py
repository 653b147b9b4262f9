"""An adversarially trained vision tower on disk: its weights, and a card that names the encoder it belongs to."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.system.files import write_file

CARD, WEIGHTS = "card.json", "tower.safetensors"
_FORMAT = 1


class RobustEncoderError(CheckpointError):
    """A trained tower that cannot be used, with the reason and the remedy in its message."""


def save_robust_encoder(
    folder: Path, encoder: VisionEncoder, tower: nn.Module, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes ``tower.safetensors``, in float16, and ``card.json``.

    Args:
        folder: Created if it is missing.
        encoder: The original.
        tower: Replaces the original's tower.
        facts: Further entries of the card.

    Returns:
        The card.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in tower.state_dict().items()
    }
    write_file(folder / WEIGHTS, save(weights))
    card: dict[str, Any] = {
        "format": _FORMAT,
        "encoder": {"fingerprint": encoder.fingerprint, "family": encoder.family, **facts.get("encoder", {})},
        "tower": {
            "parameters": sum(parameter.numel() for parameter in tower.parameters()),
            "fingerprint": _with_tower_weights(encoder, weights).fingerprint,
        },
    }
    card |= {name: fact for name, fact in facts.items() if name not in card}
    write_file(folder / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    return card


def load_robust_encoder(folder: str | Path, encoder: VisionEncoder) -> VisionEncoder:
    """The encoder with its tower replaced by the one in ``folder``.

    Args:
        folder: Written by :func:`save_robust_encoder`.
        encoder: The original, which does not change.

    Raises:
        RobustEncoderError: The tower was made for another encoder, or is incomplete or damaged.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["format"] != _FORMAT:
            raise RobustEncoderError(f"{folder / CARD} is not of format {_FORMAT}, which this version reads")
        wanted, expected = card["encoder"]["fingerprint"], card["tower"]["fingerprint"]
    except FileNotFoundError:
        raise RobustEncoderError(
            f"{folder} holds no robust encoder: {CARD} is missing. Give the folder that `train robust-encoder` wrote"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, RobustEncoderError):
            raise
        raise RobustEncoderError(f"{folder / CARD} cannot be read ({error}); copy the robust encoder again") from error
    if wanted != encoder.fingerprint:
        raise RobustEncoderError(
            f"the robust encoder in {folder} was trained from another encoder, "
            f"{card['encoder'].get('model', 'unnamed')}; "
            "train one for this model with `fs-serve train robust-encoder`"
        )
    try:
        robust = _with_tower_weights(encoder, load_file(folder / WEIGHTS))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise RobustEncoderError(
            f"{folder / WEIGHTS} is missing, damaged or does not fit; copy the robust encoder again ({error})"
        ) from error
    if robust.fingerprint != expected:
        raise RobustEncoderError(f"{folder / WEIGHTS} is damaged: its digest is not the one in its card; copy it again")
    return robust


def _with_tower_weights(encoder: VisionEncoder, weights: dict[str, torch.Tensor]) -> VisionEncoder:
    tower = copy.deepcopy(encoder.tower)
    if tower is None:
        raise RobustEncoderError(f"the vision tower of family {encoder.family} cannot be exchanged")
    tower.float().load_state_dict(weights)
    robust = encoder.with_tower(tower)  # before the cast: the fingerprint is that of the float32 weights
    tower.to(device=encoder.device, dtype=encoder.dtype).eval().requires_grad_(False)
    return robust
