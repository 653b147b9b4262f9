"""Loads a checkpoint into a running engine, and checks that it fits into memory."""

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
