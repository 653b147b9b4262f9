"""Reads files of weights that other projects publish."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fs_runtime.encoders import CheckpointError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, ``.safetensors`` or what ``torch.save`` wrote; it can run no code.

    Raises:
        CheckpointError: It is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"psm: there is no file {path} with the weights of a denoiser")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is damaged, or no file of weights: {error}") from None
    for wrapper in ("params", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(wrapper), dict):
            contents = contents[wrapper]
    if not isinstance(contents, dict) or not all(isinstance(each, Tensor) for each in contents.values()):
        raise CheckpointError(f"{path} holds something else than named weights")
    return dict(contents)
