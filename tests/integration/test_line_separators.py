"""Tokens that hold characters at which many programs split lines, from the language model to the client."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother

from .gateway import Gateway, chat, running_gateway

TOKENS = ["one", "\u2028", "two\u2029", "\x85", "three\x0b\x0c\x1c\x1d\x1e", "€𝄞"]


def chunk(token: str, finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": {"content": token}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice]}, ensure_ascii=False)


class Speaker(BaseHTTPRequestHandler):
    """Says what a real vLLM with random weights cannot be made to say, in vLLM's form: JSON that is not ASCII."""

    def do_GET(self) -> None:
        self._answer(json.dumps({"data": [{"id": "theirs"}]}), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        chunks = [chunk(token, None) for token in TOKENS[:-1]] + [chunk(TOKENS[-1], "stop")]
        self._answer("".join(f"data: {each}\n\n" for each in [*chunks, "[DONE]"]), "text/event-stream")

    def _answer(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(tiny_llava: Path) -> Iterator[Gateway]:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    url = f"http://127.0.0.1:{upstream.server_port}"
    try:
        with running_gateway(tiny_llava, engine, language_model="vllm", vllm_url=url) as running:
            yield running
    finally:
        engine.close()
        upstream.shutdown()
        upstream.server_close()


def test_they_reach_clients_that_split_lines_there(gateway: Gateway) -> None:
    response = gateway.post("/v1/chat/completions", chat(stream=True))
    assert response.content.isascii()
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "".join(TOKENS)
    assert "robustness" in chunks[-1]
    metrics = httpx.get(f"{gateway.url}/metrics", timeout=30).text
    outcomes = re.findall(r'^fs_upstream_requests_total\{.*outcome="(\w+)".*\} (\S+)$', metrics, re.MULTILINE)
    assert [(name, float(count)) for name, count in outcomes if float(count)] == [("answered", 1)]
