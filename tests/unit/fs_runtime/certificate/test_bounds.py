"""The table of bounds and what is made of it."""

from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_runtime.certificate import Spread
from fs_runtime.certificate.bounds import BOUNDS, Bounds, Similarity, bounds_at

NAMES = {kind.name for kind in BOUNDS}


@pytest.mark.parametrize("made_of_it", [Similarity, Bounds])
def test_every_bound_has_its_field(made_of_it: type) -> None:
    assert {field.name for field in fields(made_of_it)} == NAMES | {"best"}


@pytest.mark.parametrize(("norm", "sigma"), [(None, 0.25), (0.9, 0.0)])
def test_without_norm_or_noise_there_is_none(norm: float | None, sigma: float) -> None:
    assert set(asdict(Similarity.at(norm, None, 0.1, sigma)).values()) == {None}


@given(
    norm=st.floats(0, 1), slack=st.tuples(st.floats(1, 3), st.floats(1, 3)), ratio=st.floats(0, 4), known=st.booleans()
)
def test_the_first_is_the_largest(norm: float, slack: tuple[float, float], ratio: float, known: bool) -> None:
    """Of spreads that there can be: all variance together is 1 - rho squared."""
    variance = 1 - norm**2
    spread = Spread(min(variance * slack[0], 1.0), min(variance * slack[1], 4.0))
    found = bounds_at(norm, spread if known else None, np.array([0.25 * ratio]), 0.25)
    values = [getattr(found, kind.name) for kind in BOUNDS]
    there = [value[0] for value in values if value is not None]
    assert len(there) == len(BOUNDS) - (not known)
    assert found.best == [there[0]]
    assert there[0] >= max(there) - 1e-7
    assert found.tight[0] >= max(found.chi_squared[0], found.fcsb[0]) - 1e-7  # of what follows from rho alone
