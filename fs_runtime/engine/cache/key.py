"""The key of a cached image: everything that its draws depend on, but for their seed."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache

import torch

from fs_runtime.engine.request import Pixels, SmoothingRequest
from fs_runtime.preprocessing.pictures import digest
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.provenance import decoder_version, device_name, library_versions


@dataclasses.dataclass(frozen=True, slots=True)
class CacheKey:
    """What draws are a function of, other than their seed; confidence and query are not.

    Attributes:
        tenant: Whose they are; what one tenant can learn of draws is of no use against another.
        image: Digest of the image's pixels.
        sigma: σ.
        feature_map: Which f.
        spectral: Whether the spread is bounded.
        max_sketch_bytes: Up to which size of the sketch; it says of which images, and so how α is split.
        token_confidence: Of the bounds of all tokens, which cannot be computed again for another confidence.
        weights: Fingerprints of all that f is made of.
        preprocessing: What makes x of the image, as JSON; a cap on its pixels, which no fingerprint tells of, included.
        noise: Version of the way from a seed to draws.
        arithmetic: Device, precision, how networks are compiled, and libraries; one seed gives other draws elsewhere.
        purpose: What the draws are for, where they may serve nothing else.
    """

    tenant: str
    image: str
    sigma: float
    feature_map: FeatureMap
    spectral: bool
    max_sketch_bytes: int
    token_confidence: float | None
    weights: tuple[str | None, ...]
    preprocessing: str
    noise: int
    arithmetic: tuple[str, ...]
    purpose: str = ""

    @classmethod
    def of(
        cls, request: SmoothingRequest, smoother: Smoother, max_sketch_bytes: int = 0, pixels: Pixels | None = None
    ) -> CacheKey:
        """The key of a request.

        Raises:
            ValueError: It does not say which image it is about, and there are no pixels either.
        """
        terms = request.terms
        statistics = smoother.statistics if terms.feature_map.centred else None
        parts = smoother.purifier, smoother.mapper, statistics
        return cls(
            request.tenant,
            _image_name(request, pixels),
            terms.sigma,
            terms.feature_map,
            terms.bounds_spread,
            max_sketch_bytes if terms.bounds_spread else 0,
            terms.token_confidence,
            (smoother.encoder.fingerprint, *(None if part is None else part.fingerprint for part in parts)),
            json.dumps(smoother.encoder.preprocessing, sort_keys=True),
            smoother.noise_version,
            _arithmetic(
                smoother.encoder.device,
                smoother.encoder.dtype,
                None if smoother.compiled is None else smoother.compiled.mode,
            ),
            request.purpose,
        )

    def parts(self) -> tuple[str, ...]:
        """All of it as texts, from which other processes make the same name."""
        stage, centred = self.feature_map.stage, self.feature_map.centred
        spread = self.spectral, self.max_sketch_bytes
        asked = self.tenant, self.image, self.sigma, stage, centred, *spread, self.token_confidence
        made = *self.weights, self.preprocessing, self.noise, *self.arithmetic
        named = (f"for {self.purpose}",) if self.purpose else ()
        return tuple(repr(value) for value in (*asked, *made, *named))


def _image_name(request: SmoothingRequest, pixels: Pixels | None) -> str:
    if request.image_id is not None:
        return f"id:{request.image_id}"
    if pixels is None:
        raise ValueError("image_id is missing: without pixels, nothing else says which image the request is about")
    return digest(pixels)


@lru_cache(maxsize=64)
def _arithmetic(device: torch.device, dtype: torch.dtype, compiled: str | None) -> tuple[str, ...]:
    libraries = {**library_versions(), "pillow": decoder_version()}
    named = [f"{name} {version}" for name, version in libraries.items()]
    how = [] if compiled is None else [f"compiled {compiled}"]
    return device.type, device_name(device), str(dtype), *how, *named
