"""Places that tenants take in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class FairGate:
    """Lets only so many work at once. Whoever waits is let in tenant by tenant, and first come, first served within.

    So a tenant with one image waits for one of another tenant's, however many of those wait. For one event loop.

    Args:
        places: How many may work at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def enter(self, tenant: str) -> None:
        """Waits for a place and takes it; whoever took one calls :meth:`leave` once."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)

    async def _wait(self, tenant: str) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # it was called and left in the same turn of the loop
                self.leave()
            raise

    def leave(self) -> None:
        """Gives a place up, to the first request still waiting of the tenant whose turn it is."""
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
