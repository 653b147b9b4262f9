"""Fetching over real sockets: what is dialled, what is refused, and what another server may do to us."""

import asyncio
import datetime
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.images import remote
from server.images.addresses import is_public
from server.images.faults import Fault, ImageFaultError
from server.images.remote import AddressRefusedError, RemoteImageError, RemoteImageFetcher
from server.images.remote_urls import UrlPolicy, UrlRefusedError

Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FILE = bytes(range(256)) * 40
MOST = 100_000


class Server:
    """A TCP server on 127.0.0.1 that answers each connection as the test says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answers: dict[str, bytes | Answer] = {}
        self.server_names: list[str | None] = []

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            answer = self.answers[head.split()[1].decode()]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        self._server.close()


def ok(file: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(file)}", "content-type: text/html", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + file


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.fixture
async def server():
    server = Server()
    await server.start()
    server.answers["/ok.png"] = ok(FILE)
    yield server
    await server.stop()


Fetcher = Callable[..., RemoteImageFetcher]


@pytest.fixture
async def fetcher(server: Server):
    """Makes fetchers whose resolver says 127.0.0.1 for every name, and for which that address is allowed."""
    made: list[RemoteImageFetcher] = []

    async def loopback(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    def make(**options: object) -> RemoteImageFetcher:
        policy = options.pop("policy", UrlPolicy(["*"], ["http", "https"], [server.port, 443, 80]))
        chosen = {"resolve": loopback, "allowed": lambda address: address == "127.0.0.1", **options}
        seconds = chosen.pop("seconds", 5.0)
        made.append(RemoteImageFetcher(policy, seconds, **chosen))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for images in made:
        await images.close()


def url(server: Server, path: str = "/ok.png", host: str = "images.example.com") -> str:
    return f"http://{host}:{server.port}{path}"


async def test_a_file_is_fetched_with_the_name_in_the_host_header_and_nothing_of_ours(
    server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetcher().fetch(url(server, "/ok.png?a=b")[:-4], MOST) == FILE
    (head,) = server.requests
    lines = dict(line.split(b": ") for line in head.lower().split(b"\r\n")[1:] if line)
    assert lines == {
        b"host": f"images.example.com:{server.port}".encode(),
        b"accept": b"image/*",
        b"accept-encoding": b"identity",
        b"user-agent": b"fs-serve",
    }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_and_resolved_anew(server: Server, fetcher: Fetcher, status: int) -> None:
    asked: list[str] = []

    async def note(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    server.answers["/a"] = moved("/b", status)
    server.answers["/b"] = moved(url(server, host="other.example.com"), status)
    assert await fetcher(resolve=note).fetch(url(server, "/a"), MOST) == FILE
    assert asked == ["images.example.com", "images.example.com", "other.example.com"]


async def test_endless_redirects(server: Server, fetcher: Fetcher) -> None:
    server.answers["/a"] = moved("/a")
    with pytest.raises(RemoteImageError, match="3 times"):
        await fetcher().fetch(url(server, "/a"), MOST)
    assert len(server.requests) == 4


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fe80::1%lo"],
        ["0.0.0.0"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        [],
    ],
)
async def test_names_that_resolve_to_what_is_not_public(server: Server, fetcher: Fetcher, addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(AddressRefusedError):
        await fetcher(resolve=resolve, allowed=is_public).fetch(url(server), MOST)
    assert server.requests == []


async def test_a_name_of_the_machine_itself_with_its_real_resolver(server: Server, fetcher: Fetcher) -> None:
    own = socket.gethostname() + ".localdomain.invalid"
    for host in ("localhost.localdomain", own, "a.localhost"):
        with pytest.raises(AddressRefusedError):
            await fetcher(resolve=remote.resolve, allowed=is_public).fetch(url(server, host=host), MOST)
    assert server.requests == []


async def test_a_name_server_that_changes_its_answer(server: Server, fetcher: Fetcher) -> None:
    """The first answer is checked and dialled; the second, which would lead to this machine, is never asked for."""
    answers = [["203.0.113.9"], ["127.0.0.1"]]
    dialled: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    images = fetcher(resolve=resolve, allowed=lambda address: address == "203.0.113.9", seconds=0.5)
    dial = images._pool._network_backend._dial  # type: ignore[attr-defined]
    connect = dial.connect_tcp

    async def noting(host: str, *rest: object) -> object:
        dialled.append(host)
        return await connect(host, *rest)

    dial.connect_tcp = noting
    with pytest.raises((RemoteImageError, TimeoutError)):
        await images.fetch(url(server), MOST)
    assert dialled == ["203.0.113.9"]
    assert answers == [["127.0.0.1"]]
    assert server.requests == []


async def test_redirects_to_what_is_not_public(server: Server, fetcher: Fetcher) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["10.0.0.1"] if host == "inside.example.com" else ["127.0.0.1"]

    images = fetcher(resolve=resolve)
    server.answers["/inside"] = moved(url(server, host="inside.example.com"))
    with pytest.raises(AddressRefusedError):
        await images.fetch(url(server, "/inside"), MOST)
    for number, target in enumerate(
        ["http://127.0.0.1:{}/ok.png", "http://2130706433:{}/ok.png", "http://[::1]:{}/ok.png", "http://localhost:{}/x",
         "http://u:p@images.example.com:{}/ok.png", "file:///etc/passwd", "gopher://images.example.com:{}/",
         "http://images.example.com:22/", "http://127。0。0。1:{}/ok.png"]
    ):  # fmt: skip
        server.answers[f"/{number}"] = moved(target.format(server.port))
        with pytest.raises(UrlRefusedError):
            await images.fetch(url(server, f"/{number}"), MOST)
    assert len(server.requests) == 10  # none of the targets was asked


async def test_a_second_address_is_tried_when_the_first_does_not_answer(server: Server, fetcher: Fetcher) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    assert await fetcher(resolve=resolve, allowed=lambda _: True).fetch(url(server), MOST) == FILE


# --- what the other server does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "wrong"), [(404, True), (403, True), (204, True), (500, False), (429, False)])
async def test_statuses(server: Server, fetcher: Fetcher, status: int, wrong: bool) -> None:
    server.answers["/x"] = f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode()
    with pytest.raises(RemoteImageError, match=str(status)) as caught:
        await fetcher().fetch(url(server, "/x"), MOST)
    assert caught.value.is_client_error is wrong


async def test_more_bytes_than_allowed(server: Server, fetcher: Fetcher) -> None:
    sent = 0

    async def endless(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while sent < 50_000_000:
            writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            await writer.drain()
            sent += 0x4000

    server.answers["/endless"] = endless
    server.answers["/declared"] = b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n"
    for path in ("/endless", "/declared"):
        with pytest.raises(ImageFaultError) as caught:
            await fetcher().fetch(url(server, path), MOST)
        assert caught.value.fault == Fault.TOO_MANY_BYTES
    assert sent < 20_000_000


@pytest.mark.parametrize("phase", ["silent", "headers", "body", "name"])
async def test_the_time_limit_is_total(server: Server, fetcher: Fetcher, phase: str) -> None:
    async def drip(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if phase == "body":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        if phase == "headers":
            writer.write(b"HTTP/1.1 200 OK\r\nx-a: ")
        while phase != "silent":
            writer.write(b"x")  # each read of the fetcher is quick
            await writer.drain()
            await asyncio.sleep(0.05)
        await asyncio.sleep(3)

    async def silent(host: str, port: int) -> list[str]:
        await asyncio.sleep(3)
        return ["127.0.0.1"]

    server.answers["/drip"] = drip
    images = fetcher(seconds=0.4, **({"resolve": silent} if phase == "name" else {}))
    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        await images.fetch(url(server, "/drip"), MOST)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(6),
)
async def test_answers_that_are_not_http(server: Server, fetcher: Fetcher, answer: bytes) -> None:
    server.answers["/x"] = answer
    with pytest.raises(RemoteImageError, match="broke off"):
        await fetcher().fetch(url(server, "/x"), MOST)


async def test_nobody_listens(server: Server, fetcher: Fetcher) -> None:
    await server.stop()
    with pytest.raises(RemoteImageError, match="could not be reached"):
        await fetcher().fetch(url(server), MOST)


async def test_compressed_answers_are_not_inflated(server: Server, fetcher: Fetcher) -> None:
    server.answers["/x"] = ok(b"\x1f\x8b not gzip", "content-encoding: gzip")
    assert await fetcher().fetch(url(server, "/x"), MOST) == b"\x1f\x8b not gzip"


# --- TLS --------------------------------------------------------------------------------------------------------------


def certificate(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A self-signed certificate for one name: the server's context, and that of a client which trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(made.public_bytes(pem) + private)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(file)
    return ours, ssl.create_default_context(cadata=made.public_bytes(pem).decode())


async def test_tls_sees_the_name_and_not_the_address(tmp_path: Path, fetcher: Fetcher) -> None:
    server = Server()
    server.answers["/ok.png"] = ok(FILE)
    ours, theirs = certificate("images.example.com", tmp_path)
    ours.sni_callback = lambda _, name, __: server.server_names.append(name)
    await server.start(ours)
    policy = UrlPolicy(["*"], ["https"], [server.port])
    images = fetcher(tls=theirs, policy=policy)
    assert await images.fetch(f"https://images.example.com:{server.port}/ok.png", MOST) == FILE
    assert server.server_names == ["images.example.com"]
    # Another name at the same address: its certificate is wrong, whatever connection was open before.
    with pytest.raises(RemoteImageError):
        await images.fetch(f"https://other.example.com:{server.port}/ok.png", MOST)
    with pytest.raises(RemoteImageError):  # nor is it one that the public authorities signed
        await fetcher(policy=policy).fetch(f"https://images.example.com:{server.port}/ok.png", MOST)
    await server.stop()
