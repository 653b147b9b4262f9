"""Stopping in two steps, and streams to slow clients, without a network."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.types import Message

from server.concurrency import TimeoutGroup
from server.errors import ApiError
from server.http.drain import Drain, DrainMiddleware
from server.http.event_stream import EventStream

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def test_deadlines_end_in_time_or_together() -> None:
    timeouts = TimeoutGroup()
    ended: list[str] = []

    async def wait(name: str, when: float | None) -> None:
        try:
            async with timeouts.timeout_at(when):
                await asyncio.sleep(60)
        except TimeoutError:
            ended.append(name)

    now = asyncio.get_running_loop().time()
    waits = [asyncio.create_task(wait("short", now + 0.01)), *(asyncio.create_task(wait("none", None)) for _ in "ab")]
    await waits[0]
    assert ended == ["short"]
    timeouts.expire()
    timeouts.expire()  # twice does no harm
    await asyncio.gather(*waits)
    assert ended == ["short", "none", "none"]
    async with timeouts.timeout_at():
        await asyncio.sleep(0)  # later waits are not concerned


async def test_what_is_left_at_the_end_gets_a_503() -> None:
    drain = Drain()
    entered = asyncio.Event()

    async def work() -> None:
        async with drain.deadline():
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await entered.wait()
    drain.begin()
    await asyncio.sleep(0.01)
    assert not task.done()
    drain.expire()
    with pytest.raises(ApiError, match="shutting down") as caught:
        await task
    assert caught.value.status == 503
    with pytest.raises(ApiError):
        await work()


async def test_timeouts_inside_keep_their_meaning() -> None:
    drain = Drain()
    with pytest.raises(TimeoutError):
        async with drain.deadline(), asyncio.timeout(0):
            await asyncio.sleep(1)


async def test_clients_are_sent_to_a_new_connection_once_it_has_begun() -> None:
    drain, sent = Drain(), list[Message]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        sent.append(message)

    for begun in (False, True):
        if begun:
            drain.begin()
        await DrainMiddleware(app, drain)(SCOPE, None, send)  # type: ignore[arg-type]
        assert ((b"connection", b"close") in sent[-1]["headers"]) is begun


class Events:
    """An endless stream of events that knows when it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def __call__(self) -> AsyncGenerator[str, None]:
        try:
            while True:
                yield f"data: {json.dumps('x')}\n\n"
                await asyncio.sleep(0)
        finally:
            self.closed = True


@pytest.mark.parametrize("stalled", [True, False])
async def test_a_stream_ends_with_its_client(stalled: bool) -> None:
    """One client takes nothing any more, the other closes the connection while an event is being sent."""
    events, gone = Events(), asyncio.Event()
    taken = 0

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal taken
        taken += 1
        if taken > 5:
            if not stalled:
                gone.set()
            await asyncio.sleep(60)

    held, let_go = ExitStack(), []
    held.callback(lambda: let_go.append(events.closed))
    stream = EventStream(events(), 0.05 if stalled else 60, held)
    async with asyncio.timeout(5):
        await stream(SCOPE, receive, send)
    assert events.closed
    assert let_go == [True]  # once, when the stream was over
    assert taken == 6
