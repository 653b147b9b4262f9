"""The engine: samples of every request in flight share the batches of one device, and what was drawn is kept."""

from fs_runtime.engine.engine import SmoothingEngine
from fs_runtime.engine.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceLostError,
    EngineClosedError,
    EngineOverloadedError,
    SmoothingError,
)
from fs_runtime.engine.request import (
    MAX_CONFIDENCE,
    CacheOutcome,
    ConfidenceSplit,
    Ending,
    SmoothingRequest,
    SmoothingResult,
)

__all__ = [
    "MAX_CONFIDENCE",
    "CacheOutcome",
    "ConfidenceSplit",
    "DeadlineExceededError",
    "DeadlineUnreachableError",
    "DeviceLostError",
    "Ending",
    "EngineClosedError",
    "EngineOverloadedError",
    "SmoothingEngine",
    "SmoothingError",
    "SmoothingRequest",
    "SmoothingResult",
]
