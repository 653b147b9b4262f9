"""The rows of the tables: the parts of each defence, and the smoothing of images by it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.psm import Mapper, Purifier
from fs_runtime.smoothing.smoother import Smoother

UNDEFENDED = "none"


@dataclass(frozen=True, slots=True)
class Defence:
    """One row: a name, the networks, and the noise level; σ = 0 means no smoothing."""

    name: str
    smoother: Smoother
    sigma: float


@dataclass(frozen=True, slots=True)
class ServedImages:
    """Results of smoothing B images.

    Attributes:
        features: ``(B, T, D)`` smoothed features.
        embeddings: ``(B, T', D')``.
        norm_lower: ``(B,)`` lower confidence bounds of ρ; 0 without noise, and for a single sample.
        norm_estimate: ``(B,)`` plug-in estimates of ρ; 1 without noise, NaN for a single noisy sample.
        seconds: Time of the smoothing pass per image, in shared batches.
    """

    features: Tensor
    embeddings: Tensor
    norm_lower: NDArray[np.float64]
    norm_estimate: NDArray[np.float64]
    seconds: float


def defences_for(
    encoder: VisionEncoder,
    sigma: float,
    purifier: Purifier | None = None,
    mapper: Mapper | None = None,
    robust: VisionEncoder | None = None,
) -> tuple[list[Defence], dict[str, str]]:
    """The rows that the given parts allow, and the reason why each other row is missing, by name.

    Args:
        encoder: The vision encoder.
        sigma: σ of the smoothed rows, positive.
        purifier: Denoiser before the encoder, if there is one.
        mapper: Network after the encoder, if there is one.
        robust: The encoder with an adversarially trained tower, if there is one. Purifier and mapper fit it without
            changes, since it was trained to give the original's features.
    """
    rows = [Defence(UNDEFENDED, Smoother(encoder), 0.0), Defence("FS", Smoother(encoder), sigma)]
    left_out = {}
    for name, base, level, first, last in (
        ("FS + mapper", encoder, sigma, False, True),
        ("FS + purifier", encoder, sigma, True, False),
        ("FS + PSM", encoder, sigma, True, True),
        ("robust encoder", robust, 0.0, False, False),
        ("robust encoder + FS + PSM", robust, sigma, True, True),
    ):
        missing = ["robust encoder"] if base is None else []
        missing += ["purifier"] if first and purifier is None else []
        missing += ["mapper"] if last and mapper is None else []
        if base is None or missing:
            left_out[name] = f"there is no {' and no '.join(missing)}"
        else:
            rows.append(Defence(name, Smoother(base, purifier if first else None, mapper if last else None), level))
    return rows, left_out


def serve_images(
    defence: Defence,
    images: Sequence[PreparedImage],
    samples: int,
    *,
    seed: int,
    confidence: float = 0.999,
    batch_size: int = 64,
) -> ServedImages:
    """Smooths images as the server does, in shared batches.

    Args:
        defence: The row.
        images: Prepared images of one shape.
        samples: n, noisy copies of each image; without noise only one is used.
        seed: Image i draws from ``seed + i``.
        confidence: 1 - α of ``norm_lower``, for each image by itself.
        batch_size: Most copies in one pass.
    """
    smoother, count = defence.smoother, samples if defence.sigma > 0 else 1
    states = [smoother.start(image, defence.sigma, seed + i) for i, image in enumerate(images)]
    products: list[list[Tensor]] = [[] for _ in images]
    began = time.perf_counter()
    together, at_once = max(1, batch_size // count), min(count, batch_size)
    for start in range(0, len(states), together):
        group = range(start, min(start + together, len(states)))
        for taken in range(0, count, at_once):
            size = min(at_once, count - taken)
            found = smoother.step([(states[i], size) for i in group])
            for i, new in zip(group, found, strict=True):
                products[i].append(new.image)
    finished = [smoother.finish(state) for state in states]
    seconds = (time.perf_counter() - began) / len(states)
    sequence = NormConfidenceSequence(confidence, (len(states),))
    if defence.sigma > 0:
        series = torch.stack([torch.cat(parts) for parts in products], dim=1)  # (n - 1, B)
        sequence.update(series.double().cpu().numpy())
    unknown = np.nan if defence.sigma > 0 else 1.0
    estimates = [unknown if one.norm_estimate is None else one.norm_estimate for one in finished]
    return ServedImages(
        features=torch.stack([one.features for one in finished]),
        embeddings=torch.stack([one.embeddings for one in finished]),
        norm_lower=np.asarray(sequence.lower),
        norm_estimate=np.asarray(estimates, dtype=np.float64),
        seconds=seconds,
    )
