"""Periodic health checks of every server in the pool."""

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
    """Updates ``healthy`` of each server from its ``/health`` endpoint.

    A server that cannot be reached or reports an error is unhealthy at once; one that times out, after two timeouts
    in a row. The first good answer makes it healthy again if it is compatible with the model: a server that would
    reject the model's embeddings, or crash on them, counts as unhealthy.

    Args:
        client: HTTP client.
        pool: The servers.
        interval: Seconds from the end of one round to the next.
        timeout: Seconds that a server has to answer.
        compatibility: Run when a server is new or was unhealthy; None skips it.
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
        """Runs rounds of checks until it is cancelled."""
        while True:
            self._soon.clear()
            try:
                await self.check_now()
            except Exception:  # checking must go on whatever fails
                log.exception("health checks failed")
            try:
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()
            except TimeoutError:
                pass

    def cancel(self) -> None:
        """Cancels the running round."""
        if self._round is not None:
            self._round.cancel()

    def check_soon(self) -> None:
        """Starts the next round at once, because a request has failed."""
        self._soon.set()

    async def check_now(self) -> None:
        """Waits for a round of checks; concurrent callers share one round."""
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
            elif not (server.healthy and server.compatibility_checked):  # new, or maybe restarted
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
        """Logs a change of ``healthy`` and calls ``changed``."""
        if server.healthy:
            log.info("language model server is healthy", server=server.name)
        else:
            log.warning("language model server is unhealthy", server=server.name)
        self._changed(server)
