"""The gateway in front of two real vLLM servers that hang, die, and come back."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.reference import reference_model_path
from fs_runtime.smoothing.smoother import Smoother

from .gateway import Gateway, chat, picture, running_gateway
from .load import Load, Seen, ask
from .serve_process import wait_until
from .vllm_process import EMBEDDINGS_ONLY, VllmServer, VllmServers

pytestmark = pytest.mark.vllm

NAME = "fs-reference"
BODY = chat(picture(1), text="Describe the image.", robustness={"samples": 2}) | {"model": NAME}
STREAM = BODY | {"stream": True}
# As long as the model's context allows, and longer than any test needs to get between.
LONG = STREAM | {"max_tokens": 400, "ignore_eos": True, "n": 4, "temperature": 1.0}
SETTINGS: dict[str, Any] = {
    "served_model_name": NAME,
    "language_model": "vllm",
    "vllm_health_interval": 0.3,
    "vllm_health_timeout": 15,  # on a busy machine a server that is well takes its time
    "vllm_connect_timeout": 10,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(reference_model_path()))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def servers(vllm_servers: VllmServers) -> Iterator[list[VllmServer]]:
    """Two servers that the tests may stop and kill; they run again afterwards, whatever became of the tests."""
    model = reference_model_path()
    pair = [vllm_servers.start(model, *EMBEDDINGS_ONLY, "--seed", seed, name=NAME) for seed in ("1", "2")]
    for server in pair:
        server.wait_until_ready()
    yield pair
    for server in pair:
        assert server.process is not None
        if server.process.poll() is None:
            signal_all(server, signal.SIGCONT)
        else:
            server.start()
    for server in pair:
        server.wait_until_ready()


@pytest.fixture(autouse=True)
def _quiet(servers: list[VllmServer]) -> None:
    """No test counts what an earlier one left running."""
    wait_until(lambda: running(servers) == 0, what="the end of earlier requests")


@pytest.fixture(scope="module")
def gateway(engine: SmoothingEngine, servers: list[VllmServer]) -> Iterator[Gateway]:
    urls = ",".join(server.url for server in servers)
    with running_gateway(reference_model_path(), engine, vllm_urls=urls, **SETTINGS) as started:
        yield started


def signal_all(server: VllmServer, number: int) -> None:
    assert server.process is not None
    os.killpg(server.process.pid, number)


def metric(address: str, name: str, **labels: str) -> float:
    """The sum of a metric over all lines that have these labels."""
    total = 0.0
    for line in httpx.get(f"{address}/metrics", timeout=30).text.splitlines():
        if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def running(servers: list[VllmServer]) -> float:
    return sum(
        metric(server.url, name)
        for server in servers
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting")
    )


def host(server: VllmServer) -> str:
    return server.url.removeprefix("http://")


def ready(gateway: Gateway) -> bool:
    return httpx.get(f"{gateway.url}/readyz", timeout=30).status_code == 200


def healthy(gateway: Gateway, server: VllmServer) -> bool:
    return metric(gateway.url, "fs_upstream_healthy", server=host(server)) == 1


# --- both are well ----------------------------------------------------------------------------------------------------


def test_both_servers_share_the_load(gateway: Gateway, servers: list[VllmServer]) -> None:
    before = [metric(server.url, "vllm:request_success_total") for server in servers]
    seen = Load(gateway.url, [BODY, STREAM], clients=6, rounds=4).join()
    assert [one for one in seen if not one.good] == []
    shares = [
        metric(server.url, "vllm:request_success_total") - count for server, count in zip(servers, before, strict=True)
    ]
    assert sum(shares) == 24
    assert min(shares) >= 6
    for server in servers:
        assert metric(gateway.url, "fs_upstream_requests_total", server=host(server), outcome="answered") >= 6
        assert metric(gateway.url, "fs_upstream_in_flight", server=host(server)) == 0


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_stops_vllm(gateway: Gateway, servers: list[VllmServer], streamed: bool) -> None:
    """By vLLM's own count it soon has nothing to do, has finished nothing, and has made few of the tokens asked for.

    vLLM stands still from the first token, or from before it is asked, until the gateway has let go: so it cannot be
    done before, however slow the machine is that counts.
    """

    def total(name: str) -> float:
        return sum(metric(server.url, name) for server in servers)

    tokens, finished = total("vllm:generation_tokens_total"), total("vllm:request_success_total")
    withdrawn = metric(gateway.url, "fs_upstream_requests_total", outcome="withdrawn")
    try:
        if streamed:
            with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=LONG, timeout=60) as response:
                next(response.iter_lines())
                pause(servers)
        else:
            pause(servers)
            with send(gateway, LONG | {"stream": False}):
                wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight") == 1)
        wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight") == 0)
    finally:
        for server in servers:
            signal_all(server, signal.SIGCONT)
    wait_until(lambda: running(servers) == 0)
    wait_until(lambda: all(healthy(gateway, server) for server in servers))
    assert total("vllm:request_success_total") == finished
    assert total("vllm:generation_tokens_total") - tokens < 0.8 * LONG["n"] * LONG["max_tokens"]
    assert metric(gateway.url, "fs_upstream_requests_total", outcome="withdrawn") == withdrawn + 1


def pause(servers: list[VllmServer]) -> None:
    for server in servers:
        signal_all(server, signal.SIGSTOP)


def send(gateway: Gateway, body: dict[str, Any], receive_buffer: int | None = None) -> socket.socket:
    """Sends a request over a bare socket and reads nothing."""
    content = json.dumps(body).encode()
    name, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((name, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_slow_clients_hold_nobody_up(gateway: Gateway, servers: list[VllmServer]) -> None:
    """While some read one byte a second, their answers are finished at vLLM, and others are served as ever."""
    slow = [send(gateway, STREAM | {"max_tokens": 64, "ignore_eos": True}) for _ in range(8)]
    read = [b""] * len(slow)
    for _ in range(3):
        read = [text + connection.recv(1) for text, connection in zip(read, slow, strict=True)]
        time.sleep(1)
    assert read == [b"HTT"] * len(slow)
    wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight") == 0)
    assert ask(gateway.url, BODY).good
    for connection in slow:  # the whole answer is still there for whoever takes it
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            some = connection.recv(65536)
            assert some, rest
            rest += some
        assert b"data: [DONE]" in rest
        connection.close()


def test_a_client_that_takes_nothing_is_cut_off(engine: SmoothingEngine, servers: list[VllmServer]) -> None:
    """More than the buffers of both ends can hold, to a client that never reads: the gateway and vLLM let go of it."""
    settings = SETTINGS | {"vllm_urls": ",".join(server.url for server in servers), "client_write_timeout": 1}
    with running_gateway(reference_model_path(), engine, **settings) as gateway:
        huge = LONG | {"n": 8, "logprobs": True, "top_logprobs": 20}
        connection = send(gateway, huge, receive_buffer=4096)
        wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight") == 1)
        wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight") == 0)
        assert metric(gateway.url, "fs_upstream_requests_total", outcome="withdrawn") == 1
        wait_until(lambda: running(servers) == 0)
        connection.close()


def test_busy_servers_are_answered_429(engine: SmoothingEngine, servers: list[VllmServer]) -> None:
    settings = SETTINGS | {"vllm_url": servers[0].url, "vllm_max_in_flight": 2, "max_waiting": 2, "vllm_max_wait": 0.5}
    with running_gateway(reference_model_path(), engine, **settings) as gateway:
        seen = Load(gateway.url, [LONG], clients=8, rounds=1).join()
        assert all(one.good or (one.status, one.error) == (429, "overloaded") for one in seen)
        assert 2 <= sum(one.good for one in seen) < 8
        assert all("retry-after" in one.headers for one in seen if not one.good)
        assert metric(gateway.url, "fs_upstream_sheds_total") == sum(not one.good for one in seen)


# --- one hangs --------------------------------------------------------------------------------------------------------


def test_one_server_hangs_under_load(gateway: Gateway, servers: list[VllmServer]) -> None:
    """Nobody who has no byte yet notices; what the hung server had is sent to the other one."""
    retries = metric(gateway.url, "fs_upstream_retries_total", reason="timed_out")
    load = Load(gateway.url, [BODY, STREAM], clients=6)
    try:
        wait_until(lambda: len(load.seen) >= 6)
        signal_all(servers[0], signal.SIGSTOP)
        wait_until(lambda: not healthy(gateway, servers[0]))
        count = len(load.seen)
        wait_until(lambda: len(load.seen) >= count + 12)
    finally:
        signal_all(servers[0], signal.SIGCONT)
        seen = load.stop()
    assert_only_begun_streams_failed(seen)
    assert metric(gateway.url, "fs_upstream_retries_total", reason="timed_out") > retries
    wait_until(lambda: healthy(gateway, servers[0]))


def test_a_stream_of_the_only_server_ends_with_an_error_when_it_hangs(
    engine: SmoothingEngine, servers: list[VllmServer]
) -> None:
    settings = SETTINGS | {"vllm_url": servers[1].url, "vllm_next_token_timeout": 3, "vllm_first_token_timeout": 20}
    with running_gateway(reference_model_path(), engine, **settings) as gateway:
        try:
            with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=LONG, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                signal_all(servers[1], signal.SIGSTOP)
                events = [line.removeprefix("data: ") for line in lines if line]
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["error"]["code"] == "language_model_timeout"
            late = ask(gateway.url, STREAM)
            assert (late.status, late.error) in [(504, "language_model_timeout"), (503, "language_model_unavailable")]
            wait_until(lambda: not ready(gateway))
            assert httpx.get(f"{gateway.url}/livez").status_code == 200
        finally:
            signal_all(servers[1], signal.SIGCONT)
        wait_until(lambda: ready(gateway))
        assert ask(gateway.url, BODY).good


def assert_only_begun_streams_failed(seen: list[Seen]) -> None:
    """Whole answers, but for streams that had begun: those end with an error that says so."""
    for one in seen:
        assert one.lost is None
        if not one.good:
            assert one.streamed, one
            assert one.status == 200, one
            assert len(one.events) > 1, one
            assert one.whole, one
            assert one.error in ("language_model_broken_off", "language_model_timeout")


# --- one dies, then both, and they come back --------------------------------------------------------------------------


def test_servers_die_and_come_back(gateway: Gateway, servers: list[VllmServer]) -> None:
    """The gateway is never restarted. Killed are: a server under load, the other in the middle of an answer."""
    first, second = servers
    load = Load(gateway.url, [BODY, STREAM, LONG | {"n": 1}], clients=8)
    try:
        wait_until(lambda: len(load.seen) >= 8)
        signal_all(first, signal.SIGKILL)
        wait_until(lambda: not healthy(gateway, first))
        count = len(load.seen)
        wait_until(lambda: len(load.seen) >= count + 16)
    finally:
        seen = load.stop()
    assert_only_begun_streams_failed(seen)
    assert ready(gateway)

    begun = threading.Event()

    def stand_still(seen: Seen) -> None:
        if len(seen.events) == 3:
            signal_all(second, signal.SIGSTOP)  # so that it cannot come to the end before it dies
            begun.set()

    with ThreadPoolExecutor(2) as clients:
        cut = clients.submit(ask, gateway.url, LONG, told=stand_still)
        assert begun.wait(120)
        whole = clients.submit(ask, gateway.url, LONG | {"stream": False})
        wait_until(lambda: metric(gateway.url, "fs_upstream_in_flight", server=host(second)) == 2 or whole.done())
        signal_all(second, signal.SIGKILL)
    assert whole.result().status in (502, 503)
    assert whole.result().error in ("language_model_broken_off", "language_model_unavailable")
    assert (cut.result().status, cut.result().whole, cut.result().error) == (200, True, "language_model_broken_off")

    samples = metric(gateway.url, "fs_samples_total")
    for body in (BODY, STREAM):
        refused = ask(gateway.url, body)
        assert (refused.status, refused.error) == (503, "language_model_unavailable")
        assert "retry-after" in refused.headers
    assert metric(gateway.url, "fs_samples_total") == samples  # nothing is smoothed for nobody
    assert not ready(gateway)
    assert httpx.get(f"{gateway.url}/livez").status_code == 200

    for server in servers:
        assert server.process is not None
        server.process.wait()
        server.start()
    for server in servers:
        server.wait_until_ready()
    assert ask(gateway.url, BODY).good  # at once, without waiting for the next health check
    assert ready(gateway)
    wait_until(lambda: all(healthy(gateway, server) for server in servers))
    answered = [
        metric(gateway.url, "fs_upstream_requests_total", server=host(server), outcome="answered") for server in servers
    ]
    assert all(one.good for one in Load(gateway.url, [BODY, STREAM], clients=4, rounds=4).join())
    for server, count in zip(servers, answered, strict=True):
        assert metric(gateway.url, "fs_upstream_requests_total", server=host(server), outcome="answered") > count
