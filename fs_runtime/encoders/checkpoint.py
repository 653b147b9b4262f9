"""Reads parts of a Hugging Face checkpoint by tensor name, so that the language model's weights stay on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import safe_open
from torch import Tensor, nn

from fs_runtime.encoders.families import OPEN_FLAMINGO

# Files that mark checkpoints in other formats, and the advice to give.
_OTHER_FORMATS = {
    "params.json": "params.json shows that it is in Mistral's own format; take the checkpoint in transformers' format",
    "checkpoint.pt": f"checkpoint.pt looks like OpenFlamingo's; {OPEN_FLAMINGO}",
}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and the remedy in its message."""


class Checkpoint:
    """A model on disk or on the hub, read file by file on demand.

    Args:
        source: Local folder, or a hub id such as ``llava-hf/llava-1.5-7b-hf``.
        revision: Hub revision; ignored for a folder.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self.source = str(source)
        self._folder = Path(source) if Path(source).is_dir() else None
        self._revision = revision
        if self._folder is None and (Path(source).is_absolute() or str(source).startswith(".")):
            raise CheckpointError(f"model folder {source} does not exist")

    def file(self, name: str) -> Path | None:
        """Local path of one file of the checkpoint, downloaded if needed; None if the checkpoint has no such file."""
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.source, name, revision=self._revision))
        except LocalEntryNotFoundError as error:
            if constants.is_offline_mode() and name != "config.json":
                return None  # offline, a file that is not cached counts as absent
            raise CheckpointError(f"{self.source} is neither a folder nor reachable on the model hub") from error
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise CheckpointError(f"{self.source!r} is neither a folder nor a valid hub id") from error
        except HfHubHTTPError as error:
            raise CheckpointError(f"cannot read {name} of {self.source} from the model hub: {error}") from error

    def json(self, name: str) -> dict[str, Any]:
        """Contents of a JSON file of the checkpoint; empty if it has none.

        Raises:
            CheckpointError: The file is not JSON.
        """
        path = self.file(name)
        if path is None:
            return {}
        try:
            contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{name} of {self.source} is not valid JSON: {error}") from error
        return contents

    def config(self) -> dict[str, Any]:
        """``config.json``, which every checkpoint must have."""
        config = self.json("config.json")
        if not config:
            formats = [advice for name, advice in _OTHER_FORMATS.items() if self.file(name) is not None]
            hint = f" ({formats[0]})" if formats else ""
            raise CheckpointError(f"{self.source} has no config.json: it is not a Hugging Face checkpoint{hint}")
        return config

    def _keys(self) -> Iterable[tuple[str, str]]:
        """Pairs of tensor name and file name."""
        index = self.json(_INDEX)
        if index:
            return list(index["weight_map"].items())
        path = self.file(_SINGLE)
        if path is None:
            raise CheckpointError(f"{self.source} has no safetensors weights; convert the checkpoint first")
        with safe_open(path, framework="pt") as tensors:
            return [(key, _SINGLE) for key in tensors.keys()]  # noqa: SIM118 (not a mapping)

    def tensors(self, rename: Callable[[str], str | None]) -> dict[str, Tensor]:
        """Reads the tensors that ``rename`` selects, under their new names.

        Args:
            rename: Maps a name on disk to a new name, or to None to leave the tensor out.
        """
        by_file: dict[str, list[tuple[str, str]]] = {}
        for key, file in self._keys():
            name = rename(key)
            if name is not None:
                by_file.setdefault(file, []).append((key, name))
        found: dict[str, Tensor] = {}
        for file, pairs in by_file.items():
            path = self.file(file)
            if path is None:
                raise CheckpointError(f"{self.source} names {file} in its index but does not have it")
            with safe_open(path, framework="pt") as tensors:
                for key, name in pairs:
                    found[name] = tensors.get_tensor(key)
        return found


def load_weights(module: nn.Module, weights: dict[str, Tensor], part: str) -> None:
    """Loads ``weights`` into a module made on the meta device, and checks that none is missing.

    Weights that the module does not have, for example of layers that are not run, are ignored.

    Raises:
        CheckpointError: A weight is missing or has another shape than the configuration says.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise CheckpointError(f"the {part} lacks {len(missing)} weights, the first is {missing[0]}")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"the {part}'s weight {name} has shape {tuple(weights[name].shape)}, "
                f"its configuration says {tuple(tensor.shape)}"
            )
    module.load_state_dict({name: weights[name] for name in wanted}, assign=True)


def fingerprint(config: dict[str, Any], *modules: nn.Module) -> str:
    """SHA-256 over a configuration and the weights as loaded, as ``sha256:<hex>``.

    Call it before the weights are cast, so that the same checkpoint has the same fingerprint in every precision.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return f"sha256:{digest.hexdigest()}"
