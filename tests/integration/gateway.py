"""A real gateway on a port of its own, and what tests send to it."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import uvicorn
from PIL import Image

from fs_runtime.engine import SmoothingEngine
from server.access.directory import AccessDirectory
from server.app import create_app
from server.models.configured import ConfiguredModels
from server.models.loading import load_model
from server.settings.gateway import Settings

TINY = "tiny-llava"


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    settings: Settings
    engine: SmoothingEngine

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        options.setdefault("timeout", 120)
        return httpx.post(self.url + path, json=body, **options)

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=120)


@contextmanager
def running_gateway(model: Path | str, engine: SmoothingEngine, **settings: Any) -> Iterator[Gateway]:
    """A gateway that shares ``engine``, under uvicorn in a thread."""
    settings = {"served_model_name": TINY, "samples": 16, **settings}
    chosen = Settings(model=str(model), **settings)
    application = create_app(chosen, AccessDirectory(chosen), ConfiguredModels(chosen), [load_model(chosen, engine)])
    config = uvicorn.Config(application, port=0, log_config=None, timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Gateway(f"http://127.0.0.1:{port}", chosen, engine)
    finally:
        server.should_exit = True
        thread.join(60)


def picture(seed: int, size: int = 56) -> Image.Image:
    """A smooth random image."""
    colours = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def user(*images: Image.Image, text: str = "What is this?") -> dict[str, Any]:
    return {"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}


def chat(*images: Image.Image, text: str = "What is this?", **options: Any) -> dict[str, Any]:
    """A chat request about some images."""
    return {"model": TINY, "messages": [user(*images, text=text)], "max_tokens": 8, "temperature": 0, **options}
