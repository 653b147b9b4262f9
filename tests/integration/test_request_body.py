"""Bodies that are too large, too slow, or not read: over real sockets, since that is where connections hang."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother

from .gateway import Gateway, data_url, picture, running_gateway

LIMIT = 300_000


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path) -> Iterator[Gateway]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    with running_gateway(tiny_llava, engine, max_body_bytes=LIMIT, body_timeout=0.5) as running:
        yield running
    engine.close()


def connect(gateway: Gateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(*headers: str, path: str = "/v1/certify") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], str, float]:
    """Status, headers and error code of the one answer, and the seconds until the server closed the connection."""
    start = time.perf_counter()
    data = b""
    while piece := connection.recv(65536):
        data += piece
    top, _, body = data.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)["error"]["code"], time.perf_counter() - start


def test_a_declared_length_above_the_limit_is_refused_before_the_body(gateway: Gateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(head(f"Content-Length: {10**12}", "Expect: 100-continue"))
        status, headers, code, seconds = answer(connection)
    assert (status, code, headers["connection"]) == (413, "request_too_large", "close")
    assert seconds < 5


def test_chunks_above_the_limit(gateway: Gateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(LIMIT // 1000 + 2):
            connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        status, headers, code, seconds = answer(connection)
    assert (status, code, headers["connection"]) == (413, "request_too_large", "close")
    assert seconds < 5


@pytest.mark.parametrize("header", ["Transfer-Encoding: chunked", "Content-Length: 1000"])
def test_slow_bodies(gateway: Gateway, header: str) -> None:
    with connect(gateway) as connection:
        connection.sendall(head(header) + (b"1\r\n{\r\n" if "chunked" in header else b"{"))
        status, headers, code, seconds = answer(connection)
    assert (status, code, headers["connection"]) == (408, "request_timeout", "close")
    assert 0.2 < seconds < 5


def test_a_drip_does_not_buy_more_time(gateway: Gateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        start = time.perf_counter()
        connection.settimeout(0.05)
        data = b""
        while not data.startswith(b"HTTP/1.1 408") and time.perf_counter() - start < 5:
            connection.sendall(b"1\r\nx\r\n")
            try:
                data += connection.recv(65536)
            except TimeoutError:
                continue
    assert data.startswith(b"HTTP/1.1 408")
    assert time.perf_counter() - start < 3


def test_a_client_that_sends_everything_first_still_gets_its_answer(gateway: Gateway) -> None:
    for size in (LIMIT + 1, 10 * LIMIT):
        response = httpx.post(f"{gateway.url}/v1/certify", content=b"x" * size)
        assert response.status_code == 413


def test_the_connection_of_a_body_that_nobody_reads_is_closed(gateway: Gateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(head("Content-Length: 1000000000", path="/v1/nothing"))
        assert answer(connection)[0] == 413
    with connect(gateway) as connection:
        connection.sendall(head("Transfer-Encoding: chunked", path="/v1/nothing"))
        status, headers, _, seconds = answer(connection)
    assert (status, headers["connection"]) == (404, "close")
    assert seconds < 5


def test_ordinary_bodies_keep_their_connection_and_time_limits_end_with_the_body(gateway: Gateway) -> None:
    body = {"image": data_url(picture(1)), "robustness": {"samples": 256}}
    with httpx.Client() as client:
        for _ in range(3):
            response = client.post(f"{gateway.url}/v1/certify", json=body, timeout=60)
            assert response.status_code == 200
            assert "connection" not in response.headers
        assert client.get(f"{gateway.url}/v1/nothing").headers.get("connection") is None
    # The smoothing itself takes longer than a body may.
    body["robustness"] = {"samples": 4096, "spectral": False}
    start = time.perf_counter()
    assert httpx.post(f"{gateway.url}/v1/certify", json=body, timeout=120).status_code == 200
    assert time.perf_counter() - start > 0.5


def test_lengths_that_are_no_numbers(gateway: Gateway) -> None:
    for value in ("-1", "1e3", "²", "0x10", "1, 2"):
        with connect(gateway) as connection:
            connection.sendall(
                f"POST /v1/certify HTTP/1.1\r\nHost: x\r\nContent-Length: {value}\r\n\r\n".encode("latin-1")
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
