"""Places that tenants take in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Place:
    """A place that somebody holds."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Lets the next one in; a second call does nothing."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class FairGate:
    """Lets only so many work at once. Whoever waits is let in tenant by tenant, and first come, first served within.

    So a tenant with one image waits for one of another tenant's, however many of those wait. For one event loop.

    Args:
        places: How many may work at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[Place]:
        """Waits for a place and holds it, to the end of the block unless it is left sooner."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)
        place = Place(self._give_on)
        try:
            yield place
        finally:
            place.leave()

    async def _wait(self, tenant: str) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # it was called and left in the same turn of the loop
                self._give_on()
            raise

    def _give_on(self) -> None:
        """To the first who still waits of the tenant whose turn it is."""
        while self._waiting:
            tenant, queue = self._waiting.popitem(last=False)
            while queue:
                called = queue.popleft()
                if not called.done():
                    if queue:
                        self._waiting[tenant] = queue  # behind all other tenants
                    called.set_result(None)
                    return
        self._free += 1
