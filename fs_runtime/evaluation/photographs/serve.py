"""One picture as the server smooths it, with every copy's logits beside the smoothed ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.encoders import PreparedImage
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import apply_update, sums_update


@dataclass(frozen=True, slots=True)
class ServedPicture:
    """Result of smoothing one picture.

    Attributes:
        mean: ``(T, D)`` mean of the copies' unit features.
        clean: ``(T, D)`` unit features of the picture as sent, without noise and purifier.
        embedding: ``(T', D')`` of the smoothed features: the logits, if the encoder classifies.
        copies: ``(n, T', D')`` of each copy by itself.
        norm_estimate: Plug-in estimate of ρ; None without noise.
        norm_lower: Lower confidence bound of ρ; None without noise.
    """

    mean: Tensor
    clean: Tensor
    embedding: Tensor
    copies: Tensor
    norm_estimate: float | None
    norm_lower: float | None


@torch.inference_mode()
def clean_features(smoother: Smoother, image: PreparedImage) -> Tensor:
    """``(T, D)`` unit features of a picture without noise, purifier and mapper."""
    x = image.pixels.to(smoother.encoder.device)[None]
    features = smoother.features(x, torch.zeros(1, device=x.device), image.grid, noisy=False)
    return torch.nn.functional.normalize(features[0].float(), dim=-1)


@torch.inference_mode()
def serve_picture(
    smoother: Smoother,
    image: PreparedImage,
    sigma: float,
    *,
    clean: Tensor,
    seed: int,
    samples: int,
    confidence: float,
    batch_size: int,
) -> ServedPicture:
    """Smooths a picture by the server's own sums, features and confidence sequence.

    Args:
        smoother: Encoder and purifier.
        image: The picture as sent.
        sigma: σ in pixels of [0, 1]; 0 for a single copy without noise.
        clean: From :func:`clean_features`.
        seed: Of the noise.
        samples: n, noisy copies.
        confidence: 1 - α of ``norm_lower``.
        batch_size: Most copies in one pass.
    """
    state = smoother.start(image, sigma, seed)
    state.clean = clean if sigma > 0 else None
    count = samples if sigma > 0 else 1
    sequence = NormConfidenceSequence(confidence)
    copies = []
    while state.count < count:
        features = smoother.draw_plain(state, min(batch_size, count - state.count))
        copies.append(smoother.encoder.project(features, image.grid).float())
        lengths = torch.linalg.vector_norm(features, dim=-1)
        unit = features / lengths.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        update = sums_update(state, unit, lengths)
        apply_update(state, update)
        sequence.update(update.products.image.double().cpu().numpy().astype(np.float64))
    finished = smoother.finish(state)
    assert state.feature_sum is not None  # noqa: S101 (a copy was drawn)
    return ServedPicture(
        mean=state.feature_sum / count,
        clean=clean,
        embedding=finished.embeddings.float(),
        copies=torch.cat(copies),
        norm_estimate=finished.norm_estimate,
        norm_lower=float(sequence.lower) if sigma > 0 else None,
    )
