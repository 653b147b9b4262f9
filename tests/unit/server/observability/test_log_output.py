"""Log lines never stop the server, whatever becomes of them."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.observability.log_output import LogOutput


def test_lines_of_transformers_are_lines_of_the_log() -> None:
    """And its warning of a prompt beyond the context, which is refused anyhow, is none."""
    program = """
from server.run import configure_logging
from server.settings import Settings
from transformers.utils import logging
configure_logging(Settings())
logging.get_logger("transformers.modeling_utils").warning("weights look odd")
logging.get_logger("transformers.tokenization_utils_base").warning("sequence is longer")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert json.loads(line)["event"] == "weights look odd"


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, None, None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


def test_lines_come_out_in_order(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1])
    for number in range(100):
        output.emit(record(f"line {number}"))
    output.flush()
    assert os.read(pipe[0], 10_000).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_pipe_that_nobody_reads_blocks_nobody_and_the_loss_is_told(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1], max_lines=10)
    start = time.monotonic()
    for _ in range(200):
        output.emit(record("x" * 1000))
    output.flush(0.1)
    assert time.monotonic() - start < 2
    assert 100 < output.dropped < 200
    read = b""
    while not read.endswith(b"after\n"):
        read += os.read(pipe[0], 1 << 20)
        if b"after" not in read and output.dropped:
            output.emit(record("after"))
            output.flush(0.2)
    assert b'{"event": "log lines dropped", "level": "warning", "count": ' in read


def test_a_reader_that_is_gone(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    output = LogOutput(pipe[1])
    for _ in range(5):
        output.emit(record("x"))
    output.flush()
    assert output.dropped == 5


def test_a_full_disk() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    output = LogOutput(descriptor)
    output.emit(record("x"))
    output.flush()
    assert output.dropped == 1
    os.close(descriptor)


def test_a_line_that_cannot_be_formatted(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1])
    output.emit(logging.LogRecord("x", logging.INFO, "", 0, "%d", ("no number",), None))
    output.emit(record("lone \ud800 surrogate"))
    output.flush()
    lines = os.read(pipe[0], 1000).decode().splitlines()
    assert "could not be formatted" in lines[0]
    assert lines[1] == "lone \\ud800 surrogate"


def test_missing_streams_are_opened(tmp_path: Path) -> None:
    """A file opened later does not get the number of standard error."""
    code = (
        "import os; from server.observability.log_output import open_missing_streams; open_missing_streams(); "
        f"print(os.open({str(tmp_path)!r}, os.O_RDONLY), file=open({str(tmp_path / 'n')!r}, 'w'))"
    )
    command = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert int((tmp_path / "n").read_text()) > 2
