"""Asks every server of the pool again and again whether it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import structlog

from server.language_models.vllm.compatibility import CompatibilityCheck
from server.language_models.vllm.pool import Pool, Server

log = structlog.get_logger("server.upstream")

_MISSES_ALLOWED = 1  # a busy server may be late once


class HealthChecks:
    """Keeps ``healthy`` of each server true to what its ``/health`` says.

    A server that cannot be reached, or says that it is not well, is unhealthy at once; one that is late, at the second
    time in a row. The first good answer makes it healthy again, if it fits the model: a server that would refuse the
    model's embeddings, or end at them, counts as unhealthy.

    Args:
        client: Sends the checks.
        pool: The servers.
        interval: Seconds from the end of one round to the next.
        timeout: Seconds that a server has to answer.
        compatibility: What a server must take; None asks nothing.
        changed: Called after a server has become healthy or unhealthy.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        pool: Pool,
        *,
        interval: float,
        timeout: float,
        compatibility: CompatibilityCheck | None,
        changed: Callable[[Server], None],
    ) -> None:
        self._client = client
        self._pool = pool
        self._interval = interval
        self._timeout = timeout
        self._compatibility = compatibility
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
            server.record_health(False, misses_allowed=_MISSES_ALLOWED)
        except httpx.HTTPError:
            server.record_health(False)
        else:
            if response.status_code != httpx.codes.OK:
                server.record_health(False)
            elif not (server.healthy and server.compatibility_checked):  # it is new, or may have come back as another
                await self._examine(server)
            else:
                server.record_health(True)
        if server.healthy is not before:
            self.report(server)

    async def _examine(self, server: Server) -> None:
        try:
            fault = await self._compatibility.find_fault(self._client, server) if self._compatibility else None
        except httpx.HTTPError:
            server.record_health(False)
            return
        server.compatibility_checked = True
        if fault is not None and fault != server.fault:
            log.error("language model server does not fit the model", server=server.name, fault=fault)
        server.record_health(fault is None, fault=fault)

    def report(self, server: Server) -> None:
        """Makes a change of ``healthy`` known."""
        if server.healthy:
            log.info("language model server is healthy", server=server.name)
        else:
            log.warning("language model server is unhealthy", server=server.name)
        self._changed(server)
