"""From a checkpoint's name to a running engine, and whether it fits into memory."""

from fs_runtime.loading.engine import (
    EngineOptions,
    load_engine,
    load_smoother,
    psm_folder,
    resolve_device,
    resolve_dtype,
)

__all__ = [
    "EngineOptions",
    "load_engine",
    "load_smoother",
    "psm_folder",
    "resolve_device",
    "resolve_dtype",
]
