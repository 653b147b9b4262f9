"""The text of a bound never claims more than the bound."""

import numpy as np
import pytest

from fs_runtime.rounding import at_least, at_most, percent


@pytest.mark.parametrize("digits", [0, 2, 4, 6])
def test_rounding_is_towards_the_safe_side_and_by_less_than_the_last_digit(digits: int) -> None:
    for value in [*np.random.default_rng(0).random(500).tolist(), 0.0, 1.0, 0.5, 0.99999999, 1e-9, 17.25]:
        low, high = float(at_least(value, digits)), float(at_most(value, digits))
        assert value - 10.0**-digits < low <= value <= high < value + 10.0**-digits


def test_what_has_few_digits_stays_as_it_is() -> None:
    assert (at_least(0.3), at_most(0.3), at_least(0.999, 3), at_least(1.0, 6)) == (
        "0.3000",
        "0.3000",
        "0.999",
        "1.000000",
    )
    assert at_least(0.9999999, 6) == "0.999999"


def test_a_confidence_keeps_its_alpha() -> None:
    assert [percent(value) for value in (0.999, 0.9996, 0.998, 1 - 2 * (1 - 0.999), 1 - 1e-7)] == [
        "99.9%",
        "99.96%",
        "99.8%",
        "99.8%",
        "99.99999%",
    ]
