import pytest

from fs_runtime.engine.capacity import BatchBudget, Rate


def test_the_budget_is_halved_where_memory_runs_out_and_regained_slowly() -> None:
    budget = BatchBudget(32)
    budget.out_of_memory(32)
    budget.out_of_memory(16)
    assert budget.current == 8
    for _ in range(63):
        budget.fitted(8)
    assert budget.current == 8
    budget.fitted(3)  # says nothing about larger ones
    assert budget.current == 8
    budget.fitted(8)
    assert budget.current == 12
    for _ in range(1000):
        budget.fitted(budget.current)
    assert budget.current == 32


def test_a_device_that_is_too_small_for_good_is_asked_ever_less_often() -> None:
    budget, failures = BatchBudget(32), 0
    for _ in range(20_000):
        if budget.current > 16:
            budget.out_of_memory(budget.current)
            failures += 1
        else:
            budget.fitted(budget.current)
    assert failures < 12


def test_no_budget_is_below_one_token() -> None:
    budget = BatchBudget(2)
    for _ in range(5):
        budget.out_of_memory(1)
    assert budget.current == 1


def test_the_rate_follows_the_latest_batches_by_their_size() -> None:
    rate = Rate()
    assert rate.seconds(10) is None
    for _ in range(50):
        rate.measured(100, 1.0)
    rate.measured(1, 1e-3)
    assert rate.seconds(100) == pytest.approx(1.0, rel=0.01)
    for _ in range(50):
        rate.measured(100, 4.0)
    assert rate.seconds(50) == pytest.approx(2.0, rel=0.02)
