"""The feature map that attains the tight bound, which proves that ρ alone certifies no more.

Source: docs/guarantee.md section 3, f(z) ∝ w L(z) - λ.
"""

from __future__ import annotations

import numpy as np

from fs_runtime.certificate.arguments import Array, norm_array, ratio_array
from fs_runtime.certificate.dual_optimum import solve_dual, worst_angle, worst_direction
from fs_runtime.certificate.dual_table import dual_point, reach_of_norm, shipped_table


def worst_case_feature(noise: float | Array, norm: float, radius: float, sigma: float) -> Array:
    """The worst unit feature f as a function of the noise along the attack.

    For z ~ N(0, 1) it has E f(z) = (ρ, 0), and after an attack of size r, which moves z by c = r / σ, the angle
    between E f(z + c) and E f(z) has the cosine ``tight_similarity(norm, radius, sigma)``.

    Args:
        noise: z = ⟨δ, x' - x⟩ / (σ r), any shape: the noise along the attack, in standard deviations.
        norm: ρ in (0, 1).
        radius: r > 0 in pixels of [0, 1], small enough for a positive bound.
        sigma: σ in the same unit.

    Returns:
        ``noise.shape + (2,)``: components of f along u = g(x) / ‖g(x)‖ and along v ⊥ u.

    Raises:
        ValueError: An argument is out of its range, or nothing is certified there: then there is no worst case.
    """
    rho, c = float(norm_array(norm)), float(ratio_array(radius, sigma))
    reach = float(reach_of_norm(np.asarray(rho)))
    if not (0 < rho < 1 and 0 < c < reach):
        raise ValueError(
            f"norm and radius must allow a bound between 0 and 1: need 0 < norm < 1 and "
            f"0 < radius / sigma < {reach:.6g}; got norm {rho}, radius / sigma {c:.6g}"
        )
    zeta = _optimum(rho, c)
    theta = worst_angle(zeta, c)
    along, across = worst_direction(np.asarray(noise) - zeta.real, zeta, c)
    # w = (-sin θ, cos θ) and w⊥ = (cos θ, sin θ) in the frame (u, v)
    return np.stack(
        [across * np.cos(theta) - along * np.sin(theta), along * np.cos(theta) + across * np.sin(theta)], axis=-1
    )


def _optimum(norm: float, ratio: float) -> complex:
    rho, c = np.asarray([norm]), np.asarray([ratio])
    location, steepness, slack = shipped_table().entries(rho, c)
    start = float(location[0]), float(steepness[0])
    location[0], steepness[0] = solve_dual(float(reach_of_norm(rho)[0]), float(slack[0]), start)
    return complex(dual_point(location, steepness, slack, c)[0])
