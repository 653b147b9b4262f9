"""Routes for operators and their tools: models, health, metrics and the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.access.tenants import Tenant
from server.api.dependencies import authenticate, caller_of, gateway_of
from server.api.schemas import ErrorBody, Model, ModelList, ReceiptKey
from server.errors import ApiError
from server.models.served import ServedModel

router = APIRouter()

_NOT_NOW: dict[int | str, dict[str, Any]] = {
    503: {"description": "The check failed.", "content": {"application/json": {}}}
}
_KEY: dict[int | str, dict[str, Any]] = {401: {"model": ErrorBody}}


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """This interface, for machines."""
    return JSONResponse(request.app.openapi())


@router.get(
    "/v1/models", dependencies=[Depends(authenticate)], responses=_KEY, summary="The models that are served here."
)
async def models(request: Request) -> ModelList:
    """OpenAI's list of the models that the caller may use, with the fingerprints that certificates name."""
    served = gateway_of(request).models.allowed(caller_of(request).tenant)
    return ModelList(data=[_described(model) for model in served])


@router.get(
    "/v1/models/{name:path}",
    dependencies=[Depends(authenticate)],
    responses={**_KEY, 404: {"model": ErrorBody}, 503: {"model": ErrorBody}},
    summary="One of these models.",
)
async def model(request: Request, name: str) -> Model:
    """One entry of the list. 404 for a model that the caller may not use, 503 for one that is not loaded."""
    return _described(gateway_of(request).models.find(name, caller_of(request).tenant))


def _described(model: ServedModel) -> Model:
    return Model(
        id=model.name,
        created=model.created,
        fingerprint=model.engine.encoder.fingerprint,
        family=model.engine.encoder.family,
        psm=model.engine.smoother.psm,
    )


# No API key needed: those who verify a receipt may not be clients, and the key is public.
@router.get(
    "/v1/receipt-key", responses={404: {"model": ErrorBody}}, summary="The public key that receipts are signed with."
)
async def receipt_key(request: Request) -> ReceiptKey:
    """The key in PEM and its id; 404 where receipts are unsigned."""
    key = gateway_of(request).receipt_key
    if key is None:
        raise ApiError(
            404,
            "this server does not sign receipts, since its operator has set no receipt_key; they can still be replayed",
            code="no_receipt_key",
        )
    return ReceiptKey(key_id=key.key_id, pem=key.public_pem())


@router.get("/livez", responses=_NOT_NOW, summary="Whether the process works; restart it if not.")
async def livez(request: Request) -> Response:
    """200 while the threads that run the smoothing passes report a heartbeat, else 503."""
    live = all(model.is_alive for model in gateway_of(request).models.running)
    return JSONResponse({"live": live}, status_code=200 if live else 503)


@router.get(
    "/readyz",
    responses={**_NOT_NOW, 404: {"model": ErrorBody}},
    summary="Whether further requests should be sent here now.",
)
async def readyz(request: Request, model: str | None = None) -> Response:
    """200 when the engines are warm, a language model is healthy and the gateway is not about to stop, else 503.

    With several models, one language model that can answer is enough; ``?model=`` asks about one model. Probes have no
    API key. So if the gateway has keys, only a client that sends one gets the names and states of its models.
    """
    gateway = gateway_of(request)
    if model is not None and model not in gateway.models.states:
        raise ApiError(404, "this gateway has no model of this name; /v1/models lists them", code="model_not_found")
    asked = [each for each in gateway.models.running if model in (None, each.name)]
    answering = await asyncio.gather(*(each.language_model.ready() for each in asked))
    parts = {
        "engine": bool(asked) and all(each.is_alive for each in asked),
        "language_model": any(answering),
        "staying": not gateway.drain.begun,
    }
    ready = all(parts.values())
    found: dict[str, Any] = {"ready": ready, **parts}
    if (tenant := _tenant_of(request)) is not None:
        found["models"] = {
            name: state
            for name, state in gateway.models.states.items()
            if model in (None, name) and tenant.may_use(name)
        }
    return JSONResponse(found, status_code=200 if ready else 503)


def _tenant_of(request: Request) -> Tenant | None:
    """Returns the tenant of a request; None without a valid key, which is no error here."""
    try:
        return gateway_of(request).access.authenticate(request.headers.getlist("authorization"))
    except ApiError:
        return None


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics.")
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(generate_latest(gateway_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
