"""The running models: finds them by name, and loads and unloads them when the models file changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog

from fs_runtime.encoders import CheckpointError
from fs_runtime.loading.memory import MemoryShortError, release_memory
from server.access.tenants import Tenant
from server.concurrency import run_on_daemon_thread
from server.errors import ApiError, invalid
from server.models.configured import ConfiguredModels
from server.models.file import ModelsFileError
from server.models.loading import LoadedModel, load_model
from server.models.served import ServedModel
from server.observability.metrics import Metrics
from server.settings import files
from server.settings.files import WatchedFile
from server.settings.gateway import Settings

log = structlog.get_logger("server.models")

ModelState = Literal["ready", "loading", "failed", "leaving"]
FIRST_RETRY_SECONDS = 30.0
_MAX_RETRY_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed load with these settings; it is retried after a pause that doubles each time."""

    settings: Settings
    pause: float
    retry_at: float


class ModelDirectory:
    """All models of a gateway.

    When the models file changes, the running models are adapted step by step. Models that were removed get no new
    requests, and are unloaded after their last one. New and changed models are loaded beside the running ones, and
    take over once they are warm. If a load fails, the running models stay; the failure is reported, and the load is
    retried.

    Args:
        configured: The models to serve.
        metrics: Counts loads and unloads.
        serve: Makes a loaded model ready for requests.
    """

    def __init__(
        self, configured: ConfiguredModels, metrics: Metrics, serve: Callable[[LoadedModel], ServedModel]
    ) -> None:
        self._models = configured
        self._metrics = metrics
        self._serve = serve
        self._running: dict[str, ServedModel] = {}
        self._leaving: dict[asyncio.Task[None], str] = {}
        self._failures: dict[str, _Failure] = {}
        self._waits_for_memory: str | None = None
        metrics.models_file_current.set(1)

    # --- lookup --------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[ServedModel]:
        """The models that take requests, in the order of the file."""
        order = list(self._configured)
        return sorted(self._running.values(), key=lambda model: order.index(model.name) if model.name in order else -1)

    @property
    def states(self) -> dict[str, ModelState]:
        """The state of each model. ``failed`` refers to the latest load: an earlier version may still run."""
        found: dict[str, ModelState] = dict.fromkeys(self._leaving.values(), "leaving")
        for name, settings in self._configured.items():
            if self._is_current(name, settings):
                found[name] = "ready"
            else:
                found[name] = "failed" if name in self._failures else "loading"
        return found

    def allowed(self, tenant: Tenant) -> list[ServedModel]:
        """Returns the models that a tenant may use."""
        return [model for model in self.running if tenant.may_use(model.name)]

    def find(self, name: str | None, tenant: Tenant) -> ServedModel:
        """Finds the model that a request names. No name is needed if the tenant may use only one.

        Raises:
            ApiError: 404 for a model that is not served to this tenant, 400 if a name is required, 503 for a model that
                is not loaded (yet).
        """
        allowed = {model.name: model for model in self.allowed(tenant)}
        if name is None and len(allowed) == 1:
            return next(iter(allowed.values()))
        choice = " or ".join(map(repr, allowed))
        if name is None and allowed:
            raise invalid(f"several models are served here; set model to {choice}", "model", "model_required")
        if name in allowed:
            return allowed[name]
        if name is None or (name in self._configured and tenant.may_use(name)):
            raise ApiError(
                503,
                "the model is not loaded yet; try again later",
                code="model_not_loaded",
                param="model",
                headers={"retry-after": "10"},
            )
        raise ApiError(
            404,
            f"the model {name!r} is not served here" + (f"; use {choice}" if choice else ""),
            code="model_not_found",
            param="model",
        )

    # --- loading and unloading -----------------------------------------------------------------------------------

    async def start(self, loaded: Iterable[LoadedModel] = ()) -> None:
        """Loads all models and makes them take requests.

        Args:
            loaded: Models that are loaded already.

        Raises:
            CheckpointError: A model cannot be loaded.
        """
        at_hand = {model.settings.model_name: model for model in loaded}
        try:
            for name, settings in self._configured.items():
                if name in at_hand:
                    await self._activate(at_hand.pop(name))
                else:
                    await self._activate(await run_on_daemon_thread(partial(load_model, settings)))
        except BaseException:
            await self.close()
            raise
        finally:
            for model in at_hand.values():  # no longer in the models file
                await asyncio.to_thread(model.close)

    async def watch(self) -> None:
        """Adapts the running models whenever the models file changes, until cancelled."""
        while self._models.file is not None:
            await asyncio.sleep(files.WATCH_SECONDS)
            try:
                await self._reload_file(self._models.file)
                await self._reconcile()
            except Exception:  # the watch must go on whatever fails
                log.exception("models could not be changed")

    async def close(self) -> None:
        """Closes all models, whether requests use them or not."""
        leaving = list(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        running, self._running = self._running, {}
        await asyncio.gather(*(model.close() for model in running.values()))

    async def _reload_file(self, file: WatchedFile) -> None:
        try:
            if not await self._models.has_changed():
                return
        except ModelsFileError as error:
            self._metrics.models_file_reloads.labels(outcome="refused").inc()
            self._metrics.models_file_current.set(0)
            log.error("models file refused, the former one stays in force", file=str(file.path), problem=str(error))
            return
        self._metrics.models_file_reloads.labels(outcome="loaded").inc()
        self._metrics.models_file_current.set(1)
        self._failures = {
            name: failure for name, failure in self._failures.items() if self._configured.get(name) == failure.settings
        }
        log.warning("models file loaded", models=list(self._configured))

    @property
    def _configured(self) -> dict[str, Settings]:
        return self._models.by_name

    def _is_current(self, name: str, settings: Settings) -> bool:
        model = self._running.get(name)
        return model is not None and model.settings == settings

    async def _reconcile(self) -> None:
        """Retires all models that were removed, and loads at most one, so that the file is checked again in between."""
        for name in self._running.keys() - self._configured.keys():
            self._retire(self._running.pop(name))
        for name, settings in self._configured.items():
            failure = self._failures.get(name)
            if not self._is_current(name, settings) and (failure is None or failure.retry_at <= time.monotonic()):
                await self._load(name, settings)
                return

    async def _load(self, name: str, settings: Settings) -> None:
        running = self._running.get(name)
        if running is not None and (loaded := running.reuse_with(settings)) is not None:
            await self._activate(loaded)
            self._failures.pop(name, None)
            log.warning("model has other settings", model=name)
            return
        del running
        if name != self._waits_for_memory:
            log.info("loading model", model=name)
        waited, self._waits_for_memory = self._waits_for_memory, None
        try:
            await self._activate(await run_on_daemon_thread(partial(load_model, settings)))
        except MemoryShortError as error:
            if self._leaving:  # there may be room when they are unloaded
                self._waits_for_memory = name
                if name != waited:
                    log.info("model waits for the memory of models that leave", model=name, problem=str(error))
                return
            problem = str(error)
        except CheckpointError as error:
            problem = str(error)
        except Exception as error:
            log.exception("fault while loading a model", model=name)
            problem = type(error).__name__
        else:
            self._failures.pop(name, None)
            self._metrics.model_loads.labels(outcome="loaded").inc()
            log.warning("model loaded", model=name)
            return
        # Only here, after the except blocks: an exception's traceback would keep the weights alive.
        await run_on_daemon_thread(release_memory)
        self._failed(name, settings, problem)

    def _failed(self, name: str, settings: Settings, problem: str) -> None:
        former = self._failures.get(name)
        pause = min(2 * former.pause, _MAX_RETRY_SECONDS) if former else FIRST_RETRY_SECONDS
        self._failures[name] = _Failure(settings, pause, time.monotonic() + pause)
        self._metrics.model_loads.labels(outcome="failed").inc()
        log.error(
            "model could not be loaded",
            model=name,
            problem=problem,
            former_runs_on=name in self._running,
            seconds_to_next_try=pause,
        )

    async def _activate(self, loaded: LoadedModel) -> None:
        """Routes requests to a model, in place of a former one of the same name."""
        model = self._serve(loaded)
        try:
            await model.start()
        except BaseException:
            await model.close()
            raise
        former = self._running.get(model.name)
        self._running[model.name] = model
        if former is not None:
            model.take_over_engine(former)
            self._retire(former)

    def _retire(self, model: ServedModel) -> None:
        """Unloads a model, which gets no new requests, after its last request."""
        task = asyncio.create_task(self._unload(model))
        self._leaving[task] = model.name
        task.add_done_callback(lambda task: self._leaving.pop(task))

    async def _unload(self, model: ServedModel) -> None:
        name = model.name
        try:
            await model.wait_until_unused()
        finally:
            await model.close()
        del model  # else release_memory could not free it
        await run_on_daemon_thread(release_memory)
        if name not in self._running:
            self._metrics.models.forget(name)
        self._metrics.model_unloads.inc()
        log.warning("model unloaded", model=name, newer_version_runs=name in self._running)
