"""The engine: samples of every request in flight share the batches of one device, and what was drawn is kept."""

from fs_runtime.engine.copies import Copies
from fs_runtime.engine.engine import SmoothingEngine
from fs_runtime.engine.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceLostError,
    EngineClosedError,
    EngineOverloadedError,
    SmoothingError,
)
from fs_runtime.engine.request import CacheOutcome, Ending, MeasuredFidelity, Recall, SmoothingRequest, SmoothingResult
from fs_runtime.engine.terms import MAX_CONFIDENCE, CertificateTerms, ConfidenceSplit

__all__ = [
    "MAX_CONFIDENCE",
    "CacheOutcome",
    "CertificateTerms",
    "ConfidenceSplit",
    "Copies",
    "DeadlineExceededError",
    "DeadlineUnreachableError",
    "DeviceLostError",
    "Ending",
    "EngineClosedError",
    "EngineOverloadedError",
    "MeasuredFidelity",
    "Recall",
    "SmoothingEngine",
    "SmoothingError",
    "SmoothingRequest",
    "SmoothingResult",
]
