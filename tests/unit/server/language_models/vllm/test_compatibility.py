"""What becomes of a server that does not fit the model, and of one that cannot be asked.

What real servers answer is tested in tests/integration/test_families.py.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from server.errors import ApiError
from server.language_models.vllm.compatibility import CompatibilityCheck
from server.language_models.vllm.upstreams import Upstreams
from server.observability.metrics import Metrics
from server.settings.gateway import Settings

COMPATIBILITY = CompatibilityCheck(None, 64, False, '{"image":0,"video":0}')
Answer = Callable[[httpx.Request], httpx.Response]


def expects(width: int) -> Answer:
    message = f"Image embedding hidden dimension mismatch: got 1, but model expects {width}. Embedding shape: (1, 1, 1)"
    return lambda request: httpx.Response(400, json={"error": {"message": message}})


class Front:
    """vLLM's front end: always healthy, and answering /tokenize as the test says."""

    def __init__(self, tokenize: Answer) -> None:
        self.tokenize = tokenize
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return httpx.Response(200)
        assert request.url.path == "/tokenize"
        self.asked += 1
        return self.tokenize(request)


@asynccontextmanager
async def upstreams_of(front: Front, **settings: Any) -> AsyncIterator[Upstreams]:
    chosen = Settings(**{"vllm_health_interval": 600, **settings})
    upstreams = Upstreams(
        chosen, Metrics().models.of_model("ours").upstreams, COMPATIBILITY, httpx.MockTransport(front)
    )
    try:
        await upstreams.start()
        yield upstreams
    finally:
        await upstreams.close()


async def test_a_server_that_fits_is_asked_once() -> None:
    front = Front(expects(64))
    async with upstreams_of(front) as upstreams:
        for _ in range(3):
            assert await upstreams.ready()
            await upstreams._health.check_now()
        await upstreams.admit()
    assert front.asked == 1


async def test_one_that_does_not_serves_nobody_until_it_does() -> None:
    front = Front(expects(128))
    with capture_logs() as lines:
        async with upstreams_of(front) as upstreams:
            for _ in range(3):
                assert not await upstreams.ready()
            with pytest.raises(ApiError, match="does not fit") as refused:
                await upstreams.admit()
            assert (refused.value.status, refused.value.code) == (503, "language_model_unavailable")
            front.tokenize = expects(64)
            assert await upstreams.ready()
            await upstreams.admit()
    faults = [line["fault"] for line in lines if line["log_level"] == "error"]
    assert len(faults) == 1
    assert "128" in faults[0]
    assert "64" in faults[0]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(401, json={"error": "Unauthorized"}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(200, json={"count": 3, "tokens": [1, 2, 3]}),
    ],
)
async def test_one_that_cannot_be_asked_is_taken_as_it_is(answer: httpx.Response) -> None:
    front = Front(lambda request: answer)
    with capture_logs() as lines:
        async with upstreams_of(front) as upstreams:
            assert await upstreams.ready()
    warnings = [line for line in lines if "cannot ask" in line["event"]]
    assert len(warnings) == 1


async def test_one_that_does_not_answer_the_question_is_unhealthy_and_not_unfit() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("no answer")

    front = Front(silent)
    async with upstreams_of(front) as upstreams:
        assert not await upstreams.ready()
        with pytest.raises(ApiError, match="can be reached"):
            await upstreams.admit()
        front.tokenize = expects(64)
        assert await upstreams.ready()
