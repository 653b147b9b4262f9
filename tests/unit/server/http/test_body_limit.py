"""The limit of all bodies together, where it is fixed which bytes arrive first."""

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.body_limit import BodyLimitMiddleware


async def read(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body, or with the error's code."""
    try:
        text = str(len(await Request(scope, receive).body()))
    except ApiError as error:
        text = f"{error.status} {error.code}"
    await PlainTextResponse(text)(scope, receive, send)


class Client:
    """A request whose body is sent piece by piece."""

    def __init__(self, app: BodyLimitMiddleware) -> None:
        self._pieces: asyncio.Queue[Message] = asyncio.Queue()
        self._sent: list[Message] = []
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
        self._task = asyncio.create_task(app(scope, self._pieces.get, self._send))

    async def give(self, size: int, *, last: bool = False) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": not last})
        await self._settle()

    async def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})
        await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(self._task.exception(), ClientDisconnect)

    @property
    def answer(self) -> str:
        return b"".join(message.get("body", b"") for message in self._sent).decode()

    async def _send(self, message: Message) -> None:
        self._sent.append(message)

    async def _settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_who_takes_all_beyond_the_limit_is_refused_and_nobody_else() -> None:
    app = BodyLimitMiddleware(read, max_bytes=100, seconds=60, max_total_bytes=150)
    large, late = Client(app), Client(app)
    await large.give(90)
    await late.give(60)
    assert (large.answer, late.answer, app.total_bytes) == ("", "", 150)
    await late.give(1, last=True)
    assert late.answer == "429 overloaded"
    await large.give(10, last=True)
    assert large.answer == "100"
    assert app.total_bytes == 0


async def test_bytes_are_given_back_however_a_request_ends() -> None:
    app = BodyLimitMiddleware(read, max_bytes=100, seconds=60, max_total_bytes=150)
    left, whole, too_large = Client(app), Client(app), Client(app)
    await left.give(20)
    await whole.give(50, last=True)
    await too_large.give(100)
    await too_large.give(1, last=True)
    assert too_large.answer == "413 request_too_large"
    assert app.total_bytes == 20
    await left.leave()
    assert app.total_bytes == 0


async def test_one_body_may_always_be_as_large_as_one_may_be() -> None:
    app = BodyLimitMiddleware(read, max_bytes=100, seconds=60, max_total_bytes=10)
    alone = Client(app)
    await alone.give(100, last=True)
    assert alone.answer == "100"
