"""Asks every server of the pool again and again whether it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import structlog

from server.language_models.pool import Pool, Server

log = structlog.get_logger("server.upstream")

_MISSES_ALLOWED = 1  # a busy server may be late once


class HealthChecks:
    """Keeps ``healthy`` of each server true to what its ``/health`` says.

    A server that cannot be reached, or says that it is not well, is unhealthy at once; one that is late, at the second
    time in a row. The first good answer makes it healthy again.

    Args:
        client: Sends the checks.
        pool: The servers.
        interval: Seconds from the end of one round to the next.
        timeout: Seconds that a server has to answer.
        changed: Called after a server has become healthy or unhealthy.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        pool: Pool,
        *,
        interval: float,
        timeout: float,
        changed: Callable[[Server], None],
    ) -> None:
        self._client = client
        self._pool = pool
        self._interval = interval
        self._timeout = timeout
        self._changed = changed
        self._round: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()

    async def run(self) -> None:
        """Checks until it is cancelled."""
        while True:
            self._soon.clear()
            try:
                await self.check_now()
            except Exception:  # whatever it is, the servers must be checked again
                log.exception("health checks failed")
            try:
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()
            except TimeoutError:
                pass

    def cancel(self) -> None:
        """Ends the round under way."""
        if self._round is not None:
            self._round.cancel()

    def check_soon(self) -> None:
        """Asks for a round at once, because something looks wrong."""
        self._soon.set()

    async def check_now(self) -> None:
        """Waits for a round of checks; all who ask at the same time share one."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._check_all())
        await asyncio.shield(self._round)

    async def _check_all(self) -> None:
        await asyncio.gather(*map(self._check, self._pool.servers))

    async def _check(self, server: Server) -> None:
        before = server.healthy
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.get(f"{server.url}/health")
        except (TimeoutError, httpx.TimeoutException):
            server.checked(False, misses_allowed=_MISSES_ALLOWED)
        except httpx.HTTPError:
            server.checked(False)
        else:
            server.checked(response.status_code == httpx.codes.OK)
        if server.healthy is not before:
            self.report(server)

    def report(self, server: Server) -> None:
        """Makes a change of ``healthy`` known."""
        if server.healthy:
            log.info("language model server is healthy", server=server.name)
        else:
            log.warning("language model server is unhealthy", server=server.name)
        self._changed(server)
