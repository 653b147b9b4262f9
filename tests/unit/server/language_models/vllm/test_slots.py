import asyncio

import pytest

from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import ServerPreference
from server.language_models.vllm.slots import NoServerError, NoSlotError, ServerSlots


def slots_of(*limits: int, waiting: int = 10, wait: float = 5.0) -> tuple[ServerSlots, Pool]:
    pool = Pool(Server(f"http://{index}", limit) for index, limit in enumerate(limits))
    return ServerSlots(pool, waiting, wait), pool


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_came_first_is_served_first_and_nobody_overtakes() -> None:
    slots, _ = slots_of(1)
    held = await slots.acquire(ServerPreference())
    order: list[int] = []

    async def use_slot(number: int) -> None:
        server = await slots.acquire(ServerPreference())
        order.append(number)
        await asyncio.sleep(0)
        slots.release(server)

    tasks = [asyncio.create_task(use_slot(number)) for number in range(4)]
    await settled()
    assert slots.waiting == 4
    slots.release(held)
    tasks.append(asyncio.create_task(use_slot(4)))  # comes while a slot is being handed over
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_the_queue_is_bounded_in_number_and_in_time() -> None:
    slots, pool = slots_of(1, waiting=1, wait=0.02)
    await slots.acquire(ServerPreference())
    assert not slots.full
    waiting = asyncio.create_task(slots.acquire(ServerPreference()))
    await settled()
    assert slots.full
    with pytest.raises(NoSlotError, match="queue_full"):
        await slots.acquire(ServerPreference())
    with pytest.raises(NoSlotError, match="no_place"):
        await waiting
    assert slots.waiting == 0
    assert pool.servers[0].in_flight == 1


async def test_whoever_leaves_the_queue_leaves_no_slot_taken() -> None:
    slots, pool = slots_of(1)
    held = await slots.acquire(ServerPreference())
    waiting = asyncio.create_task(slots.acquire(ServerPreference()))
    await settled()
    slots.release(held)  # hands the slot over …
    waiting.cancel()  # … to one who leaves in that moment
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.servers[0].in_flight == 0
    assert await slots.acquire(ServerPreference()) is pool.servers[0]


async def test_one_that_cannot_go_to_the_free_server_holds_nobody_up() -> None:
    slots, pool = slots_of(1, 1)
    first, second = pool.servers
    held = {await slots.acquire(ServerPreference()) for _ in range(2)}
    assert held == {first, second}
    picky = asyncio.create_task(slots.acquire(ServerPreference(exclude=frozenset({second}))))
    easy = asyncio.create_task(slots.acquire(ServerPreference()))
    await settled()
    slots.release(second)
    assert await easy is second
    slots.release(first)
    assert await picky is first


async def test_without_a_healthy_server_there_is_nothing_to_wait_for() -> None:
    slots, pool = slots_of(1)
    pool.servers[0].record_health(False)
    with pytest.raises(NoServerError):
        await slots.acquire(ServerPreference())


async def test_a_server_that_comes_back_serves_who_waits() -> None:
    slots, pool = slots_of(1, 1)
    pool.servers[0].record_health(False)
    await slots.acquire(ServerPreference())
    waiting = asyncio.create_task(slots.acquire(ServerPreference()))
    await settled()
    pool.servers[0].record_health(True)
    slots.assign_free_slots()
    assert await waiting is pool.servers[0]
