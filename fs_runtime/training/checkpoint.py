"""Checkpoints of a training run, from which it resumes exactly."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fs_runtime.system.files import TrainingError, write_file

CHECKPOINT = "checkpoint.pt"
_DIGEST = hashlib.sha256().digest_size  # bytes at the end of the file; the digest of all bytes before them


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """State of a training run after a step.

    Attributes:
        stage: Name of the stage, ``purifier`` for example.
        step: Completed steps of this stage.
        score: Latest score on the held-out pictures.
        networks: Weights by name: those of this stage's network and of finished stages, and others that the run needs.
        optimizer: State of this stage's optimiser.
    """

    stage: str
    step: int
    score: float
    networks: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]


def write_checkpoint(path: Path, checkpoint: TrainingCheckpoint, identity: dict[str, Any]) -> None:
    """Writes a checkpoint atomically; ``identity`` identifies the run.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    contents = {name: getattr(checkpoint, name) for name in TrainingCheckpoint.__slots__}
    buffer = io.BytesIO()
    torch.save({"identity": _canonical(identity), **contents}, buffer)
    with buffer.getbuffer() as written:
        digest = hashlib.sha256(written).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    write_file(path, buffer.getvalue())


def read_checkpoint(path: Path, identity: dict[str, Any]) -> TrainingCheckpoint | None:
    """Reads the checkpoint of the run ``identity``; None where there is none.

    Raises:
        TrainingError: It belongs to another run, is damaged, or cannot be read.
    """
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(memoryview(contents)[:-_DIGEST]).digest() != contents[-_DIGEST:]:
        raise TrainingError(f"{path} is damaged, or of another version; delete it to begin again")
    try:
        fields = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
        begun = json.loads(fields.pop("identity"))
        checkpoint = TrainingCheckpoint(**fields)
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is of another version ({error}); delete it to begin again") from error
    wanted = json.loads(_canonical(identity))
    different = sorted(name for name in wanted.keys() | begun.keys() if wanted.get(name) != begun.get(name))
    if different:
        name = different[0]
        raise TrainingError(
            f"{path} belongs to a run with other settings ({name}: {begun.get(name)} there, {wanted.get(name)} now); "
            "give another --output, or delete it to begin again"
        )
    return checkpoint


def _canonical(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)
