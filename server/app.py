"""Assembles the gateway: settings in, ASGI application out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fs_runtime import __version__
from fs_runtime.embedded import EmbeddedModel
from fs_runtime.encoders import CheckpointError, VisionEncoder, load_family
from fs_runtime.encoders.checkpoint import Checkpoint
from fs_runtime.engine import SmoothingEngine
from fs_runtime.loading import load_engine, resolve_device, resolve_dtype
from fs_runtime.receipts import read_signing_key
from fs_runtime.reference import reference_model_path
from fs_runtime.turn_tokens import turn_tokens
from server.access.directory import AccessDirectory
from server.api import certify, chat, operations
from server.api.dependencies import Gateway
from server.api.openapi import install_openapi
from server.api.passthrough import ControlTokens
from server.audit.log import AuditLog
from server.drain import Drain, DrainMiddleware
from server.engine_metrics import register_engine
from server.errors import install_handlers
from server.images.reader import ImageReader
from server.images.remote import RemoteImages
from server.language_models.base import LanguageModel
from server.language_models.embedded import EmbeddedLanguageModel
from server.language_models.fitness import Fitness
from server.language_models.none import NoLanguageModel
from server.language_models.observed import ObservedLanguageModel
from server.language_models.upstreams import Upstreams
from server.language_models.vllm import VllmLanguageModel
from server.limits.limiter import RateLimiter
from server.limits.middleware import LimitHeadersMiddleware
from server.metrics import Metrics
from server.middleware import AccessMiddleware, RequestIdMiddleware
from server.request_body import BodyLimitMiddleware
from server.settings import Settings
from server.smoothing import SmoothingService
from server.tracing import TracingMiddleware


def checkpoint_of(settings: Settings) -> str:
    """Folder or hub id of the configured model."""
    return str(reference_model_path()) if settings.model == "reference" else settings.model


def build_engine(settings: Settings) -> SmoothingEngine:
    """Loads the vision part, starts the engine and warms it up.

    Raises:
        CheckpointError: The checkpoint cannot be used, or not with the language model that the settings ask for.
    """
    family = load_family(checkpoint_of(settings), revision=settings.revision)
    kinds = [*family.language_models, "none"]
    if settings.language_model not in kinds:
        why = f" ({family.note})" if family.note else ""
        raise CheckpointError(
            f"{settings.model} is of family {family.name}, which is not served with --language-model "
            f"{settings.language_model}{why}; use {' or '.join(kinds)}"
        )
    engine = load_engine(
        checkpoint_of(settings),
        psm=settings.psm,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        max_queued_samples=settings.max_queued_samples,
        max_queued_images=settings.max_queued_images,
        cache_bytes=settings.cache_bytes,
        max_pixels=settings.encoder_max_pixels,
    )
    engine.warm_up()
    return engine


def build_language_model(settings: Settings, metrics: Metrics, encoder: VisionEncoder) -> LanguageModel:
    """Loads the embedded language model, or makes the client of the vLLM servers, for this encoder's embeddings."""
    if settings.language_model == "none":
        return NoLanguageModel()
    if settings.language_model == "vllm":
        family = load_family(checkpoint_of(settings), revision=settings.revision)
        fitness = Fitness.of(encoder, family, settings.vllm_model)
        return VllmLanguageModel(Upstreams(settings, metrics.upstreams, fitness), settings.model_name)
    device = resolve_device(settings.device)
    model = EmbeddedModel(
        checkpoint_of(settings),
        revision=settings.revision,
        device=device,
        dtype=resolve_dtype(settings.dtype, device),
    )
    return EmbeddedLanguageModel(settings, model, settings.model_name)


def control_tokens_of(settings: Settings, encoder: VisionEncoder) -> ControlTokens:
    """What texts must not spell: tokens that stand for images and, unless the operator lets them, those of turns."""
    checkpoint = Checkpoint(checkpoint_of(settings), settings.revision)
    turns = turn_tokens(checkpoint) if settings.neutralise_turn_tokens else ()
    return ControlTokens((*encoder.control_tokens, *turns))


def create_app(
    settings: Settings, engine: SmoothingEngine | None = None, images: RemoteImages | None = None
) -> FastAPI:
    """Makes the application.

    Args:
        settings: The operator's settings.
        engine: A running engine to share, which the caller closes; None loads one at start and closes it at the end.
        images: Fetches remote images in place of what the settings ask for. For tests.
    """
    metrics = Metrics()
    drain = Drain()
    receipt_key = read_signing_key(settings.receipt_key) if settings.receipt_key else None
    access = AccessDirectory(settings, metrics)
    limiter = RateLimiter(settings.limits_redis_url.get_secret_value() if settings.limits_redis_url else None, metrics)
    audit = AuditLog(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reader = ImageReader(settings, metrics, images)
        await reader.start()
        running = engine if engine is not None else await asyncio.to_thread(build_engine, settings)
        language_model = ObservedLanguageModel(
            await asyncio.to_thread(build_language_model, settings, metrics, running.encoder),
            metrics,
            settings.model_name,
            settings.language_model,
        )
        await language_model.start()
        register_engine(metrics.registry, running, settings.model_name)
        app.state.gateway = Gateway(
            settings=settings,
            access=access,
            limiter=limiter,
            engine=running,
            language_model=language_model,
            smoothing=SmoothingService(settings, running, reader, metrics, limiter, audit, receipt_key),
            metrics=metrics,
            started=int(time.time()),
            receipt_key=receipt_key,
            drain=drain,
            control_tokens=await asyncio.to_thread(control_tokens_of, settings, running.encoder),
        )
        watch = asyncio.create_task(access.watch())
        try:
            yield
        finally:
            watch.cancel()
            await language_model.close()
            await limiter.close()
            await audit.close()
            await reader.close()
            if engine is None:
                await asyncio.to_thread(running.close)

    app = FastAPI(
        title="FS-Serve",
        version=__version__,
        summary="Certified feature-space smoothing in front of a multimodal language model.",
        lifespan=lifespan,
        # No page of ours loads scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        # FastAPI's own spans carry raw paths and queries, which are the client's text; TracingMiddleware makes ours.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.drain = drain
    for module in (chat, certify, operations):
        app.include_router(module.router)
    install_handlers(app)
    install_openapi(app)
    # The last one added sees a request first.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, seconds=settings.body_timeout)
    app.add_middleware(LimitHeadersMiddleware)
    app.add_middleware(AccessMiddleware, metrics=metrics)
    app.add_middleware(TracingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(DrainMiddleware, drain=drain)
    return app
