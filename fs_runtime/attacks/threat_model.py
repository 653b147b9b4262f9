"""The threat model: an ℓ∞ or ℓ2 ball around an image, within the box of pixel values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fs_runtime.options import NORMS, Norm


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """A ball around each image, intersected with the box [0, 1].

    Attributes:
        norm: ``linf`` or ``l2``.
        epsilon: Radius of the ball, in pixels of [0, 1].

    Raises:
        ValueError: The norm is unknown, or ε is not a positive number.
    """

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a positive number in pixels of [0, 1]; got {self.epsilon}")

    @classmethod
    def of_size(cls, norm: Norm, size: float, shape: Sequence[int]) -> ThreatModel:
        """The ball of a norm that reaches as far as the corners of the ℓ∞ ball of radius ``size``.

        Args:
            norm: ``linf`` or ``l2``.
            size: ε of the ℓ∞ ball, for example 8/255. For ℓ2 the radius is ``size`` · √(C·H·W), the length of that
                ball's corners.
            shape: ``(C, H, W)`` of the image.
        """
        return cls(norm, size if norm == "linf" else size * math.sqrt(math.prod(shape)))

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        """Moves ``(B, C, H, W)`` images into the ball around ``centre`` and into the box.

        Exact for ℓ∞. For ℓ2 the nearest point of the ball is clipped to the box. That brings it closer to ``centre``,
        which lies in the box, so the result is in both, but not always the nearest such point.
        """
        shift = x - centre
        if self.norm == "linf":
            shift = shift.clamp(-self.epsilon, self.epsilon)
        else:
            shift = shift * (self.epsilon / _lengths(shift).clamp_min(self.epsilon))
        return (centre + shift).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit size in the norm along which a linear function grows most: sign, or g/‖g‖₂."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def random_start(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A random point of the ball around each image, uniform before clipping to the box: ``(B, C, H, W)``."""
        if self.norm == "linf":
            shift = torch.rand(centre.shape, generator=generator, device=centre.device) * 2 - 1
        else:
            shift = self.steepest(torch.randn(centre.shape, generator=generator, device=centre.device))
            radius = torch.rand(_lengths(centre).shape, generator=generator, device=centre.device)
            shift = shift * radius ** (1 / centre[0].numel())
        return self.project(centre + self.epsilon * shift, centre)

    def size(self, shift: Tensor) -> Tensor:
        """``(B,)`` norms of ``(B, C, H, W)`` shifts."""
        return shift.abs().flatten(1).amax(1) if self.norm == "linf" else _lengths(shift).flatten()


def _lengths(x: Tensor) -> Tensor:
    """``(B, 1, …)`` norms of ``(B, …)`` images or stacks of tiles."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)
    return lengths
