from hypothesis import given
from hypothesis import strategies as st

from server.language_models.vllm.breaker import CircuitBreaker


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(threshold=3, pause=1.0, max_pause=5.0)
    for _ in range(3):
        breaker.record_failure(now)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    breaker = CircuitBreaker(threshold=3)
    for _ in range(2):
        breaker.record_failure(0)
    breaker.record_success(0)
    for _ in range(2):
        breaker.record_failure(0)
    assert breaker.state(0) == "closed"
    breaker.record_failure(0)
    assert breaker.state(0) == "open"
    assert not breaker.allows(0.9)


def test_after_the_pause_one_trial_decides() -> None:
    breaker = opened()
    assert breaker.state(1.0) == "half_open"
    assert breaker.allows(1.0)
    breaker.record_start(1.0)
    assert not breaker.allows(1.1)
    breaker.record_success(1.2)
    assert breaker.state(1.2) == "closed"
    assert breaker.allows(1.2)


def test_failed_trials_double_the_pause_up_to_a_limit_and_a_success_resets_it() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(5):
        pause = next(step / 4 for step in range(100) if breaker.allows(now + step / 4))
        pauses.append(pause)
        now += pause
        breaker.record_start(now)
        breaker.record_failure(now)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    breaker.record_start(now + 5)
    breaker.record_success(now + 5)
    for _ in range(3):
        breaker.record_failure(now + 5)
    assert not breaker.allows(now + 5.9)
    assert breaker.allows(now + 6)


def test_a_trial_whose_client_left_makes_way_for_the_next() -> None:
    breaker = opened()
    breaker.record_start(1.0)
    breaker.record_cancellation()
    assert breaker.state(1.1) == "half_open"
    assert breaker.allows(1.1)


def test_late_reports_change_nothing_while_it_is_open() -> None:
    breaker = opened()
    breaker.record_failure(0.9)
    breaker.record_success(0.9)
    assert breaker.state(0.99) == "open"
    assert breaker.allows(1.0)


events = st.lists(
    st.tuples(st.sampled_from(["start", "success", "failure", "cancellation"]), st.floats(0, 10)), max_size=60
)


@given(events)
def test_whatever_happens_it_lets_requests_through_again(history: list[tuple[str, float]]) -> None:
    breaker, now = CircuitBreaker(threshold=2, pause=1.0, max_pause=8.0), 0.0
    for event, pause in history:
        now += pause
        if event == "start" and not breaker.allows(now):
            continue
        if event == "cancellation":
            breaker.record_cancellation()
        else:
            getattr(breaker, f"record_{event}")(now)
    breaker.record_cancellation()  # every request ends at some time
    assert breaker.allows(now + 8.0)
