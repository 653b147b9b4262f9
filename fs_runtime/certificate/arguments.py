"""Argument checks and broadcasting, shared by all public functions of the certificate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def norm_array(norm: float | Array) -> Array:
    """ρ, or a lower bound of it, as an array; raises ValueError unless it lies in [0, 1]."""
    array = np.asarray(norm, dtype=np.float64)
    return _checked("norm", array, (array >= 0) & (array <= 1), "in [0, 1]; clip an estimate that rounds above 1")


def score_array(score: float | Array) -> Array:
    """A Gaussian robustness score S as an array; raises ValueError unless it lies in [0, 1]."""
    array = np.asarray(score, dtype=np.float64)
    return _checked("score", array, (array >= 0) & (array <= 1), "in [0, 1]; use score_from_norm(norm)")


def sigma_array(sigma: float | Array) -> Array:
    """A noise level σ as an array; raises ValueError unless it is finite and positive."""
    array = np.asarray(sigma, dtype=np.float64)
    accepted = (array > 0) & np.isfinite(array)
    return _checked("sigma", array, accepted, "finite and positive; without noise nothing is certified")


def ratio_array(radius: float | Array, sigma: float | Array) -> Array:
    """c = r / σ as an array; raises ValueError unless r is finite and not negative, and σ finite and positive."""
    array = np.asarray(radius, dtype=np.float64)
    accepted = (array >= 0) & np.isfinite(array)
    _checked("radius", array, accepted, "finite and not negative; it is the ℓ2 size of the attack in pixels")
    with np.errstate(over="ignore"):
        return np.asarray(array / sigma_array(sigma))


def similarity_array(similarity: float | Array) -> Array:
    """A wanted cosine similarity as an array; raises ValueError unless it lies in (0, 1]."""
    array = np.asarray(similarity, dtype=np.float64)
    accepted = (array > 0) & (array <= 1)
    return _checked("similarity", array, accepted, "in (0, 1]; only positive similarities are certified")


def unit_array(name: str, value: float | Array) -> Array:
    """A similarity or probability as an array; raises ValueError unless it lies in [0, 1]."""
    array = np.asarray(value, dtype=np.float64)
    return _checked(name, array, (array >= 0) & (array <= 1), "in [0, 1]")


def confidence_value(confidence: float) -> float:
    """A confidence 1 - α; raises ValueError unless it lies strictly between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, for instance 0.999; got {confidence!r}")
    return float(confidence)


def apply_flat(function: Callable[..., Array], *arguments: Array) -> float | Array:
    """Broadcasts the arguments, calls ``function`` on flat arrays, and returns the result in the broadcast shape.

    Returns:
        A Python float if no argument has a dimension, else an array.
    """
    broadcast = np.broadcast_arrays(*arguments)
    values = function(*(np.ravel(argument) for argument in broadcast))
    return values.reshape(broadcast[0].shape) if broadcast[0].ndim else float(values[0])


def _checked(name: str, array: Array, accepted: NDArray[np.bool_], remedy: str) -> Array:
    if not np.all(accepted):
        raise ValueError(f"{name} must be {remedy}; got {float(array[~accepted].flat[0])}")
    return array
