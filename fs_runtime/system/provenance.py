"""Library versions and device name, as receipts and the shared cache record them."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version

import torch

from fs_runtime import __version__


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute a certificate."""
    return {"fs-serve": __version__, **{name: version(name) for name in ("torch", "transformers", "numpy")}}


@lru_cache(maxsize=1)
def decoder_version() -> str:
    """Version of the library that decodes pictures: another version may decode the same file to other pixels."""
    return version("pillow")


def device_name(device: torch.device) -> str:
    """Model of the GPU; for the CPU, the instruction set that torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability())
