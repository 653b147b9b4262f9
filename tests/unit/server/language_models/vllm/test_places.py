import asyncio

import pytest

from server.language_models.vllm.places import NoPlaceError, NoServerError, Places
from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import Wanted


def places_of(*limits: int, waiting: int = 10, wait: float = 5.0) -> tuple[Places, Pool]:
    pool = Pool(Server(f"http://{index}", limit) for index, limit in enumerate(limits))
    return Places(pool, waiting, wait), pool


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_came_first_is_served_first_and_nobody_overtakes() -> None:
    places, _ = places_of(1)
    held = await places.take(Wanted())
    order: list[int] = []

    async def take(number: int) -> None:
        server = await places.take(Wanted())
        order.append(number)
        await asyncio.sleep(0)
        places.give_back(server)

    tasks = [asyncio.create_task(take(number)) for number in range(4)]
    await settled()
    assert places.waiting == 4
    places.give_back(held)
    tasks.append(asyncio.create_task(take(4)))  # comes while a place is being handed over
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_the_queue_is_bounded_in_number_and_in_time() -> None:
    places, pool = places_of(1, waiting=1, wait=0.02)
    await places.take(Wanted())
    assert not places.full
    waiting = asyncio.create_task(places.take(Wanted()))
    await settled()
    assert places.full
    with pytest.raises(NoPlaceError, match="queue_full"):
        await places.take(Wanted())
    with pytest.raises(NoPlaceError, match="no_place"):
        await waiting
    assert places.waiting == 0
    assert pool.servers[0].in_flight == 1


async def test_whoever_leaves_the_queue_leaves_no_place_taken() -> None:
    places, pool = places_of(1)
    held = await places.take(Wanted())
    waiting = asyncio.create_task(places.take(Wanted()))
    await settled()
    places.give_back(held)  # hands the place over …
    waiting.cancel()  # … to one who leaves in that moment
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.servers[0].in_flight == 0
    assert await places.take(Wanted()) is pool.servers[0]


async def test_one_that_cannot_go_to_the_free_server_holds_nobody_up() -> None:
    places, pool = places_of(1, 1)
    first, second = pool.servers
    held = {await places.take(Wanted()) for _ in range(2)}
    assert held == {first, second}
    picky = asyncio.create_task(places.take(Wanted(exclude=frozenset({second}))))
    easy = asyncio.create_task(places.take(Wanted()))
    await settled()
    places.give_back(second)
    assert await easy is second
    places.give_back(first)
    assert await picky is first


async def test_without_a_healthy_server_there_is_nothing_to_wait_for() -> None:
    places, pool = places_of(1)
    pool.servers[0].checked(False)
    with pytest.raises(NoServerError):
        await places.take(Wanted())


async def test_a_server_that_comes_back_serves_who_waits() -> None:
    places, pool = places_of(1, 1)
    pool.servers[0].checked(False)
    await places.take(Wanted())
    waiting = asyncio.create_task(places.take(Wanted()))
    await settled()
    pool.servers[0].checked(True)
    places.serve_waiting()
    assert await waiting is pool.servers[0]
