"""Which URLs images may be fetched from."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

_MAX_LENGTH = 4096
# A domain name: at least two labels. The last one starts with a letter, which no notation of an IP address allows.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{4,253}}\Z)(?:{_LABEL}\.)+(?!0x)(?=[a-z])[a-z0-9-]{{1,62}}[a-z0-9]\Z")
_VISIBLE = re.compile(r"[!-~]+\Z")
_DEFAULT_PORTS = {"https": 443, "http": 80}


class UrlRefusedError(ValueError):
    """Images are not fetched from this URL; the message says why, without quoting the URL."""


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A parsed URL. It is parsed only once, so that no other parser can read it differently.

    Attributes:
        scheme: ``https`` or ``http``.
        host: A domain name in lower case.
        port: An allowed port.
        target: Path and query.
    """

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.target}"


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """The operator's allow-lists.

    Attributes:
        hosts: Domain names; ``*.example.com`` for all names below one, ``*`` for any.
        schemes: Of ``https`` and ``http``.
        ports: Port numbers.
    """

    hosts: Collection[str]
    schemes: Collection[str]
    ports: Collection[int]

    def check(self, url: str) -> RemoteUrl:
        """Parses and checks a URL.

        Raises:
            UrlRefusedError: Part of it is not allowed.
        """
        if len(url) > _MAX_LENGTH or not _VISIBLE.match(url) or "\\" in url:
            raise UrlRefusedError(
                f"it must have at most {_MAX_LENGTH} characters, all of them visible ASCII without backslashes; "
                "write other letters in the path as %XX, and in the host as xn--"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UrlRefusedError("it is not a valid URL") from None
        if parts.scheme not in self.schemes:
            raise UrlRefusedError(f"its scheme must be {' or '.join(sorted(self.schemes))}")
        if "@" in parts.netloc:
            raise UrlRefusedError("it must not carry a user name or password")
        host = (parts.hostname or "").lower()
        if not _HOST.match(host):
            raise UrlRefusedError("its host must be a domain name, not an address")
        if not any(_matches(host, pattern) for pattern in self.hosts):
            raise UrlRefusedError("its host is not one that this server's operator allows")
        port = _DEFAULT_PORTS[parts.scheme] if port is None else port
        if port not in self.ports:
            raise UrlRefusedError(f"its port must be one of {', '.join(map(str, sorted(self.ports)))}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return RemoteUrl(parts.scheme, host, port, target)

    def redirect(self, source: RemoteUrl, location: str) -> RemoteUrl:
        """Resolves the target of a redirect from ``source``, and checks it.

        Raises:
            UrlRefusedError: Part of it is not allowed, or it downgrades from https to http.
        """
        try:
            target = self.check(urljoin(str(source), location))
        except ValueError:
            raise UrlRefusedError("it redirects to where images are not fetched from") from None
        if source.scheme == "https" and target.scheme != "https":
            raise UrlRefusedError("it redirects from https to http")
        return target


def _matches(host: str, pattern: str) -> bool:
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in ("*", host)
