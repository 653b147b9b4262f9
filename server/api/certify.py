"""``POST /v1/certify``: image in, certificate out, no language model."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.api.chat import CLIENT_CLOSED_REQUEST
from server.api.dependencies import (
    ClientDisconnectedError,
    admit,
    caller_of,
    model_for,
    read_body,
    while_connected,
)
from server.api.openapi import ERRORS, request_body
from server.api.schemas import CertifyRequest, CertifyResponse
from server.errors import invalid
from server.models.smoothing import ImageSource

router = APIRouter()


@router.post(
    "/v1/certify",
    dependencies=[Depends(admit)],
    openapi_extra={"requestBody": request_body(CertifyRequest)},
    responses={200: {"model": CertifyResponse}, **ERRORS},
    summary="Certify one image.",
)
async def certify(request: Request) -> Response:
    """Smooths and certifies one image."""
    body, _ = await read_body(request, CertifyRequest)
    if body.robustness.answer is not None:
        raise invalid(
            "robustness.answer certifies the answer of a chat request, and here is none; leave it out",
            "robustness.answer",
        )
    source = ImageSource(body.image, "image")
    with model_for(request, body.model) as model:
        try:
            smoothing = model.smoothing.run([source], body.robustness, caller_of(request))
            _, robustness = await while_connected(request, smoothing)
        except ClientDisconnectedError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = CertifyResponse(
        id=f"cert-{uuid.uuid4().hex}", created=int(time.time()), model=model.name, robustness=robustness
    )
    return JSONResponse(answer.model_dump(mode="json"))
