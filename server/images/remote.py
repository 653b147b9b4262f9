"""Fetches images from other servers: from allowed hosts only, and from public addresses only."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import certifi
import httpcore

from server.images.addresses import is_public
from server.images.faults import Fault, ImageFaultError
from server.images.remote_urls import RemoteUrl, UrlPolicy

_MAX_REDIRECTS = 3
_MAX_AT_ONCE = 32
_MAX_ADDRESSES = 3  # of a name that are tried
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Resolve = Callable[[str, int], Awaitable[list[str]]]
# Name resolution has its own threads, so that an unresponsive name server cannot block the default pool.
_resolvers = ThreadPoolExecutor(8, thread_name_prefix="resolve")


class AddressRefusedError(Exception):
    """The host name has no address, or one that is not public."""


class RemoteImageError(Exception):
    """The other server did not deliver the image.

    Args:
        reason: What went wrong, without the server's address or anything that it sent.
        is_client_error: Whether the URL is at fault (the server answered 404 or the like).
    """

    def __init__(self, reason: str, *, is_client_error: bool = False) -> None:
        super().__init__(reason)
        self.is_client_error = is_client_error


async def resolve(host: str, port: int) -> list[str]:
    """Resolves a name with the system's resolver."""
    found = await asyncio.get_running_loop().run_in_executor(
        _resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves each name once, checks all of its addresses, and connects to a checked one (against DNS rebinding).

    All connections are opened here, so redirects and retries are checked too. TLS still uses the name, for SNI and
    the certificate.
    """

    def __init__(self, resolve: Resolve, allowed: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._dial = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise AddressRefusedError from None
        # A single refused address is enough: a name with mixed addresses looks like an attack.
        if not addresses or not all(map(self._allowed, addresses)):
            raise AddressRefusedError
        for last, address in enumerate(addresses[:_MAX_ADDRESSES], start=1 - len(addresses[:_MAX_ADDRESSES])):
            try:
                return await self._dial.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if last == 0:
                    raise
        raise AssertionError("unreachable")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefusedError


class RemoteImageFetcher:
    """Fetches images, each within a size and a time limit.

    It ignores proxies and other settings of the environment, and uses no cookies, credentials or decompression. Each
    request opens a new connection.

    Args:
        policy: Which URLs are allowed.
        seconds: Time limit for one image, including name resolution and redirects.
        resolve: Resolves names. For tests.
        allowed: Which addresses are allowed. For tests.
        tls: Trusted certificates; by default those of certifi. For tests.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        seconds: float,
        *,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._seconds = seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(cafile=certifi.where()),
            max_connections=_MAX_AT_ONCE,
            max_keepalive_connections=0,  # a reused connection would skip the check of its address
            network_backend=_CheckedBackend(resolve, allowed),
        )

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """Fetches the file at a URL, of at most ``max_bytes``.

        Raises:
            UrlRefusedError: The URL, or one that it redirects to, is not allowed.
            AddressRefusedError: Its host is not on the public internet.
            ImageFaultError: The file has too many bytes.
            RemoteImageError: The other server failed.
            TimeoutError: It took too long.
        """
        target = self._policy.check(url)
        try:
            async with asyncio.timeout(self._seconds):
                for _ in range(_MAX_REDIRECTS + 1):
                    found = await self._get(target, max_bytes)
                    if isinstance(found, bytes):
                        return found
                    target = found
        except (TimeoutError, httpcore.TimeoutException):
            raise TimeoutError from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError):
            raise RemoteImageError("broke off or could not be reached") from None
        raise RemoteImageError(f"redirects more than {_MAX_REDIRECTS} times", is_client_error=True)

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.aclose()

    async def _get(self, url: RemoteUrl, max_bytes: int) -> bytes | RemoteUrl:
        """Returns the file, or the target of a redirect."""
        headers = [
            ("host", _host_header(url)),
            ("accept", "image/*"),
            ("accept-encoding", "identity"),
            ("user-agent", "fs-serve"),
        ]
        address = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        async with self._pool.stream("GET", address, headers=headers) as response:
            if response.status in _REDIRECTS:
                for name, value in response.headers:
                    if name.lower() == b"location":
                        return self._policy.redirect(url, value.decode("latin-1"))
            if response.status != 200:
                wrong = response.status < 500 and response.status != 429
                raise RemoteImageError(f"answered with status {response.status}", is_client_error=wrong)
            return await _read(response, max_bytes)


async def _read(response: httpcore.Response, max_bytes: int) -> bytes:
    for name, value in response.headers:
        if name.lower() == b"content-length" and int(value) > max_bytes:
            raise ImageFaultError(Fault.TOO_MANY_BYTES)
    file = bytearray()
    async with aclosing(response.aiter_stream()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            file += chunk
            if len(file) > max_bytes:
                raise ImageFaultError(Fault.TOO_MANY_BYTES)
    return bytes(file)


def _host_header(url: RemoteUrl) -> str:
    return url.host if url.port == {"https": 443, "http": 80}[url.scheme] else f"{url.host}:{url.port}"
