"""What strangers may send to a running gateway: requests made from its OpenAPI document, remote images, and secrets."""

import base64
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from server.observability.logs import configure_logging
from server.settings.gateway import Settings
from tests.commands import kept_logging

from .gateway import TINY, Gateway, chat, data_url, picture, running_gateway


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine) -> Iterator[Gateway]:
    with running_gateway(tiny_llava, engine, max_samples=64, max_new_tokens=4, remote_image_hosts=["*"]) as running:
        yield running


# --- requests made from the document ----------------------------------------------------------------------------------

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance"
)


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with values that get past the first checks: the served model, images that exist, few samples."""
    schemas = document["components"]["schemas"]
    good = data_url(picture(1))
    urls = {
        "enum": [good, data_url(picture(2, size=3)), good[:300], "data:image/png;base64,AAAA", "https://10.0.0.1/x"]
    }
    schemas["ChatCompletionRequest"]["properties"]["model"] = {"const": TINY}
    schemas["ImageUrl"]["properties"]["url"] = urls
    schemas["CertifyRequest"]["properties"]["image"] = urls
    schemas["CertifyRequest"]["properties"]["model"] = {"const": TINY}
    schemas["RobustnessOptions"]["properties"]["seed"] = {"type": "null"}
    schemas["ContentPart"] = {
        "anyOf": [
            {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
            {
                "type": "object",
                "properties": {"type": {"const": "image_url"}, "image_url": {"$ref": "#/components/schemas/ImageUrl"}},
                "required": ["type", "image_url"],
                "additionalProperties": False,
            },
        ]
    }
    schemas["ChatMessage"]["properties"]["role"] = {"enum": ["user", "assistant", "system"]}
    schemas["ChatCompletionRequest"]["additionalProperties"] = False
    return document


def test_requests_made_from_the_openapi_document(gateway: Gateway, tmp_path: Path) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert "$defs" not in json.dumps(document)
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(narrowed(document)))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", str(file), "--url", gateway.url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "60", "--seed", "1", "--generation-deterministic", "--request-timeout", "60", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off"),
    ]
    before = psutil.Process().memory_info().rss
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated.group(1)) > 300
    assert psutil.Process().memory_info().rss - before < 300 * 2**20
    counts = httpx.get(f"{gateway.url}/metrics").text
    for route in ("/v1/chat/completions", "/v1/certify"):
        for status in (200, 400):
            assert f'fs_requests_total{{route="{route}",status="{status}"}}' in counts, (route, status)
    assert 'status="5' not in counts


# --- remote images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "169.254.169.254", "a.localhost", "u:p@example.com"],
)
def test_remote_images_that_are_refused(gateway: Gateway, host: str) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    for url in (f"https://{host}/x.png", f"http://{host}:{port}/metrics", f"https://{host}:{port}/metrics"):
        for path, body in (("/v1/certify", {"image": url}), ("/v1/chat/completions", chat_with(url))):
            response = gateway.post(path, body)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "remote_image_refused")


def chat_with(url: str) -> dict[str, Any]:
    return chat() | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


# --- secrets ----------------------------------------------------------------------------------------------------------

CANARY = "canary5e1f"
IMAGE_CANARY = base64.b64encode(CANARY.encode() * 40).decode()
INNER = IMAGE_CANARY[40:80]  # part of it, however it is cut


def requests_that_fail(good: str) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Path, body and headers; each carries the canary in what a log or an answer must not show."""
    key = {"authorization": f"Bearer {CANARY}"}
    data = "data:image/png;base64,"
    damaged = good[:200] + IMAGE_CANARY + good[200:400]
    bad_images = [
        data + IMAGE_CANARY,
        data + IMAGE_CANARY + "*",
        damaged[: len(damaged) // 4 * 4],
        data + base64.b64encode(b"\x89PNG\r\n\x1a\n" + CANARY.encode() * 50).decode(),
        data + base64.b64encode(b"\xff\xd8\xff\xe0" + CANARY.encode() * 50).decode(),
        data + base64.b64encode(b"RIFF____WEBP" + CANARY.encode() * 50).decode(),
        f"data:{CANARY},{IMAGE_CANARY}",
        f"{IMAGE_CANARY}",
        f"https://{CANARY}.example.com/x.png?token={CANARY}",
        f"https://user:{CANARY}@example.com/",
        f"file:///{CANARY}",
    ]
    for url in bad_images:
        yield "/v1/certify", {"image": url}, key
        yield "/v1/chat/completions", chat_with(url), key
    yield "/v1/certify", {"image": [IMAGE_CANARY]}, key
    yield "/v1/certify", {"image": good, "robustness": CANARY}, key
    yield "/v1/certify", {"image": good, "robustness": {"sigma": IMAGE_CANARY}}, key
    yield "/v1/chat/completions", chat() | {"messages": IMAGE_CANARY}, key
    yield "/v1/chat/completions", chat() | {"messages": [{"role": "user", "content": {"x": CANARY}}]}, key
    yield "/v1/chat/completions", chat(text=CANARY * 100), key
    yield "/v1/chat/completions", chat(text=CANARY) | {"prompt_embeds": IMAGE_CANARY}, key
    yield "/v1/chat/completions", chat(text=CANARY) | {"temperature": IMAGE_CANARY}, key
    yield "/v1/chat/completions", chat(text=CANARY) | {"tools": [{"x": CANARY}]}, key
    yield "/v1/chat/completions", chat_with(good) | {"messages": [{"role": "tool", "content": CANARY}]}, key
    yield "/v1/chat/completions", b'{"model": "' + CANARY.encode(), key
    yield "/v1/chat/completions", CANARY.encode() + b"\xff\xfe", key
    yield "/v1/chat/completions", b'"' + CANARY.encode() * 400_000 + b'"', key
    yield "/v1/chat/completions", json.dumps(chat(text=CANARY + "\ud800")).encode(), key
    yield "/v1/certify", json.dumps({"image": good, CANARY[:3]: 1}).replace("1}", "1e999}").encode(), key


@pytest.mark.parametrize("keys", [[], ["another-key"]])
def test_no_secret_and_no_image_in_logs_or_errors(
    tiny_llava: Path, engine: SmoothingEngine, keys: list[str], capfd: pytest.CaptureFixture[str], request: Any
) -> None:
    with kept_logging():
        configure_logging(Settings(log_level="debug"))  # type: ignore[call-arg]
        with running_gateway(
            tiny_llava, engine, api_keys=keys, log_level="debug", max_body_bytes=3_000_000, remote_image_hosts=["*"]
        ) as gateway:
            for path, body, headers in requests_that_fail(data_url(picture(1))):
                options = {"content": body} if isinstance(body, bytes) else {"json": body}
                response = httpx.post(gateway.url + path, headers=headers, timeout=60, **options)
                assert 400 <= response.status_code < 500, (path, str(body)[:200], response.text)
                assert keys == [] or response.status_code == 401 or response.status_code == 413
                for secret in (CANARY, INNER):
                    assert secret not in response.text, response.text
        logging.getLogger().handlers[0].flush()
    written = "".join(capfd.readouterr())
    assert '"event": "request"' in written
    for secret in (CANARY, INNER, "another-key"):
        assert secret not in written
