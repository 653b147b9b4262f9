import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rate_limits.window import Window, format_duration, rate_limit_headers

windows = st.integers(1, 1000).flatmap(
    lambda limit: st.builds(
        Window,
        st.just(limit),
        st.integers(0, limit),
        st.floats(0, 60),
        st.integers(0, limit),
        st.floats(60, 120),
    )
)


def later(window: Window, seconds: float) -> Window:
    """The same window after some time in which nothing was taken."""
    to_end = window.current_seconds - 60
    if seconds < to_end:
        left = max(0.0, window.previous_seconds - seconds)
        return Window(window.limit, window.previous, left, window.current, window.current_seconds - seconds)
    return Window(window.limit, window.current, max(0.0, window.current_seconds - seconds), 0, 0.0)


@given(windows, st.integers(1, 1000))
def test_a_cost_fits_when_the_time_has_come_and_not_much_before(window: Window, cost: int) -> None:
    # A real window's current minute ends when the previous one weighs nothing.
    window = Window(window.limit, window.previous, window.current_seconds - 60, window.current, window.current_seconds)
    wait = window.seconds_until(cost)
    if cost > window.limit:
        assert math.isinf(wait)
        return
    assert 0 <= wait <= 120
    assert later(window, wait + 1e-6).remaining >= cost
    if wait > 0.01:
        assert later(window, wait - 0.01).remaining < cost


@given(windows)
def test_all_units_are_back_after_the_reset(window: Window) -> None:
    assert 0 <= window.remaining <= window.limit
    assert later(window, window.reset_seconds + 1e-6).remaining == window.limit


def test_what_was_returned_is_no_more_than_the_limit() -> None:
    assert Window(10, 0, 0.0, -5, 90.0).remaining == 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.01, "0.1s"), (1, "1s"), (59.96, "1m0s"), (90, "1m30s"), (119.91, "2m0s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_headers() -> None:
    assert rate_limit_headers("samples", Window(100, 50, 30.0, 10, 90.0)) == {
        "x-ratelimit-limit-samples": "100",
        "x-ratelimit-remaining-samples": "65",
        "x-ratelimit-reset-samples": "1m30s",
    }
