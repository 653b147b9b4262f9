"""Language models in this process that read image embeddings: for small models, tests and machines without vLLM."""

from __future__ import annotations

import importlib

from fs_runtime.embedded.answer import Generation, Piece
from fs_runtime.embedded.constraint import Form, FormError
from fs_runtime.embedded.model import ContextLengthError, EmbeddedModel, Prompt, PromptError
from fs_runtime.encoders import load_family

__all__ = [
    "ContextLengthError",
    "EmbeddedModel",
    "Form",
    "FormError",
    "Generation",
    "Piece",
    "Prompt",
    "PromptError",
    "load_embedded_model",
]


def load_embedded_model(
    model: str, *, revision: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> EmbeddedModel:
    """Loads the language model of a checkpoint; its vision part stays on disk.

    Args:
        model: Local folder or hub id.
        revision: Hub revision.
        device: Where it runs.
        dtype: Its arithmetic.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete, or of a family that is not supported.
    """
    module, _, name = load_family(model, revision=revision).embedded.partition(":")
    kind: type[EmbeddedModel] = getattr(importlib.import_module(module), name)
    return kind(model, revision=revision, device=device, dtype=dtype)
