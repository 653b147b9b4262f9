"""Requests to the engine in one line."""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

from fs_runtime.engine import CertificateTerms, SmoothingEngine, SmoothingRequest, SmoothingResult
from fs_runtime.engine.request import Pixels

Asked = tuple[SmoothingRequest, Pixels]
_TERMS = {field.name for field in fields(CertificateTerms)}


def asked(pixels: Pixels, sigma: float = 0.1, samples: int = 20, confidence: float = 0.95, **options: Any) -> Asked:
    """A request and its pixels, as ``engine.submit`` takes them; options are those of the request and of its terms."""
    terms = {name: options.pop(name) for name in _TERMS & options.keys()}
    return SmoothingRequest(CertificateTerms(sigma, confidence, **terms), samples, **options), pixels


async def smoothed(
    engine: SmoothingEngine, request: SmoothingRequest, decode: Callable[[], Awaitable[Pixels]]
) -> SmoothingResult:
    """A result by the way that the gateway goes: pixels are decoded only where the engine does not know the image."""
    recall = await engine.recall(request)
    if recall.result is not None:
        return recall.result
    async with engine.place(request.tenant) as place:
        return await engine.smooth(recall, await decode(), place)
