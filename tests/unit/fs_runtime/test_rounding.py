"""The text of a bound never claims more than the bound."""

from fractions import Fraction

import numpy as np
import pytest

from fs_runtime.rounding import alpha_of, at_least, at_most, confidence_of, percent


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


@pytest.mark.parametrize("shares", [1, 2, 4, 576])
def test_shares_of_alpha_never_add_up_to_more_than_it(shares: int) -> None:
    rounded_up = 0
    for confidence in [*np.random.default_rng(1).random(300).tolist(), 0.9, 0.95, 0.999, 1 - 1e-6, 1 - 1e-9]:
        share = np.nextafter(alpha_of(confidence) / shares, 0)
        left_out = 1 - Fraction(confidence_of(share))
        assert left_out * shares <= 1 - Fraction(confidence)
        rounded_up += 1 - share < confidence_of(share)
    assert rounded_up > 10  # the nearest double would not do
