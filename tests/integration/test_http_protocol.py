"""Header sections that are too large, have too many headers, or do not end: over real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http.protocol import HttpProtocol

from .serve_process import ServeProcess, serving

LIMIT = 64 * 1024
PIECE = b"x" * 4096


class ImpatientProtocol(HttpProtocol):
    header_timeout = 0.2


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes in the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


PATIENT = pytest.mark.parametrize("port", [HttpProtocol], indirect=True, ids=["30s"])
IMPATIENT = pytest.mark.parametrize("port", [ImpatientProtocol], indirect=True, ids=["0.2s"])


@pytest.fixture(scope="module")
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of an application behind the protocol."""
    protocol: type[HttpProtocol] = request.param
    server = uvicorn.Server(uvicorn.Config(echo, port=0, http=protocol, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:  # it closed before it had read all that was sent
        pass
    return data


def one_digit(connection: socket.socket) -> bytes:
    """The body of an answer of one digit, after which the connection stays open."""
    data = b""
    while not data.partition(b"\r\n\r\n")[2]:
        data += connection.recv(65536)
    assert data.startswith(b"HTTP/1.1 200 ")
    return data.partition(b"\r\n\r\n")[2]


def send_until_refused(connection: socket.socket, piece: bytes, most: int) -> bytes:
    """Sends pieces until an answer comes. Returns it."""
    connection.settimeout(0.01)
    for _ in range(most // len(piece)):
        try:
            connection.sendall(piece)
            answer = connection.recv(65536)
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return b""
        connection.settimeout(20)
        return answer + everything(connection)
    pytest.fail("all of it was taken")


def check_431(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "headers_too_large"


@PATIENT
@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\nX-", b"\r\n"],
    ids=["value", "path", "name", "no-request"],
)
def test_a_header_without_end(port: int, start: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(start)
        piece = b"\r\n" * 2048 if start == b"\r\n" else PIECE
        check_431(send_until_refused(connection, piece, 8 * LIMIT))


@PATIENT
def test_a_whole_header_section_that_is_too_large(port: int) -> None:
    for head in (
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * LIMIT + b"\r\n\r\n",
        b"GET /" + b"x" * LIMIT + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n",
    ):
        with connect(port) as connection:
            connection.sendall(head)
            check_431(everything(connection))


@PATIENT
def test_what_is_large_and_within_the_limits(port: int) -> None:
    many = {f"x-{number}": "y" * 600 for number in range(90)}
    with httpx.Client() as client:
        for size in (0, 10, 5_000_000):
            answer = client.post(f"http://127.0.0.1:{port}/", content=b"x" * size, headers=many)
            assert (answer.status_code, answer.text) == (200, str(size))
        chunks = client.post(f"http://127.0.0.1:{port}/", content=(b"x" for _ in range(20_000)))
        assert (chunks.status_code, chunks.text) == (200, "20000")
    piece = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
    with connect(port) as connection:  # more bytes than the limit, in many whole requests
        for _ in range(2 * LIMIT // len(piece)):
            connection.sendall(piece)
            assert one_digit(connection) == b"4"


@PATIENT
@pytest.mark.parametrize("start", [b"1;", b"0\r\nX-Trailer: "], ids=["extension", "trailer"])
def test_chunks_and_trailers_without_end(port: int, start: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n" + start)
        # The application has the request already, so that nothing but the end can be said.
        assert not send_until_refused(connection, PIECE, 64 * LIMIT)


@IMPATIENT
@pytest.mark.parametrize("start", [b"", b"\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_headers_that_do_not_come(port: int, start: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(start)
        assert everything(connection) == b""


@IMPATIENT
def test_a_drip_does_not_buy_more_time(port: int) -> None:
    """Neither on a new connection nor on one that had a request."""
    for start in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        with connect(port) as connection:
            if start:
                connection.sendall(start)
                assert one_digit(connection) == b"0"
            connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
            send_until_refused(connection, b"x", most=1000)


@IMPATIENT
def test_a_slow_body_is_no_slow_header(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.1)
            connection.sendall(b"x")
        assert one_digit(connection) == b"8"


def test_the_gateway_has_these_limits(tmp_path: Path) -> None:
    with serving(stderr=tmp_path / "log") as server:
        port = int(server.url.rsplit(":", 1)[1])
        with connect(port) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n")
            check_431(everything(connection))
        assert httpx.get(f"{server.url}/livez").status_code == 200


def test_an_upgrade_is_a_request_like_others(tmp_path: Path) -> None:
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    websocket["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    http2 = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    log = tmp_path / "log"
    with ExitStack() as stack:
        server = stack.enter_context(serving("--api-keys", "k" * 32, stderr=log))
        port = int(server.url.rsplit(":", 1)[1])
        connection = stack.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=20)))
        for headers in (websocket, http2):
            for path, status in (("/v1/models", 401), ("/v1/Rumpelstiltskin", 404), ("/livez", 200)):
                connection.request("GET", f"{path}?key=Rumpelstiltskin", headers=headers)
                answer = connection.getresponse()
                assert (answer.status, answer.read()[:1]) == (status, b"{")
                assert answer.headers["x-request-id"]
        assert server.stop() == 0
    lines = log.read_text()
    assert '"/v1/models"' in lines
    assert "Rumpelstiltskin" not in lines
    assert "pgrade" not in lines


def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    with serving("--client-idle-timeout", "1", stderr=tmp_path / "log") as server, asked(server) as connection:
        assert everything(connection) == b""


def test_stopping_does_not_wait_for_idle_connections(tmp_path: Path) -> None:
    flags = ["--client-idle-timeout", "600", "--drain-lead", "0"]
    with serving(*flags, stderr=tmp_path / "log") as server, asked(server):
        assert server.stop(25) == 0


@contextmanager
def asked(server: ServeProcess) -> Iterator[socket.socket]:
    """A connection that has had its answer."""
    with connect(int(server.url.rsplit(":", 1)[1])) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        yield connection
