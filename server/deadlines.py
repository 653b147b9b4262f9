"""Time limits that can also be brought to their end together, before their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadlines:
    """Waits that are under way, to be ended at once when what they wait for will not come.

    All times are those of the running loop, whose clock is monotonic.
    """

    def __init__(self) -> None:
        self._under_way: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def until(self, when: float | None = None) -> AsyncIterator[None]:
        """Limits the block; put no ``yield`` to others into it.

        Raises:
            TimeoutError: The time is over, or :meth:`expire` was called.
        """
        limit = asyncio.timeout_at(when)
        try:
            async with limit:
                self._under_way.add(limit)
                yield
        finally:
            self._under_way.discard(limit)

    def expire(self) -> None:
        """Ends all waits that are under way."""
        now = asyncio.get_running_loop().time()
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(now)
