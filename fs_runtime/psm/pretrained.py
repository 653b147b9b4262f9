"""Denoisers of other projects as purifiers: what the settings ``deepinv:…`` and ``diffusion:…`` load."""

from __future__ import annotations

from pathlib import Path

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.options import DEFAULT_SIGMA
from fs_runtime.psm import PsmFacts
from fs_runtime.psm.deepinv import DENOISERS, DeepinvPurifier
from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.psm.storage import ANY_ENCODER, Psm, prepare_for_inference
from fs_runtime.system.files import TrainingError

_DEEPINV, _DIFFUSION = "deepinv", "diffusion"


def is_pretrained(psm: str) -> bool:
    """Whether a ``psm`` setting names a denoiser of another project."""
    return psm.partition(":")[0] in (_DEEPINV, _DIFFUSION) and ":" in psm


def pretrained_purifier(psm: str) -> DeepinvPurifier | DiffusionPurifier:
    """Loads a denoiser of another project, in float32, with its fingerprint: over its name, configuration and weights.

    Args:
        psm: ``deepinv:NAME``, ``deepinv:NAME:WEIGHTS``, or ``diffusion:SOURCE`` with a folder, a file or a hub id.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    kind, _, rest = psm.partition(":")
    purifier: DeepinvPurifier | DiffusionPurifier
    if kind == _DEEPINV:
        name, _, weights = rest.partition(":")
        purifier = DeepinvPurifier.from_pretrained(name, weights or None)
    else:
        try:
            purifier = DiffusionPurifier.from_pretrained(rest)
        except TrainingError as error:
            raise CheckpointError(str(error)) from None
    purifier.fingerprint = fingerprint({"kind": purifier.kind, "config": purifier.describe()}, purifier)
    return purifier


def load_pretrained(psm: str, encoder: VisionEncoder) -> Psm:
    """A denoiser of another project as a purifier for any encoder, on the encoder's device and in its precision.

    Nobody measured what it leaves of pictures, so its default noise level is the one of a bare encoder.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    purifier = pretrained_purifier(psm)
    low, high = purifier.sigma_range
    sigma = min(max(DEFAULT_SIGMA, low), high)
    facts = PsmFacts(label(psm), "any", low, high)
    card = {
        "encoder": ANY_ENCODER,
        "purifier": {"kind": purifier.kind, "config": purifier.describe(), "fingerprint": purifier.fingerprint},
        "mapper": None,
        "name": facts.name,
        "sigma": {"served": sigma, "trained": [low, high]},
    }
    prepare_for_inference(purifier, encoder.device, encoder.dtype)
    return Psm(purifier, None, sigma, facts, card)


def label(psm: str) -> str:
    """What answers call it: without paths of this machine."""
    kind, _, rest = psm.partition(":")
    if kind == _DEEPINV:
        return f"{kind}:{rest.partition(':')[0]}"
    return f"{kind}:{Path(rest).name if Path(rest).exists() else rest}"


def memory_needs(psm: str) -> tuple[int, int]:
    """Numbers of float32 in the weights, and in memory at once for each pixel of a picture; 0 where it is not known."""
    kind, _, rest = psm.partition(":")
    facts = DENOISERS.get(rest.partition(":")[0]) if kind == _DEEPINV else None
    if facts is not None:
        return facts.parameters, facts.live
    path = Path(rest)
    files = [path] if path.is_file() else path.rglob("*.safetensors") if path.is_dir() else []
    return sum(file.stat().st_size for file in files) // 4, DENOISERS["DiffUNet"].live if kind == _DIFFUSION else 0
