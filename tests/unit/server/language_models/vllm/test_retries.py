import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import Outcome, RetryBudget, ServerPreference, attempts

A, B, C = (Server(f"http://{name}", 10) for name in "abc")


def run(
    outcomes: list[tuple[Server, Outcome]], *, retries: int = 1, reserve: float = 10
) -> tuple[list[ServerPreference], RetryBudget]:
    """Returns the preference of each attempt, given the outcomes of the attempts before it, and the budget."""
    budget = RetryBudget(reserve)
    plan = attempts(budget, retries)
    preferences = [next(plan)]
    for outcome in outcomes:
        try:
            preferences.append(plan.send(outcome))
        except StopIteration:
            break
    return preferences, budget


@pytest.mark.parametrize("outcome", [Outcome.ANSWERED, Outcome.REFUSED, Outcome.WITHDRAWN])
def test_what_is_settled_is_not_repeated(outcome: Outcome) -> None:
    preferences, budget = run([(A, outcome)])
    assert preferences == [ServerPreference()]
    assert budget.balance == 10


@pytest.mark.parametrize("outcome", [Outcome.BUSY, Outcome.FAILED, Outcome.TIMED_OUT])
def test_a_server_that_failed_is_not_asked_again(outcome: Outcome) -> None:
    preferences, budget = run([(A, outcome), (B, outcome)])
    assert preferences == [ServerPreference(), ServerPreference(exclude=frozenset({A}))]
    assert budget.balance == 9


def test_a_broken_connection_may_be_a_kept_one_so_the_same_server_is_the_last_choice() -> None:
    preferences, _ = run([(A, Outcome.BROKEN_OFF), (A, Outcome.BROKEN_OFF)], retries=5)
    assert preferences == [
        ServerPreference(),
        ServerPreference(avoid=frozenset({A})),
        ServerPreference(frozenset({A}), frozenset({A})),
    ]


def test_refused_connections_lead_to_every_server_and_cost_no_retry() -> None:
    preferences, budget = run([(A, Outcome.UNREACHABLE), (B, Outcome.UNREACHABLE), (C, Outcome.FAILED)], retries=1)
    assert [preference.exclude for preference in preferences] == [frozenset(), {A}, {A, B}, {A, B, C}]
    assert budget.balance == 9


def test_no_retries_where_the_operator_wants_none() -> None:
    assert len(run([(A, Outcome.FAILED)], retries=0)[0]) == 1


def test_an_outage_is_not_multiplied() -> None:
    """However many requests fail, the retries stay within the reserve and a fifth of the requests."""
    budget, sent = RetryBudget(reserve=20), 0
    for _ in range(1000):
        plan = attempts(budget, 1)
        next(plan)
        sent += 1
        try:
            plan.send((A, Outcome.FAILED))
        except StopIteration:
            continue
        sent += 1
    assert 1000 + 200 <= sent <= 1000 + 20 + 200


@given(st.integers(0, 3), st.sampled_from(list(Outcome)), st.integers(1, 5))
def test_a_plan_ends_and_asks_no_excluded_server(retries: int, outcome: Outcome, servers: int) -> None:
    """With the pool's own picks, and any outcome: each server is asked at most twice."""
    pool = Pool(Server(f"http://{index}", 10) for index in range(servers))

    def pick(preference: ServerPreference) -> Server | None:
        return pool.pick(0, preference.avoid, preference.exclude)

    plan = attempts(RetryBudget(100), retries)
    preference, asked = next(plan), list[Server]()
    while (server := pick(preference)) is not None:
        assert server not in preference.exclude
        asked.append(server)
        try:
            preference = plan.send((server, outcome))
        except StopIteration:
            break
    if outcome is Outcome.UNREACHABLE:
        assert len(asked) == len(set(asked)) == servers
    else:
        assert len(asked) <= 1 + retries
        assert all(asked.count(server) <= 2 for server in asked)
