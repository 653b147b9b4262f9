"""Option types, defaults and limits that the server and the runtime share; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Space = Literal["model", "client"]
"""Where a radius is measured: on the image the encoder reads, or on the client's as sent."""

Granularity = Literal["image", "token"]
"""Whether there is one certificate for all tokens together, or one for each token."""

Stage = Literal["encoder", "projector"]
"""Whose features are certified: the encoder's (the paper), or the projector's, which the language model reads."""

Precision = Literal["float32", "bfloat16", "float16"]
"""Arithmetic of the networks."""

Dtype = Literal["auto", Precision]
"""A precision as users choose it; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""

LanguageModelKind = Literal["vllm", "embedded"]
"""Where the answers of a model may be made: by a vLLM server, or in this process."""

TrainingPrecision = Literal["auto", "float32", "bfloat16"]
"""Arithmetic of a training's passes as users choose it; ``auto`` is as for :data:`Dtype`."""

MixedPrecision = Literal["no", "bf16"]
"""The same in accelerate's words, without ``auto``."""

Norm = Literal["linf", "l2"]
"""In which a change of an image is measured: by its largest value, or by the root of the sum of squares."""

NORMS: tuple[Norm, ...] = get_args(Norm)

CompileMode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"]
"""Modes of ``torch.compile``; the last two replay CUDA graphs on a GPU."""

COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)

Quantization = Literal["fp8"]
"""Number format of the matrix products in the encoder's linear layers, where it is not the encoder's dtype."""

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

DEFAULT_MAX_PIXELS = 1280 * 28 * 28
"""1,280 tokens of Qwen2-VL, about a megapixel. Published checkpoints allow twelve times as many pixels; one image in
flight would then take gigabytes of memory."""

LEAST_FIDELITY = 0.95
"""Fidelity of tokens, mean over pictures, that a default σ must leave of what the encoder sees."""

DEFAULT_SIGMA = 0.05
"""Noise level of models without a purifier; a bare encoder's features fall apart above it (docs/reference-model.md)."""

# Below it the noise is no longer Gaussian: float32 pixels near 1 lie 6e-8 apart, and x + δ is rounded to them.
MIN_SIGMA = 1e-3
MAX_RADIUS = 1e6  # far beyond the size of any change of any image; more would overflow somewhere


def sigma_value(sigma: float) -> float:
    """``sigma``, after checking that it is 0, which turns smoothing off, or at least :data:`MIN_SIGMA`.

    Raises:
        ValueError: It is neither.
    """
    if sigma == 0 or MIN_SIGMA <= sigma < math.inf:
        return sigma
    raise ValueError(f"sigma must be 0, which turns smoothing off, or at least {MIN_SIGMA:g}; got {sigma:g}")


def sigma_in_use(sigma: float) -> float:
    """σ to four decimals, as requests to a server use it in noise, networks and certificate alike.

    What differs by less has the same draws: a σ that is changed by 1e-7 is no further attempt (docs/guarantee.md
    section 7).
    """
    return round(sigma, 4)


def radius_for(sigma: float, radius: float | None = None) -> float:
    """The ℓ2 radius to certify at, in pixels of [0, 1]: ``radius`` if it is given, else half of σ."""
    return sigma / 2 if radius is None else radius


@dataclass(frozen=True, slots=True)
class Radius:
    """One ℓ2 radius, in pixels of [0, 1], on the image the encoder reads and on the client's decoded to 8-bit RGB."""

    model: float
    client: float


@dataclass(frozen=True, slots=True)
class CertificateQuery:
    """What a caller asks of a certificate.

    Attributes:
        radius: ℓ2 size of the attack, in pixels of [0, 1].
        space: Where it is measured: ``client`` on the image as sent, decoded to 8-bit RGB;
            ``model`` on the image the encoder reads.
        min_similarity: Smallest certified similarity that satisfies the caller; None if any does.
        curve: Whether to compute the bounds over a range of radii too.
    """

    radius: float
    space: Space = "model"
    min_similarity: float | None = None
    curve: bool = False

    def radii(self, spectral_norm: float) -> Radius:
        """The radius in both spaces, for an image whose preprocessing has this ‖A‖₂ (docs/guarantee.md section 6)."""
        if self.space == "client":
            return Radius(self.radius * spectral_norm, self.radius)
        return Radius(self.radius, self.radius / spectral_norm)
