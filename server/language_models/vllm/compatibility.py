"""Asks a vLLM server whether it takes this model's embeddings, by its front end alone.

vLLM checks the width of embeddings that come by themselves, but not of those that come in a dictionary (the Qwen-VL
families), and there a wrong width ends its engine. ``/tokenize`` prepares a prompt with its images and does not hand it
on, so nothing can be asked there that harms. What is read off its answers is that of vLLM 0.32.
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

_PROBE_WIDTH = 1  # no language model's
# One token; the Qwen-VL families, whose embeddings come in a dictionary, see such by itself only in a batch of images.
_PROBE_SHAPES = ((1, _PROBE_WIDTH), (1, 1, _PROBE_WIDTH))
_WIDTH = re.compile(rf"dimension mismatch: got {_PROBE_WIDTH}, but model expects (\d+)")
_SECONDS = 10.0  # a front end that has just started takes its time over the first request


@dataclass(frozen=True, slots=True)
class CompatibilityCheck:
    """What a vLLM server must take.

    Attributes:
        model: vLLM's name of the model; None for whichever it serves.
        width: Of the language model's embeddings; None leaves it unchecked.
        tower: Whether vLLM must have its vision tower, though it reads embeddings.
        limit: ``--limit-mm-per-prompt`` that it should have been started with.
        plugin: Whether vLLM must have the plugin of ``deploy/vllm-plugin``.
    """

    model: str | None
    width: int | None
    tower: bool
    limit: str
    plugin: bool = False

    @classmethod
    def of(cls, encoder: VisionEncoder, family: Family, model: str | None) -> CompatibilityCheck:
        """For an encoder's embeddings."""
        return cls(model, encoder.language_width, family.vllm_tower, family.vllm_limit, family.vllm_plugin)

    async def find_fault(self, client: httpx.AsyncClient, server: Server) -> str | None:
        """Why ``server`` cannot serve this model; None if it can, or cannot be asked.

        Raises:
            httpx.HTTPError: It did not answer.
        """
        for shape in _PROBE_SHAPES:
            status, said = await self._tokenize(client, server, _embeddings_part(shape))
            if found := _WIDTH.search(said):
                return (
                    self._width_fault(int(found.group(1)))
                    or await self._tower_fault(client, server)
                    or await self._plugin_fault(client, server)
                )
        if "--enable-mm-embeds" in said:
            return f"it takes no embeddings: start it with {self._flags}"
        if status == httpx.codes.NOT_FOUND and self.model is not None and self.model in said:
            return f"it serves no model {self.model!r}: correct vllm_model"
        if "not a multimodal model" in said:
            return "its model reads no images: serve the same checkpoint in both"
        log.warning(
            "cannot ask whether this language model server fits the model", server=server.name, answer=said[:200]
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
        status, said = await self._tokenize(client, server, _image_part())
        if status == httpx.codes.BAD_REQUEST and "At most 0 image" in said:
            return (
                "its image limit is 0, and then it leaves out a part of this model's embeddings, or ends at them: "
                f"start it with {self._flags}"
            )
        return None

    async def _plugin_fault(self, client: httpx.AsyncClient, server: Server) -> str | None:
        """The plugin is known by what else it does: it refuses what is not a number."""
        if not self.plugin or self.width is None:
            return None
        _, said = await self._tokenize(client, server, _embeddings_part((1, self.width), np.nan))
        if "not finite" in said:
            return None
        return (
            "it would end at this model's embeddings, where two images differ in size, or lose them: start it with the "
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
