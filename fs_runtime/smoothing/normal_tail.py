"""The tail of the normal law, drawn exactly: values beyond t replace what float32 draws there.

PyTorch makes float32 normals from uniforms of few bits, so that they end: on CPU at sqrt(2 log 2²⁴) = 5.768, on CUDA at
about 6.76. The ideal law has one of the 3·336² coordinates of a sample beyond 5.768 with probability 0.003, and the
guarantee speaks of the ideal law.

**Claim.** Let z be N(0, 1), and let V be uniform on (0, 1] and independent of it. Where |z| > t, replace z by
sign(z) q(V) with q(V) = -Φ⁻¹(V Φ(-t)). The result is N(0, 1).
*Proof.* P(q(V) > s) = P(V < Φ(-s) / Φ(-t)) = Φ(-s) / Φ(-t) for s ≥ t, which is P(|z| > s | |z| > t). So given that
|z| > t, and given the sign, the value has the law that z has; and where |z| ≤ t nothing changes. For independent
coordinates with independent V it holds for all of them together. ∎

Only which coordinates lie beyond t, and their signs, are taken from the float32 draws: their values beyond t are not.
V has 106 bits, in two words of float64: U₁ + 2⁻⁵³ U₂. So the drawn law ends at q(2⁻¹⁰⁶) = 12.5, and the ideal law has
2 Φ(-t) 2⁻¹⁰⁶ = 6e-36 beyond.

Source: docs/guarantee.md section 7; inversion of the conditional law, Devroye, "Non-Uniform Random Variate Generation",
1986, section II.2.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

# One coordinate of 2,000 lies beyond, so that to replace them costs little beside looking for them. Uniforms of 24 bits
# have 37,000 values that give a radius beyond it, so that the share that lies there is right to a part in ten thousand.
TAIL_START = 3.5
_TAIL_MASS = float(ndtr(-TAIL_START))  # Φ(-t), on one side
_BITS = 53  # of a uniform in float64


def replace_tail(z: Tensor, generator: torch.Generator) -> None:
    """Replaces the values of ``z`` beyond :data:`TAIL_START`, in place and in order.

    Args:
        z: Contiguous float32 of any shape, N(0, 1).
        generator: Of the CPU, wherever ``z`` is; two words are taken for each value that is replaced. So how ``z`` is
            cut makes no difference.
    """
    flat = z.view(-1)
    if flat.device.type == "cpu":  # with NumPy, which takes half of the time
        values = flat.numpy()
        places = np.flatnonzero(np.abs(values) > TAIL_START)
        values[places] = np.copysign(_sizes(len(places), generator), values[places])
        return
    where = (flat.abs() > TAIL_START).nonzero().squeeze(1)
    sizes = torch.from_numpy(_sizes(len(where), generator)).to(flat)
    flat[where] = torch.copysign(sizes, flat[where])


def _sizes(count: int, generator: torch.Generator) -> NDArray[np.float64]:
    return tail_values(torch.rand((count, 2), dtype=torch.float64, generator=generator).numpy())


def tail_values(words: NDArray[np.float64]) -> NDArray[np.float64]:
    """q(V): sizes beyond :data:`TAIL_START` from uniforms in [0, 1) of 53 bits.

    Args:
        words: ``(n, 2)`` float64, U₁ and 1 - U₂.

    Returns:
        ``(n,)`` float64.
    """
    v = words[:, 0] + 2.0**-_BITS * (1 - words[:, 1])  # V, in (0, 1]
    return np.asarray(-ndtri(v * _TAIL_MASS))


def mass_beyond_reach(coordinates: int, samples: int) -> float:
    """Probability that ideal noise has any coordinate that is larger than all that can be drawn (a union bound).

    Args:
        coordinates: Of one sample.
        samples: How many of them there are.

    Example:
        >>> mass_beyond_reach(3 * 336**2, 1024) < 1e-26
        True
    """
    return 2 * _TAIL_MASS * 2.0 ** (-2 * _BITS) * coordinates * samples
