"""Who is let in, and when."""

import asyncio

from fs_runtime.engine.fair_gate import FairGate


class Visitors:
    """Come to a gate, and stay until they are told to go."""

    def __init__(self, places: int) -> None:
        self._gate = FairGate(places)
        self._go: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.inside: list[str] = []

    async def come(self, *names: str) -> None:
        for name in names:
            self._go[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._visit(name))
            await self._settle()

    async def go(self, name: str) -> None:
        self._go[name].set()
        await self._settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await self._settle()

    async def _visit(self, name: str) -> None:
        await self._gate.enter(name[0])
        self.inside.append(name)
        try:
            await self._go[name].wait()
        finally:
            self.inside.remove(name)
            self._gate.leave()

    async def _settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_tenants_take_turns() -> None:
    visitors = Visitors(2)
    await visitors.come("a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2")
    order = []
    while visitors.inside:
        assert len(visitors.inside) <= 2
        order.append(visitors.inside[0])
        await visitors.go(visitors.inside[0])
    assert order == ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "a5"]


async def test_who_leaves_the_queue_keeps_nobody_out() -> None:
    visitors = Visitors(1)
    await visitors.come("a1", "a2", "b1", "a3")
    await visitors.cancel("a2", "b1")
    await visitors.go("a1")
    assert visitors.inside == ["a3"]
    await visitors.go("a3")
    await visitors.come("b2")
    assert visitors.inside == ["b2"]


async def test_a_place_is_given_back_by_who_is_cancelled_inside_or_as_he_is_called() -> None:
    visitors = Visitors(1)
    await visitors.come("a1", "b1", "c1")
    await visitors.cancel("a1", "b1")  # b1 is called by a1's end and cancelled before it runs
    assert visitors.inside == ["c1"]
    await visitors.cancel("c1")
    await visitors.come("d1")
    assert visitors.inside == ["d1"]
