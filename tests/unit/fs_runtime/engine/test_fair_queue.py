"""The queue's policy against simulated devices: no threads, no clock."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs_runtime.engine.fair_queue import FairQueue

TURN = 32


@dataclass(eq=False)
class Request:
    tenant: str
    remaining: int
    bucket: str = "square"
    cost: int = 1
    block: int = 10**9

    @property
    def wanted(self) -> int:
        return min(self.remaining, self.block)


def served(queue: FairQueue[Request], budget: int = TURN) -> list[tuple[Request, int]]:
    """Runs one batch."""
    batch = queue.next_batch(budget)
    for request, samples in batch:
        request.remaining -= samples
        if not request.remaining:
            queue.remove(request)
    return batch


requests = st.builds(
    Request,
    tenant=st.sampled_from("abc"),
    remaining=st.integers(1, 200),
    bucket=st.sampled_from(["square", "wide"]),
    block=st.sampled_from([3, 10**9]),
).map(lambda request: Request(request.tenant, request.remaining, request.bucket, 7 if request.bucket == "wide" else 1))


@settings(deadline=None)
@given(st.lists(requests, max_size=12), st.integers(1, 64))
def test_every_sample_is_drawn_once_in_full_batches_of_one_bucket(todo: list[Request], budget: int) -> None:
    queue: FairQueue[Request] = FairQueue(budget)
    total = sum(request.remaining for request in todo)
    for request in todo:
        queue.add(request)
    assert queue.cost == sum(request.remaining * request.cost for request in todo)
    drawn = 0
    while queue:
        before = {request: request.wanted for request in queue}
        batch = served(queue, budget)
        assert len({request.bucket for request, _ in batch}) == 1
        assert len({request for request, _ in batch}) == len(batch)
        for request, samples in batch:
            assert 1 <= samples <= before[request]
        cost = batch[0][0].cost
        tokens = cost * sum(samples for _, samples in batch)
        assert tokens <= max(budget, cost)
        left = sum(before[request] for request in before if request.bucket == batch[0][0].bucket)
        assert tokens == cost * min(left, max(1, budget // cost))  # never less than fits and is wanted
        drawn += tokens // cost
    assert drawn == total
    assert not queue.next_batch(budget)


asked = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 7])), min_size=2, max_size=8)


def shares_of(todo: list[Request], batches: int = 300) -> dict[str, list[int]]:
    """Tokens that the requests of each tenant got."""
    queue: FairQueue[Request] = FairQueue(TURN)
    for request in todo:
        queue.add(request)
    asked = {request: request.remaining for request in todo}
    for _ in range(batches):
        served(queue)
    shares: dict[str, list[int]] = {}
    for request in todo:
        shares.setdefault(request.tenant, []).append((asked[request] - request.remaining) * request.cost)
    return shares


def spread(values: list[int]) -> int:
    return max(values) - min(values)


@settings(deadline=None)
@given(asked)
def test_tenants_share_equally_whatever_the_shapes(asked: list[tuple[str, int]]) -> None:
    shares = shares_of([Request(tenant, 10**6, f"cost {cost}", cost) for tenant, cost in asked])
    assert spread([sum(of_tenant) for of_tenant in shares.values()]) <= 3 * TURN


@pytest.mark.parametrize("alone", [False, True])
@settings(deadline=None)
@given(asked)
def test_requests_of_a_tenant_share_equally(alone: bool, asked: list[tuple[str, int]]) -> None:
    """All of one shape, or no two; where some share a shape with others, they get what is left of those's batches."""
    buckets = [(f"{index}", cost) if alone else ("square", 1) for index, (_, cost) in enumerate(asked)]
    todo = [Request(tenant, 10**6, *bucket) for (tenant, _), bucket in zip(asked, buckets, strict=True)]
    for of_tenant in shares_of(todo).values():
        assert spread(of_tenant) <= 3 * TURN


@settings(max_examples=200, deadline=None)
@given(st.lists(requests, max_size=10), st.integers(0, 20), requests)
def test_a_newcomer_is_done_about_when_the_estimate_says(todo: list[Request], batches: int, late: Request) -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    for request in todo:
        queue.add(request)
    for _ in range(batches):
        served(queue)
    estimate = queue.cost_until_done(late.tenant, late.remaining * late.cost)
    others = len(queue)
    queue.add(late)
    passed = 0
    while late.remaining:
        passed += sum(samples * request.cost for request, samples in served(queue))
    assert passed <= estimate + 3 * (others + 1) * TURN


def test_a_small_request_overtakes_a_large_one_and_the_large_one_is_not_passed_over_for_ever() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    large = Request("a", 10_000)
    queue.add(large)
    for _ in range(50):
        served(queue)
    small = Request("a", 8)
    queue.add(small)
    batches = [served(queue) for _ in range(2)]
    assert any(request is small for batch in batches for request, _ in batch)
    before = large.remaining
    for _ in range(200):  # the device cannot keep up with what comes: 64 samples in for each 32 drawn
        queue.add(Request("a", 32))
        queue.add(Request("a", 32))
        served(queue)
    assert large.remaining < before - 3 * TURN


def test_a_tenant_with_many_requests_gets_no_more_than_one_with_few() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    many, few = [Request("many", 320) for _ in range(50)], Request("few", 320)
    for request in [*many, few]:
        queue.add(request)
    batches = 0
    while few.remaining:
        served(queue)
        batches += 1
    assert batches <= 2 * 320 // TURN + 1


def test_requests_of_one_turn_are_served_first_come_first() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    todo = [Request("a", TURN) for _ in range(5)]
    for request in todo:
        queue.add(request)
    assert [served(queue) for _ in todo] == [[(request, TURN)] for request in todo]


def test_a_rare_shape_has_its_turn_and_no_more() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    common, rare = [Request("a", 10**6) for _ in range(3)], Request("a", 10**6, "wide", 8)
    for request in [*common, rare]:
        queue.add(request)
    turns = [served(queue)[0][0] is rare for _ in range(40)]
    assert sum(turns) == pytest.approx(10, abs=1)
    assert any(turns[:4])


def test_a_failed_batch_costs_no_turn() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    first, second = Request("a", 100), Request("b", 100)
    queue.add(first)
    queue.add(second)
    for _ in range(5):
        batch = queue.next_batch(TURN)
        assert batch == [(first, TURN)]
        queue.refund(batch)
    queue.charge(batch)
    assert queue.next_batch(TURN) == [(second, TURN)]


def test_what_a_request_has_no_use_for_goes_to_others() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    near_its_end, other = Request("a", 500, block=5), Request("a", 500)
    queue.add(near_its_end)
    queue.add(other)
    assert queue.next_batch(TURN) == [(near_its_end, 5), (other, 27)]


def test_the_cost_of_one_sample_may_exceed_the_budget() -> None:
    queue: FairQueue[Request] = FairQueue(TURN)
    huge = Request("a", 3, "wide", 1000)
    queue.add(huge)
    assert huge in queue
    assert [served(queue) for _ in range(3)] == [[(huge, 1)]] * 3
    assert huge not in queue
    assert len(queue) == 0
