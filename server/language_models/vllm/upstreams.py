"""Sends requests to the pool of vLLM servers, with queueing, health checks and retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx

from server.concurrency import TimeoutGroup
from server.errors import ApiError
from server.language_models.vllm import errors as upstream_errors
from server.language_models.vllm.compatibility import CompatibilityCheck
from server.language_models.vllm.exchange import Exchange, ExchangeError, PhaseLimits
from server.language_models.vllm.health import HealthChecks
from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import Outcome, RetryBudget, ServerPreference, attempts
from server.language_models.vllm.slots import NoServerError, NoSlotError, ServerSlots
from server.observability.tracing import forward_trace
from server.observability.upstream_metrics import ModelUpstreamMetrics, PoolReading, ServerReading
from server.settings.gateway import Settings

# vLLM (uvicorn) closes connections after 5 s without a request. We close them earlier, so that no request is sent on
# one that is just being closed.
_KEEP_IDLE = 3.0


class Upstreams:
    """Sends each request to the least busy server, and to another one if it fails before the first byte of its answer.

    Args:
        settings: Addresses, key and limits.
        metrics: Metrics of the servers.
        compatibility: What the servers must support; None skips the check.
        transport: Replaces the network in tests.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: ModelUpstreamMetrics,
        compatibility: CompatibilityCheck | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {}
        if settings.vllm_api_key is not None:
            headers["authorization"] = f"Bearer {settings.vllm_api_key.get_secret_value()}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=settings.vllm_connect_timeout),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_IDLE),
            transport=transport,
            trust_env=False,
            event_hooks={"request": [forward_trace]},
        )
        self._limits = PhaseLimits(
            settings.vllm_first_token_timeout, settings.vllm_next_token_timeout, settings.vllm_total_timeout
        )
        self._pool = Pool(Server(url, settings.vllm_max_in_flight) for url in settings.vllm_addresses)
        self._slots = ServerSlots(self._pool, settings.max_waiting, settings.vllm_max_wait)
        self._health = HealthChecks(
            self._client,
            self._pool,
            interval=settings.vllm_health_interval,
            timeout=settings.vllm_health_timeout,
            compatibility=compatibility,
            changed=self._health_changed,
        )
        # The reserve is enough to retry everything that one server has in flight when it is lost.
        self._budget = RetryBudget(reserve=settings.vllm_max_in_flight)
        self._retries = settings.vllm_retries
        self._timeouts = {server: TimeoutGroup() for server in self._pool.servers}
        self._models: dict[Server, str] = {}
        self._fixed_model = settings.vllm_model
        self._checking: asyncio.Task[None] | None = None
        self._metrics = metrics
        metrics.watch(self._reading)

    async def start(self) -> None:
        """Runs the first health checks, and starts the periodic ones."""
        await self._health.check_now()
        self._checking = asyncio.create_task(self._health.run())

    async def close(self) -> None:
        """Ends the health checks and closes the connections."""
        if self._checking is not None:
            self._checking.cancel()
        self._health.cancel()
        await self._client.aclose()
        self._metrics.retire([server.name for server in self._pool.servers])

    async def ready(self) -> bool:
        """Whether any server is healthy; if none is known to be, it checks them now."""
        if not self._pool.healthy:
            await self._health.check_now()
        return self._pool.healthy

    async def admit(self) -> None:
        """Rejects a request early, before anything is spent on it, if no server could take it.

        Raises:
            ApiError: 503 or 429.
        """
        if not await self.ready():
            raise self._unavailable()
        if self._slots.full:
            self._metrics.count_shed("queue_full")
            raise upstream_errors.overloaded()

    async def open(self, encode: Callable[[str], bytes], request_id: str, *, streamed: bool) -> Exchange:
        """Sends a request, with retries, until an answer begins. Always pass the exchange to :meth:`end` afterwards.

        Args:
            encode: Makes the body, given the model's name at the server; called on another thread.
            request_id: Forwarded to vLLM.
            streamed: Whether the body asks for a stream.

        Raises:
            ApiError: No server answered, or one refused the request.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.total
        plan = attempts(self._budget, self._retries)
        preference = next(plan)
        failure: ExchangeError | None = None
        bodies: dict[str, bytes] = {}
        while True:
            server = await self._acquire(preference, failure)
            if failure is not None:
                self._metrics.count_retry(failure.outcome)
            exchange = Exchange(self._client, server, self._limits, deadline, self._timeouts[server])
            try:
                model = await self._model_of(exchange)
                if model not in bodies:
                    bodies[model] = await asyncio.to_thread(encode, model)
                await exchange.begin(bodies[model], request_id, streamed=streamed)
            except ExchangeError as error:
                failure = error
                await self.end(exchange, error.outcome)
                try:
                    preference = plan.send((server, error.outcome))
                except StopIteration:
                    raise error.api_error from error
                if asyncio.get_running_loop().time() >= deadline:
                    raise error.api_error from error
            except BaseException:
                await self.end(exchange, Outcome.WITHDRAWN)
                raise
            else:
                server.breaker.record_success(time.monotonic())
                return exchange

    async def end(self, exchange: Exchange, outcome: Outcome) -> None:
        """Closes the exchange, releases its slot and records its outcome."""
        server = exchange.server
        now = time.monotonic()
        try:
            await exchange.close()
        finally:
            if outcome.is_server_fault:
                server.breaker.record_failure(now)
                self._health.check_soon()
            elif outcome in (Outcome.ANSWERED, Outcome.REFUSED):
                server.breaker.record_success(now)
            else:
                server.breaker.record_cancellation()
            if outcome is Outcome.UNREACHABLE and server.healthy:
                server.record_health(False)
                self._health.report(server)
            self._metrics.observe(server.name, outcome, now - exchange.started)
            self._slots.release(server)

    async def _acquire(self, preference: ServerPreference, failure: ExchangeError | None) -> Server:
        try:
            try:
                return await self._slots.acquire(preference)
            except NoServerError:
                if failure is not None:
                    raise failure.api_error from failure
                await self._health.check_now()
                return await self._slots.acquire(preference)
        except NoServerError:
            raise self._unavailable() from None
        except NoSlotError as error:
            self._metrics.count_shed(error.reason)
            raise (upstream_errors.overloaded() if self._pool.healthy else self._unavailable()) from None

    def _unavailable(self) -> ApiError:
        return upstream_errors.incompatible() if self._pool.incompatible else upstream_errors.unavailable()

    async def _model_of(self, exchange: Exchange) -> str:
        """Returns the model's name at the server: the configured one, or the first that it lists (asked once)."""
        if self._fixed_model is not None:
            return self._fixed_model
        server = exchange.server
        if server not in self._models:
            self._models[server] = await exchange.served_model()
        return self._models[server]

    def _reading(self) -> PoolReading:
        """Returns the state of the pool for a scrape of the metrics."""
        now = time.monotonic()
        servers = (
            ServerReading(server.name, server.in_flight, server.healthy, server.breaker.state(now))
            for server in self._pool.servers
        )
        return PoolReading(tuple(servers), self._slots.waiting, self._budget.balance)

    def _health_changed(self, server: Server) -> None:
        """Assigns free slots, or moves the requests that wait at a lost server to another one."""
        if server.healthy:
            self._slots.assign_free_slots()
        else:
            self._models.pop(server, None)  # it may come back with another model
        if self._pool.healthy:
            for lost in self._pool.servers:
                if not lost.healthy:
                    self._timeouts[lost].expire()
