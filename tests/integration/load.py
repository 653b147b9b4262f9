"""Many clients at once, and what each of them saw."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Seen:
    """What one client saw of one request.

    Attributes:
        status: None if no answer began.
        events: Of a stream, without ``[DONE]``.
        body: Of an answer that was not streamed.
        whole: Whether the answer came to its proper end: ``[DONE]``, or all bytes of the body.
        lost: How the connection ended, if not by an answer.
    """

    streamed: bool
    status: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    lost: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """The code of the error that the client was told."""
        for part in (self.body, *self.events[-1:]):
            if "error" in part:
                return str(part["error"]["code"])
        return None

    @property
    def good(self) -> bool:
        """Whether it is a whole answer without an error."""
        return self.status == 200 and self.whole and self.error is None

    @property
    def text(self) -> str:
        """The words of the answer."""
        if self.streamed:
            choices = [choice for event in self.events for choice in event.get("choices", [])]
            return "".join(choice["delta"].get("content") or "" for choice in choices)
        return str(self.body["choices"][0]["message"]["content"])


def ask(
    url: str, body: dict[str, Any], client: httpx.Client | None = None, told: Callable[[Seen], None] = lambda _: None
) -> Seen:
    """One request; never raises for what becomes of it. ``told`` gets what was seen so far, after each event."""
    seen = Seen(bool(body.get("stream")))
    own = client or httpx.Client(timeout=120)
    try:
        with own.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            seen.status = response.status_code
            seen.headers = dict(response.headers)
            if seen.streamed and seen.status == 200:
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        seen.whole = True
                    elif line:
                        seen.events.append(json.loads(line.removeprefix("data: ")))
                        told(seen)
            else:
                seen.body = json.loads(response.read())
                seen.whole = True
    except (httpx.HTTPError, ValueError) as error:
        seen.lost = repr(error)
    finally:
        if client is None:
            own.close()
    return seen


class Load:
    """Clients that ask again and again over kept connections until they are told to stop.

    Args:
        url: The gateway.
        bodies: What they ask, in turn.
        clients: How many at once.
        rounds: Requests of each client; None goes on until :meth:`stop`.
    """

    def __init__(self, url: str, bodies: list[dict[str, Any]], clients: int, rounds: int | None = None) -> None:
        self.seen: list[Seen] = []
        self._url = url
        self._bodies = bodies
        self._rounds = rounds
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        done = 0
        with httpx.Client(timeout=120) as client:
            while not self._stopped.is_set() and done != self._rounds:
                body = self._bodies[(number + done) % len(self._bodies)]
                self.seen.append(ask(self._url, body, client))
                done += 1
                if self.seen[-1].lost is not None and self._rounds is None:
                    return  # the server is gone

    def stop(self) -> list[Seen]:
        """Lets every client finish its request; returns all that was seen."""
        self._stopped.set()
        return self.join()

    def join(self, limit: float = 120) -> list[Seen]:
        """Waits for the clients."""
        for thread in self._threads:
            thread.join(limit)
            assert not thread.is_alive(), "a client waits for ever"
        return self.seen
