"""Assembles the gateway: settings in, ASGI application out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from fs_runtime import __version__
from fs_runtime.receipts import read_signing_key
from server.access.directory import AccessDirectory
from server.api import certify, chat, operations
from server.api.dependencies import Gateway
from server.api.openapi import install_openapi
from server.audit.log import AuditLog
from server.errors import install_handlers
from server.http.body_limit import BodyLimitMiddleware
from server.http.drain import Drain, DrainMiddleware
from server.http.limit_headers import LimitHeadersMiddleware
from server.http.request_log import AccessLogMiddleware, RequestIdMiddleware
from server.images.reader import ImageReader
from server.images.remote import RemoteImageFetcher
from server.models.configured import ConfiguredModels
from server.models.directory import ModelDirectory
from server.models.loading import LoadedModel
from server.models.metrics import register_models
from server.models.served import ServedModel, SharedParts
from server.observability.metrics import Metrics
from server.observability.tracing import TracingMiddleware
from server.rate_limits.limiter import RateLimiter
from server.settings.gateway import Settings

_MODEL_ROUTES = (chat, certify)  # their requests name a model


def create_app(
    settings: Settings,
    access: AccessDirectory,
    configured: ConfiguredModels,
    loaded: Iterable[LoadedModel] = (),
    images: RemoteImageFetcher | None = None,
) -> FastAPI:
    """Makes the application.

    Args:
        settings: The operator's settings.
        access: Keys and tenants.
        configured: The models to serve.
        loaded: Models that are loaded already; the application closes them when it stops. It loads the others at start.
        images: Replaces the fetcher of remote images, in tests.
    """
    routes = [route for module in _MODEL_ROUTES for route in module.router.routes]
    metrics = Metrics([route.path for route in routes if isinstance(route, APIRoute)])
    drain = Drain()
    receipt_key = read_signing_key(settings.receipt_key) if settings.receipt_key else None
    limiter = RateLimiter(settings.limits_redis_url.get_secret_value() if settings.limits_redis_url else None, metrics)
    audit = AuditLog(settings, metrics)
    reader = ImageReader(settings, metrics, images)
    shared = SharedParts(reader, limiter, audit, receipt_key, metrics)
    models = ModelDirectory(configured, metrics, lambda model: ServedModel(model, shared))
    register_models(metrics.registry, models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await reader.start()
        await models.start(loaded)
        app.state.gateway = Gateway(settings, access, limiter, models, metrics, receipt_key, drain)
        watches = [asyncio.create_task(access.watch(metrics)), asyncio.create_task(models.watch())]
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            await models.close()
            await limiter.close()
            await audit.close()
            await reader.close()

    app = FastAPI(
        title="FS-Serve",
        version=__version__,
        summary="Certified feature-space smoothing in front of a multimodal language model.",
        lifespan=lifespan,
        # FastAPI's documentation pages would load scripts from a CDN. /openapi.json has the document itself.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # operations.py serves it, so that it is counted like every other route
        # A redirect would go to whatever host the client's Host header names.
        redirect_slashes=False,
        # FastAPI's own spans would hold raw paths and queries, which clients choose. TracingMiddleware makes ours.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.drain = drain
    for module in (*_MODEL_ROUTES, operations):
        app.include_router(module.router)
    install_handlers(app)
    install_openapi(app)
    # The middleware added last handles a request first.
    app.add_middleware(
        BodyLimitMiddleware,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_timeout,
        max_total_bytes=settings.max_body_bytes_together,
    )
    app.add_middleware(LimitHeadersMiddleware)
    app.add_middleware(AccessLogMiddleware, metrics=metrics)
    app.add_middleware(TracingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(DrainMiddleware, drain=drain)
    return app
