"""The encoders of a measurement by the names that users give."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fs_runtime.encoders import VisionEncoder, load_encoder


@dataclass(frozen=True, slots=True)
class EvaluatedEncoder:
    """An encoder, and what is known of it.

    Attributes:
        name: As in the tables.
        encoder: Of any family.
        classes: How many classes it tells apart: the width of its embeddings, which are logits. None if it does not
            classify.
    """

    name: str
    encoder: VisionEncoder
    classes: int | None = None


PRETRAINED = ("efficientnet-lite0", "dinov2-small")
"""Names of those that come with packages."""


def load_evaluated_encoder(name: str, model: str, device: str) -> EvaluatedEncoder:
    """Loads an encoder in float32.

    Args:
        name: As in the tables.
        model: One of ``PRETRAINED``, a checkpoint folder or a hub id.
        device: Where to put it.

    Raises:
        CheckpointError: A package is not installed, or as :func:`fs_runtime.encoders.load_encoder`.
    """
    if model == PRETRAINED[0]:
        from fs_runtime.evaluation.photographs.efficientnet import EfficientNetEncoder

        return EvaluatedEncoder(name, EfficientNetEncoder(torch.device(device)), EfficientNetEncoder.classes)
    if model == PRETRAINED[1]:
        from fs_runtime.evaluation.photographs.dinov2 import Dinov2Encoder

        return EvaluatedEncoder(name, Dinov2Encoder(torch.device(device)))
    return EvaluatedEncoder(name, load_encoder(model, device=device, dtype="float32"))


def has_class_token(encoder: VisionEncoder, grid: tuple[int, ...]) -> bool:
    """Whether the first token stands for the whole picture, beside tokens of its places."""
    first, *others = encoder.token_grids(grid, "encoder")
    return first == (1, 1) and bool(others)
