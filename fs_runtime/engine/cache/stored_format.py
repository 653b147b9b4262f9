"""Stored images as bytes and back: safetensors, whose reading runs no code, with the numbers as JSON beside them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from fs_runtime.engine.cache.stored import Mean, StoredImage, Sums
from fs_runtime.engine.draws import Draws
from fs_runtime.engine.request import Origin
from fs_runtime.smoothing.spread_sketch import SpreadSketch

# Of the bytes, and of what the numbers in them mean. It is part of every name in the shared cache and rises with every
# change, also when fields are only added: replicas of two versions share nothing, so that none misreads another's.
FORMAT_VERSION = 3

Array = NDArray[Any]


class UnreadableError(ValueError):
    """Bytes that are no stored image of this version."""


def origin_to_bytes(origin: Origin) -> bytes:
    """The origin of draws that nobody has made yet."""
    return json.dumps(dataclasses.asdict(origin)).encode()


def origin_from_bytes(data: bytes) -> Origin:
    """Reads it.

    Raises:
        UnreadableError: It is none.
    """
    try:
        return _origin(json.loads(data))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"no origin of draws: {error!r}") from None


def image_to_bytes(image: StoredImage) -> bytes:
    """All of a stored image."""
    draws, arrays = image.draws.state()
    arrays = {f"draws.{name}": array for name, array in arrays.items()}
    numbers: dict[str, Any] = {
        "origin": dataclasses.asdict(image.origin),
        "draws": draws,
        "norm_estimate": image.mean.norm_estimate,
        "fidelity": image.mean.fidelity,
        "spectral_norm": image.spectral_norm,
        "token_grids": image.token_grids,
        "cost": image.cost,
    }
    arrays |= {f"payload.{name}": array for name, array in image.mean.payload.items()}
    if image.mean.token_norm_estimates is not None:
        arrays["token_norm_estimates"] = image.mean.token_norm_estimates
    if image.mean.token_fidelity is not None:
        arrays["token_fidelity"] = image.mean.token_fidelity
    if image.sums is not None:
        sums = image.sums
        numbers["sums"] = {"count": sums.count}
        for name in _SUMS:
            arrays[f"sums.{name}"] = getattr(sums, name).numpy()
        if sums.sketch is not None:
            numbers["sketch"], stack = sums.sketch.state()
            arrays["sketch"] = stack.numpy()
    arrays["numbers"] = np.frombuffer(json.dumps(numbers).encode(), dtype=np.uint8)
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def image_from_bytes(data: bytes) -> StoredImage:
    """Reads a stored image.

    Raises:
        UnreadableError: It is none.
    """
    try:
        # Copied, for what safetensors gives cannot be written to, and torch wants arrays that can.
        arrays: dict[str, Array] = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
        return _image(json.loads(arrays.pop("numbers").tobytes()), arrays)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"no stored image: {error!r}") from None


_SUMS = ("feature_sum", "token_squares", "length_sum", "position")


def _image(numbers: dict[str, Any], arrays: dict[str, Array]) -> StoredImage:
    sums = None
    if "sums" in numbers:
        sketch = None
        if "sketch" in numbers:
            sketch = SpreadSketch.restored(numbers["sketch"], torch.from_numpy(arrays["sketch"]))
        tensors = {name: torch.from_numpy(arrays[f"sums.{name}"]) for name in _SUMS}
        sums = Sums(**tensors, count=int(numbers["sums"]["count"]), sketch=sketch)
    return StoredImage(
        origin=_origin(numbers["origin"]),
        draws=Draws.restored(numbers["draws"], _below("draws.", arrays)),
        mean=Mean(
            payload=_below("payload.", arrays),
            norm_estimate=numbers["norm_estimate"],
            token_norm_estimates=arrays.get("token_norm_estimates"),
            fidelity=numbers["fidelity"],
            token_fidelity=arrays.get("token_fidelity"),
        ),
        sums=sums,
        spectral_norm=float(numbers["spectral_norm"]),
        token_grids=tuple((int(rows), int(columns)) for rows, columns in numbers["token_grids"]),
        cost=int(numbers["cost"]),
    )


def _origin(values: dict[str, Any]) -> Origin:
    return Origin(seed=int(values["seed"]), planned=int(values["planned"]), begun=float(values["begun"]))


def _below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
