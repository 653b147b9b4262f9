"""Checks that a vLLM server accepts this model's embeddings, without running its engine.

vLLM checks the width of bare embeddings, but not of embeddings in a dictionary (the Qwen-VL families): there a wrong
width crashes its engine. The check uses ``/tokenize``, which processes a prompt with its images but never passes it to
the engine, so a probe does no harm. The parsing of its error messages fits vLLM 0.32.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import structlog
from PIL import Image

from fs_runtime.encoders import VisionEncoder
from fs_runtime.encoders.families import Family
from server.language_models.vllm.pool import Server

log = structlog.get_logger("server.upstream")

_PROBE_WIDTH = 1  # no language model has embeddings of this width
# One token. The Qwen-VL families, whose embeddings come in a dictionary, accept bare embeddings only as a batch.
_PROBE_SHAPES = ((1, _PROBE_WIDTH), (1, 1, _PROBE_WIDTH))
_WIDTH = re.compile(rf"dimension mismatch: got {_PROBE_WIDTH}, but model expects (\d+)")
_SECONDS = 10.0  # the first request to a server that has just started is slow


@dataclass(frozen=True, slots=True)
class CompatibilityCheck:
    """What a vLLM server must support to serve a model, and the check of it.

    Attributes:
        model: The model's name at vLLM; None for whichever it serves.
        width: Width of the language model's embeddings; None skips this check.
        tower: Whether vLLM must load its vision tower, although it reads embeddings.
        limit: Value of ``--limit-mm-per-prompt`` that it must be started with.
        plugin: Whether vLLM must have the plugin of ``deploy/vllm-plugin``.
    """

    model: str | None
    width: int | None
    tower: bool
    limit: str
    plugin: bool = False

    @classmethod
    def of(cls, encoder: VisionEncoder, family: Family, model: str | None) -> CompatibilityCheck:
        """The requirements of an encoder's embeddings."""
        return cls(model, encoder.language_width, family.vllm_tower, family.vllm_limit, family.vllm_plugin)

    async def find_fault(self, client: httpx.AsyncClient, server: Server) -> str | None:
        """Returns why ``server`` cannot serve this model; None if it can, or if its answer cannot be interpreted.

        Raises:
            httpx.HTTPError: It did not answer.
        """
        for shape in _PROBE_SHAPES:
            status, answer = await self._tokenize(client, server, _embeddings_part(shape))
            if found := _WIDTH.search(answer):
                return (
                    self._width_fault(int(found.group(1)))
                    or await self._tower_fault(client, server)
                    or await self._plugin_fault(client, server)
                )
        if "--enable-mm-embeds" in answer:
            return f"it takes no embeddings: start it with {self._flags}"
        if status == httpx.codes.NOT_FOUND and self.model is not None and self.model in answer:
            return f"it serves no model {self.model!r}: correct vllm_model"
        if "not a multimodal model" in answer:
            return "its model reads no images: serve the same checkpoint in both"
        log.warning(
            "cannot ask whether this language model server fits the model", server=server.name, answer=answer[:200]
        )
        return None

    def _width_fault(self, theirs: int) -> str | None:
        if self.width in (None, theirs):
            return None
        return (
            f"its model reads embeddings of width {theirs}, and this gateway makes them of width {self.width}: "
            "serve the same checkpoint in both"
        )

    async def _tower_fault(self, client: httpx.AsyncClient, server: Server) -> str | None:
        if not self.tower:
            return None
        status, answer = await self._tokenize(client, server, _image_part())
        if status == httpx.codes.BAD_REQUEST and "At most 0 image" in answer:
            return (
                "its image limit is 0, so it would drop a part of this model's embeddings, or crash on them: "
                f"start it with {self._flags}"
            )
        return None

    async def _plugin_fault(self, client: httpx.AsyncClient, server: Server) -> str | None:
        """Detects the plugin by its other effect: it rejects embeddings that are not finite."""
        if not self.plugin or self.width is None:
            return None
        _, answer = await self._tokenize(client, server, _embeddings_part((1, self.width), np.nan))
        if "not finite" in answer:
            return None
        return (
            "it would crash on this model's embeddings if images differ in size, or drop them: start it with the "
            "plugin in deploy/vllm-plugin on its PYTHONPATH"
        )

    @property
    def _flags(self) -> str:
        return f"--enable-mm-embeds --limit-mm-per-prompt '{self.limit}'"

    async def _tokenize(self, client: httpx.AsyncClient, server: Server, part: dict[str, Any]) -> tuple[int, str]:
        named = {} if self.model is None else {"model": self.model}
        body = {"messages": [{"role": "user", "content": [part]}], **named}
        response = await client.post(f"{server.url}/tokenize", json=body, timeout=_SECONDS)
        return response.status_code, response.text


def _embeddings_part(shape: tuple[int, ...], value: float = 0.0) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, np.full(shape, value, np.float32))
    return {"type": "image_embeds", "image_embeds": base64.b64encode(file.getvalue()).decode("ascii")}


def _image_part() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}
