"""The process itself: how it starts and stops, and what cannot stop it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from glob import glob
from pathlib import Path

import httpx
import libfaketime
import psutil
import pytest

from fs_runtime.reference import reference_model_path
from tests.child_process import WITH_PARENT
from tests.child_process import environment as inherited

from .gateway import chat, picture
from .load import Load, ask
from .serve_process import ServeProcess, serving, wait_until
from .vllm_process import EMBEDDINGS_ONLY, VllmServer, VllmServers

NAME = "fs-reference"
BODY = chat(picture(1), text="Describe the image.", robustness={"samples": 2}) | {"model": NAME}
STREAM = BODY | {"stream": True}
ENDLESS = STREAM | {"max_tokens": 1500, "temperature": 1.0}


def ready(server: ServeProcess) -> int:
    return httpx.get(f"{server.url}/readyz", timeout=30).status_code


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm(vllm_servers: VllmServers) -> list[VllmServer]:
    """The servers of the pool tests, where those ran before."""
    pair = [
        vllm_servers.start(reference_model_path(), *EMBEDDINGS_ONLY, "--seed", seed, name=NAME) for seed in ("1", "2")
    ]
    for server in pair:
        server.wait_until_ready()
    return pair


@pytest.mark.vllm
def test_stopping_under_load_loses_nothing(vllm: list[VllmServer], tmp_path: Path) -> None:
    """Readiness goes first; who asks meanwhile is served and sent to a new connection; then it ends with status 0."""
    urls = ",".join(server.url for server in vllm)
    flags = ["--language-model", "vllm", "--vllm-urls", urls, "--drain-lead", "30", "--drain-timeout", "60"]
    long = STREAM | {"max_tokens": 300, "ignore_eos": True, "temperature": 1.0}
    with serving(*flags, stderr=tmp_path / "log", fork=False) as server:
        load = Load(server.url, [BODY, STREAM, long], clients=6)
        wait_until(lambda: len(load.seen) >= 6)
        assert ready(server) == 200
        before = len(load.seen)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready(server) == 503, what="readiness going down")
        late = ask(server.url, BODY)
        assert late.good
        assert late.headers["connection"] == "close"
        assert server.process.wait(120) == 0
        assert time.monotonic() - told >= 30
        seen = load.join()
    accepted = [one for one in seen if one.status is not None]
    assert len(accepted) > before
    assert [one for one in accepted if not one.good] == []
    # What was not accepted was refused as a connection: nothing of it was sent.
    assert [one.lost for one in seen if one.status is None and "ConnectError" not in str(one.lost)] == []


def test_what_does_not_end_in_time_ends_with_an_error(tmp_path: Path) -> None:
    # However slow the machine is, it accepts the request for many samples.
    flags = ["--drain-lead", "0", "--drain-timeout", "1", "--smoothing-timeout", "600"]
    with serving(*flags, stderr=tmp_path / "log", fork=False) as server, ThreadPoolExecutor() as clients:
        answers = [clients.submit(ask, server.url, ENDLESS) for _ in range(3)]
        whole = clients.submit(ask, server.url, BODY | {"robustness": {"samples": 4096}})
        wait_until(lambda: "fs_requests_in_flight 5.0" in httpx.get(f"{server.url}/metrics").text)
        assert server.stop() == 0
        streams, answer = [future.result() for future in answers], whole.result()
    for stream in streams:
        assert stream.lost is None
        assert stream.good or stream.error == "shutting_down"
        assert stream.whole or stream.status == 503
    assert answer.good or (answer.status, answer.error) == (503, "shutting_down")
    assert "shutting_down" in [one.error for one in [*streams, answer]]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving("--drain-lead", "600", stderr=tmp_path / "log", fork=False) as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready(server) == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_while_weights_are_fetched(number: signal.Signals, tmp_path: Path) -> None:
    """Also as the first process of a container, which the kernel sends no signal that has no handler."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--"]
    container = inside if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0 else []
    with socket.create_server(("127.0.0.1", 0)) as hub, (tmp_path / "log").open("wb") as log:
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        process = subprocess.Popen(
            [*WITH_PARENT, *container, sys.executable, "-m", "server.cli", "serve", "--model", "somebody/model"],
            stderr=log,
            env=inherited() | environment | {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
        )
        try:
            hub.settimeout(200)
            asking, _ = hub.accept()
            with asking:
                server = psutil.Process(process.pid)
                (server.children()[0] if container else server).send_signal(number)
                assert process.wait(60) == 128 + number
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


# --- starting ---------------------------------------------------------------------------------------------------------


def test_it_starts_before_its_language_model(tmp_path: Path) -> None:
    """Nothing has to start it again once that is there: it asks for its health, as after a failure."""
    flags = ["--language-model", "vllm", "--vllm-url", "http://vllm.invalid:8000", "--vllm-health-interval", "0.2"]
    with serving(*flags, "--drain-lead", "0", stderr=tmp_path / "log") as server:
        wait_until(lambda: ready(server) == 503, limit=30)
        assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
        answer = ask(server.url, BODY)
        assert (answer.status, answer.error) == (503, "language_model_unavailable")
        assert server.stop() == 0


# --- logs that cannot be written --------------------------------------------------------------------------------------


@pytest.fixture
def unread_pipe() -> Iterator[int]:
    """The full end of a pipe that nobody reads: whoever writes to it waits for ever."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("fault", ["full disk", "closed", "unread pipe", "reader gone"])
def test_logs_that_cannot_be_written_stop_nothing(fault: str, request: pytest.FixtureRequest) -> None:
    shell, stderr = "", subprocess.DEVNULL
    if fault == "full disk":
        shell = "2>/dev/full"
    elif fault == "closed":
        shell = "2>&-"
    elif fault == "unread pipe":
        stderr = request.getfixturevalue("unread_pipe")
    else:
        reader, stderr = os.pipe()
        os.close(reader)
    with serving("--drain-lead", "0", "--log-level", "debug", stderr=stderr, fork=False, shell=shell) as server:
        for _ in range(3):
            answer = ask(server.url, BODY)
            assert answer.good
            assert answer.text
        assert ask(server.url, BODY | {"model": "other"}).status == 404
        assert server.stop() == 0


# --- clocks that jump -------------------------------------------------------------------------------------------------


def _libfaketime() -> str:
    """The library of the Debian package, or that of the wheel."""
    wheel = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return next(iter(glob("/usr/lib/*/faketime/libfaketime.so.1")), str(wheel))


@pytest.mark.vllm
def test_jumps_of_the_wall_clock_change_nothing(vllm: list[VllmServer], tmp_path: Path) -> None:
    """While the process answers, its wall clock goes to the next year, and back to the last: no timeout, no stall."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": _libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",  # its cache goes by the faked clock, and so never ends when that goes back
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    urls = ",".join(server.url for server in vllm)
    flags = ["--language-model", "vllm", "--vllm-urls", urls, "--vllm-health-interval", "0.2", "--drain-lead", "0"]
    with serving(*flags, stderr=tmp_path / "log", fork=False, **faked) as server:
        load = Load(server.url, [BODY, STREAM], clients=2)
        for days in (365, -365, 0):
            clock.write_text(f"{days:+d}d")
            there = str((datetime.now(UTC) + timedelta(days=days)).year)
            wait_until(lambda there=there: year(server) == there, limit=60, what="the jump")  # type: ignore[misc]
            count = len(load.seen)
            wait_until(lambda count=count: len(load.seen) >= count + 4, limit=30)  # type: ignore[misc]
            assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
            assert ready(server) == 200
        assert [one for one in load.stop() if not one.good] == []
        assert server.stop() == 0


def year(server: ServeProcess) -> str:
    """Of the server's wall clock, as its answers give it."""
    return str(httpx.get(f"{server.url}/livez", timeout=30).headers["date"])[12:16]
