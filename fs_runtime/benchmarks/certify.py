"""Samples and time to certify a wanted similarity: adaptive sampling against fixed numbers of samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fs_runtime.engine import CertificateTerms, SmoothingEngine, SmoothingRequest
from fs_runtime.engine.request import Pixels
from fs_runtime.options import CertificateQuery
from fs_runtime.robustness import Fingerprints, certify


@dataclass(frozen=True, slots=True)
class CertifyRow:
    """Results of one way of sampling for one wanted similarity, over some images.

    Attributes:
        similarity: The wanted similarity at the radius.
        way: ``adaptive``, or ``fixed``.
        max_samples: Limit on the number of samples.
        certified: Share of the images for which it was certified.
        samples: Mean number of samples per image.
        seconds: Mean time per image, one image at a time.
    """

    similarity: float
    way: str
    max_samples: int
    certified: float
    samples: float
    seconds: float


def benchmark_certify(
    engine: SmoothingEngine,
    images: Mapping[str, Pixels],
    *,
    similarities: Sequence[float],
    counts: Sequence[int],
    radius: float,
    confidence: float,
    progress: Callable[[str], None],
) -> list[CertifyRow]:
    """Certifies each image for each similarity: adaptively up to the largest count, and with each fixed count.

    Args:
        engine: Without a cache, so that every request has its own draws.
        images: By name.
        similarities: The wanted similarities.
        counts: Numbers of samples.
        radius: ℓ2 radius on the model's image.
        confidence: 1 - α.
        progress: Called with a description of each measurement.
    """
    rows = []
    for similarity in similarities:
        for way, count in [("adaptive", max(counts)), *(("fixed", count) for count in counts)]:
            query = CertificateQuery(radius, min_similarity=similarity)
            reached, samples, seconds = [], [], []
            for name, pixels in images.items():
                progress(f"similarity {similarity:g}, {way} {count}: {name}")
                sigma = engine.smoother.sigma
                until = query if way == "adaptive" else None
                start = time.perf_counter()
                terms = CertificateTerms(sigma, confidence, spectral=True)
                result = engine.submit(SmoothingRequest(terms, count, until=until), pixels).result()
                seconds.append(time.perf_counter() - start)
                fingerprints = Fingerprints.of(engine.smoother, terms.feature_map)
                reached.append(certify(result, query, fingerprints).satisfied is True)
                samples.append(result.samples)
            row = CertifyRow(
                similarity, way, count, *(float(np.mean(values)) for values in (reached, samples, seconds))
            )
            rows.append(row)
    return rows
