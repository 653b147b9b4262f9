"""Bad arguments are refused by name; floats and arrays are treated alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs_runtime.certificate import (
    NormConfidenceSequence,
    certified_radius,
    chi_squared_similarity,
    fcsb,
    fcsb_radius,
    score_from_norm,
    tight_similarity,
)

nan, inf = float("nan"), float("inf")

BAD = {
    "norm": [nan, -0.1, 1.1, inf],
    "score": [nan, -0.1, 1.1, inf],
    "radius": [nan, -1e-9, inf],
    "sigma": [nan, 0.0, -0.25, inf],
    "similarity": [nan, 0.0, -0.5, 1.1],
}
GOOD = {"norm": 0.9, "score": 0.95, "radius": 0.1, "sigma": 0.25, "similarity": 0.5}
FUNCTIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    score_from_norm: ("norm",),
    fcsb: ("score", "radius", "sigma"),
    fcsb_radius: ("score", "sigma", "similarity"),
    tight_similarity: ("norm", "radius", "sigma"),
    chi_squared_similarity: ("norm", "radius", "sigma"),
    certified_radius: ("norm", "sigma", "similarity"),
}
CASES = [(function, name, value) for function, names in FUNCTIONS.items() for name in names for value in BAD[name]]


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_a_bad_argument_is_refused_by_name(function: Callable[..., Any], name: str, value: float) -> None:
    arguments = {each: GOOD[each] for each in FUNCTIONS[function]}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        function(**arguments | {name: value})
    with pytest.raises(ValueError, match=f"^{name} must be "):  # one bad value among good ones
        function(**arguments | {name: np.array([GOOD[name], value])})


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 1.5, nan])
def test_a_bad_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"^confidence must "):
        NormConfidenceSequence(confidence)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_floats_in_floats_out_arrays_in_arrays_out(function: Callable[..., Any]) -> None:
    names = FUNCTIONS[function]
    assert type(function(*(GOOD[name] for name in names))) is float
    assert type(function(*(np.float64(GOOD[name]) for name in names))) is float
    column = function(np.full((3, 1), GOOD[names[0]]), *(np.full(4, GOOD[name]) for name in names[1:]))
    assert column.shape == ((3, 4) if len(names) > 1 else (3, 1))
    assert np.all(column == function(*(GOOD[name] for name in names)))
    assert function(np.zeros((0, 2)) + GOOD[names[0]], *(GOOD[name] for name in names[1:])).shape == (0, 2)


norms = st.floats(0, 1)
ratios = st.floats(0, 12)


@settings(deadline=None)
@given(st.lists(st.tuples(norms, ratios), min_size=1, max_size=70), st.floats(0.01, 10))
def test_arrays_equal_scalars(pairs: list[tuple[float, float]], sigma: float) -> None:
    norm, ratio = np.array(pairs).T
    for function, first in ((tight_similarity, norm), (chi_squared_similarity, norm), (fcsb, score_from_norm(norm))):
        values = function(first, ratio * sigma, sigma)
        assert values.tolist() == [
            function(float(a), float(r * sigma), sigma) for a, r in zip(first, ratio, strict=True)
        ]
