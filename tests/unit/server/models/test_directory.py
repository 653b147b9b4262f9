"""The steps of the model directory, with real models in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fs_runtime.loading import memory
from server.access.tenants import Tenant
from server.audit.log import AuditLog
from server.errors import ApiError
from server.images.reader import ImageReader
from server.models import directory
from server.models.configured import ConfiguredModels
from server.models.directory import ModelDirectory
from server.models.served import ServedModel, SharedParts
from server.observability.metrics import Metrics
from server.rate_limits.limiter import RateLimiter
from server.settings import files as watched_file
from server.settings.gateway import Settings
from tests.integration.models_file import write_models
from tests.integration.tiny_llava import build_tiny_llava

ANYONE = Tenant("default", Settings())


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(directory, "FIRST_RETRY_SECONDS", 0.05)


@asynccontextmanager
async def watching(file: Path) -> AsyncIterator[ModelDirectory]:
    """A directory over a file, as the application runs it."""
    settings, metrics = Settings(models_file=file, language_model="none", batch_size=4), Metrics()
    limiter, audit = RateLimiter(None, metrics), AuditLog(settings, metrics)
    shared = SharedParts(ImageReader(settings, metrics), limiter, audit, None, metrics)
    models = ModelDirectory(ConfiguredModels(settings), metrics, lambda loaded: ServedModel(loaded, shared))
    await models.start()
    watch = asyncio.create_task(models.watch())
    try:
        yield models
    finally:
        watch.cancel()
        await models.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 (states have no events)
            await asyncio.sleep(0.01)


async def test_a_model_waits_for_the_memory_of_one_that_leaves(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_models(tmp_path / "models.yaml", old={"model": tiny_llava})
    async with watching(file) as models:
        monkeypatch.setattr(memory, "free_memory", lambda device: 2**40 if "old" not in models.states else 1000)
        with models.find("old", ANYONE).in_use():
            write_models(file, new={"model": tiny_llava})
            await until(lambda: models.states == {"old": "leaving", "new": "loading"})
            await asyncio.sleep(0.5)
            assert models.states == {"old": "leaving", "new": "loading"}
            with pytest.raises(ApiError) as refused:
                models.find("new", ANYONE)
            assert (refused.value.status, refused.value.code) == (503, "model_not_loaded")
        await until(lambda: models.states == {"new": "ready"})
        assert models.find(None, ANYONE).name == "new"


async def test_other_settings_take_effect_without_loading(tiny_llava: Path, tmp_path: Path) -> None:
    file = write_models(tmp_path / "models.yaml", m={"model": tiny_llava})
    async with watching(file) as models:
        former = models.find("m", ANYONE)
        with former.in_use():
            write_models(file, m={"model": tiny_llava, "samples": 5, "max_waiting": 3})
            await until(lambda: models.find("m", ANYONE) is not former)
            now = models.find("m", ANYONE)
            assert (former.settings.samples, now.settings.samples, now.settings.max_waiting) == (256, 5, 3)
            assert now.engine is former.engine
        await until(lambda: not models._leaving)
        assert now.is_alive  # the former one did not take the engine with it
        write_models(file, m={"model": tiny_llava, "batch_size": 3})
        await until(lambda: models.find("m", ANYONE) is not now and not models._leaving)
        assert not now.engine.alive
        assert models.find("m", ANYONE).is_alive


async def test_what_could_not_be_loaded_is_tried_again(tiny_llava: Path, tmp_path: Path) -> None:
    file = write_models(tmp_path / "models.yaml", stays={"model": tiny_llava})
    async with watching(file) as models:
        stays = models.find("stays", ANYONE)
        write_models(file, late={"model": tmp_path / "late"}, stays={"model": tiny_llava})
        await until(lambda: models.states == {"late": "failed", "stays": "ready"})
        build_tiny_llava(tmp_path / "late")
        await until(lambda: models.states == {"late": "ready", "stays": "ready"})
        assert [model.name for model in models.running] == ["late", "stays"]
        assert models.find("stays", ANYONE) is stays


async def test_memory_of_an_unloaded_model_is_referred_to_by_nobody(tiny_llava: Path, tmp_path: Path) -> None:
    import gc
    import weakref

    both = {"stays": {"model": tiny_llava}, "goes": {"model": tiny_llava, "language_model": "embedded"}}
    file = write_models(tmp_path / "models.yaml", **both)
    async with watching(file) as models:
        model = models.find("goes", ANYONE)
        held = [weakref.ref(model), weakref.ref(model.engine), weakref.ref(model.engine.encoder.tower)]
        del model
        write_models(file, stays=both["stays"])
        await until(lambda: models.states == {"stays": "ready"})
        gc.collect()
        assert [reference() for reference in held] == [None, None, None]
