"""The optimal dual point of the tight bound, by solving its optimality conditions.

It builds the shipped table and gives the worst case; no certificate depends on it.

At the optimum of (*) in :mod:`~fs_runtime.certificate.dual_bound` the unit function f ∝ (e^{c (z - x)} - cos B) w +
sin B w⊥ is a worst case: ⟨w, E[L f]⟩ = 0, so that the angle is exactly θ, and ‖E f‖ = ρ. The solver solves these two
equations. The second is written (1 - ‖E f‖) / (1 - ρ) = 1, with 1 - ‖E f‖ as a mean of squares, which avoids
cancellation as ρ → 1.

Source: docs/guarantee.md section 3.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import root
from scipy.special import ndtr

from fs_runtime.certificate.arguments import Array
from fs_runtime.certificate.dual_bound import plain_rule, stretched_rule
from fs_runtime.certificate.dual_table import dual_point

_STRETCH_BELOW = 0.5


def solve_dual(reach: float, slack: float, start: tuple[float, float]) -> tuple[float, float]:
    """The entries of the table at one point.

    Args:
        reach: Φ⁻¹((1 + ρ) / 2), positive.
        slack: (1 - c / reach)^(1/4), in (0, 1).
        start: Location and steepness to start from, for instance those of a neighbour.

    Returns:
        Location and steepness of the optimal dual point.

    Raises:
        ArithmeticError: The solver did not converge; a start closer to the solution may help.
    """

    def residual(entry: Array) -> Array:
        return _optimality(entry, reach, slack)

    entry = np.asarray(start, dtype=np.float64)
    with np.errstate(all="ignore"):
        for method in ("hybr", "lm"):
            entry = root(residual, entry, method=method, tol=1e-12).x
            if np.abs(residual(entry)).max() < 1e-6:
                return float(entry[0]), float(entry[1])
    raise ArithmeticError(f"no optimal dual point found at reach {reach}, slack {slack} from {start}")


def worst_direction(offset: Array, zeta: complex, ratio: float) -> tuple[Array, Array]:
    """Components of the worst case along w and w⊥ at offsets z - x; their squares add up to 1."""
    along = np.expm1(ratio * offset) + 2 * np.sin(ratio * zeta.imag / 2) ** 2
    across = np.sin(ratio * zeta.imag)
    length = np.hypot(along, across)
    return along / length, across / length


def worst_angle(zeta: complex, ratio: float) -> float:
    """θ of the worst case of an optimal dual point: E f lies along u = -sin θ w + cos θ w⊥."""
    _, weight, along, across = _worst_case(zeta, ratio)
    return float(np.arctan2(-(weight @ along), weight @ across))


def _worst_case(zeta: complex, ratio: float) -> tuple[Array, Array, Array, Array]:
    rule = stretched_rule if zeta.imag < _STRETCH_BELOW else plain_rule
    offset, weight, _ = rule(np.asarray([zeta]), np.asarray([ratio]))
    return offset[0], weight[0], *worst_direction(offset[0], zeta, ratio)


def _optimality(entry: Array, reach: float, slack: float) -> Array:
    ratio = reach * (1 - slack**4)
    zeta = complex(dual_point(entry[:1], entry[1:], np.asarray([slack]), np.asarray([ratio]))[0])
    offset, weight, along, across = _worst_case(zeta, ratio)
    shifted = weight * np.exp(ratio * offset)  # proportional to the weights of E[L ·]
    balance = (shifted @ along) / (shifted @ np.abs(along))
    turn = np.arctan2(along, across) + worst_angle(zeta, ratio)
    lost = 2 * (weight @ np.sin(turn / 2) ** 2)  # 1 - ‖E f‖
    return np.asarray([balance, np.log(lost / (2 * ndtr(-reach)))])
