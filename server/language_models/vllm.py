"""A vLLM server over HTTP. It reads embeddings only, so no image reaches it unsmoothed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from server.errors import ApiError
from server.language_models.base import IMAGE_PART, ChatRequest, ImagePayload
from server.settings import Settings


def _npy(array: NDArray[np.generic]) -> str:
    """Base64 of a ``.npy`` file: vLLM reads it without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def image_part(payload: ImagePayload) -> dict[str, Any]:
    """vLLM's content part for one image: bare embeddings, or a dictionary where the family sends more tensors."""
    embeds: str | dict[str, str] = (
        _npy(payload["image_embeds"])
        if payload.keys() == {"image_embeds"}
        else {name: _npy(array) for name, array in payload.items()}
    )
    return {"type": "image_embeds", "image_embeds": embeds}


def vllm_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request as vLLM takes it: embeddings in place of images, vLLM's own name of the model."""
    messages: list[dict[str, Any]] = []
    for message in request.body["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = [
                image_part(request.images[part["index"]]) if part["type"] == IMAGE_PART else part for part in content
            ]
            message = {**message, "content": content}
        messages.append(message)
    return {**request.body, "model": model, "messages": messages}


def events(lines: Iterable[str]) -> list[str]:
    """The data of the server-sent events in ``lines``."""
    return [line[5:].strip() for line in lines if line.startswith("data:")]


class VllmLanguageModel:
    """Client of one vLLM server.

    Args:
        settings: Address, key and timeouts.
        model_name: Name under which answers leave the gateway.
    """

    def __init__(self, settings: Settings, model_name: str) -> None:
        headers = {}
        if settings.vllm_api_key is not None:
            headers["authorization"] = f"Bearer {settings.vllm_api_key.get_secret_value()}"
        self._client = httpx.AsyncClient(
            base_url=str(settings.vllm_url),
            headers=headers,
            timeout=httpx.Timeout(settings.vllm_read_timeout, connect=settings.vllm_connect_timeout),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self._read_timeout = settings.vllm_read_timeout
        self._model = settings.vllm_model
        self._model_name = model_name

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """See :class:`LanguageModel`."""
        response = await self._send(request)
        try:
            await response.aread()
            answer = response.json()
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except httpx.TimeoutException as error:
            raise self._timed_out() from error
        except (httpx.HTTPError, ValueError) as error:
            raise _broken_off() from error
        finally:
            await response.aclose()
        answer["model"] = self._model_name
        return answer

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """See :class:`LanguageModel`."""
        response = await self._send(request)
        try:
            async for line in response.aiter_lines():
                for data in events([line]):
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise _upstream_error(chunk, 502)
                    yield {**chunk, "model": self._model_name}
            raise _broken_off()  # the stream ended without [DONE]
        except httpx.TimeoutException as error:
            raise self._timed_out() from error
        except (httpx.HTTPError, ValueError) as error:
            raise _broken_off() from error
        finally:
            await response.aclose()

    async def ready(self) -> bool:
        """Whether vLLM's health check answers."""
        try:
            response = await self._client.get("/health", timeout=2.0)
        except httpx.HTTPError:
            return False
        return response.status_code == httpx.codes.OK

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _send(self, request: ChatRequest) -> httpx.Response:
        """Sends the request and returns the answer with its body unread."""
        try:
            body = vllm_body(request, await self._upstream_model())
            response = await self._post(body, request.request_id)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _unavailable() from error
        except httpx.TimeoutException as error:
            raise self._timed_out() from error
        except httpx.HTTPError as error:
            raise _broken_off() from error
        if response.status_code != httpx.codes.OK:
            try:
                await response.aread()
                contents = response.json()
            except (httpx.HTTPError, ValueError):
                contents = {}
            finally:
                await response.aclose()
            raise _upstream_error(contents, response.status_code)
        return response

    async def _post(self, body: dict[str, Any], request_id: str) -> httpx.Response:
        """Posts, once more if a kept connection turns out to be closed: vLLM closes some without notice."""
        for last in (False, True):
            request = self._client.build_request(
                "POST", "/v1/chat/completions", json=body, headers={"x-request-id": request_id}
            )
            try:
                return await self._client.send(request, stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if last:
                    raise
        raise AssertionError("unreachable")

    async def _upstream_model(self) -> str:
        """vLLM's name of the model, asked once."""
        if self._model is None:
            response = await self._client.get("/v1/models")
            if response.status_code != httpx.codes.OK:
                raise _upstream_error({}, response.status_code)
            self._model = str(response.json()["data"][0]["id"])
        return self._model

    def _timed_out(self) -> ApiError:
        return ApiError(
            504,
            f"the language model sent nothing for {self._read_timeout:g} s; try again, or ask for fewer tokens",
            code="language_model_timeout",
        )


def _unavailable() -> ApiError:
    return ApiError(
        503,
        "the language model server cannot be reached; try again later",
        code="language_model_unavailable",
        headers={"retry-after": "5"},
    )


def _broken_off() -> ApiError:
    return ApiError(502, "the language model server broke off its answer; try again", code="language_model_broken_off")


def _upstream_error(contents: Any, status: int) -> ApiError:
    """vLLM's error as ours: what the caller did wrong keeps its status and words, the rest is a 502."""
    inner = contents.get("error", contents) if isinstance(contents, dict) else {}
    if not isinstance(inner, dict):
        inner = {}
    message = inner.get("message")
    if status in (400, 404, 413, 422) and isinstance(message, str):
        return ApiError(
            413 if status == 413 else 400,
            f"the language model refused the request: {message}",
            code="language_model_refused",
            param=inner.get("param") if isinstance(inner.get("param"), str) else None,
        )
    if status in (429, 503):
        return ApiError(
            503,
            "the language model server is overloaded; try again later",
            code="language_model_unavailable",
            headers={"retry-after": "5"},
        )
    return ApiError(502, "the language model server failed; try again", code="language_model_failed")
