import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.audit import log as module
from server.audit.log import AuditLog
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.robustness.answer import Robustness
from server.settings.gateway import Settings

NOTHING = Robustness(certified=None, decision="pass", detail="none", images=[])


def count(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("fs_audit_records_total", {"outcome": outcome})


def up(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("fs_audit_log_up")


def audit(metrics: Metrics, path: Path, **settings: Any) -> AuditLog:
    return AuditLog(Settings(audit_log=path, **settings), metrics)


async def write(log: AuditLog, request_id: str = "req-1") -> None:
    await log.record(NOTHING, [], request_id=request_id, tenant="acme", model="m")


async def test_a_record_is_there_before_the_answer_leaves(tmp_path: Path) -> None:
    metrics = Metrics()
    log = audit(metrics, tmp_path / "audit.jsonl")
    await write(log, "req-7")
    start, record = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert start["event"] == "start"
    assert record["event"] == "decision"
    assert (record["request_id"], record["tenant"], record["model"], record["decision"]) == (
        "req-7",
        "acme",
        "m",
        "pass",
    )
    assert (count(metrics, "written"), count(metrics, "lost"), up(metrics)) == (1, 0, 1)
    await log.close()


async def test_without_a_file_nothing_is_written_or_counted() -> None:
    metrics = Metrics()
    log = AuditLog(Settings(), metrics)
    assert not log.enabled
    await write(log)
    assert (count(metrics, "written"), count(metrics, "lost")) == (0, 0)
    await log.close()


async def test_a_full_disk_is_said_once_and_counted_always() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        log = audit(metrics, Path("/dev/full"))
        for _ in range(3):
            await write(log)
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert "No space left" in logs[0]["problem"]
    assert (count(metrics, "lost"), up(metrics)) == (4, 0)
    await log.close()


async def test_a_folder_that_comes_back_is_written_to_again(tmp_path: Path) -> None:
    metrics = Metrics()
    folder = tmp_path / "gone"
    log = audit(metrics, folder / "audit.jsonl")
    await write(log)
    assert up(metrics) == 0
    folder.mkdir()
    with capture_logs() as logs:
        await write(log)
    assert "written again" in logs[0]["event"]
    assert (count(metrics, "written"), up(metrics)) == (1, 1)
    await log.close()


async def test_an_operator_who_requires_the_log_gets_no_answer_without_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = audit(Metrics(), folder / "audit.jsonl", audit_required=True)
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    with pytest.raises(ApiError) as caught:
        await write(log)
    assert (caught.value.status, caught.value.code) == (503, "audit_unavailable")
    await log.close()
    with pytest.raises(OSError, match="No such file"):
        audit(Metrics(), folder / "audit.jsonl", audit_required=True)


@pytest.fixture
def stuck_pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that takes what fits and then nothing: a disk that hangs."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path
    os.set_blocking(reader, True)  # let the writer go, so that its thread can end
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 1 << 16), b"")], daemon=True)
    drain.start()
    drain.join(5)
    os.close(reader)


async def test_a_disk_that_hangs_holds_no_request_up_for_long(
    stuck_pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_MAX_PENDING", 3)
    metrics = Metrics()
    log = audit(metrics, stuck_pipe, audit_max_bytes=0)
    large = Robustness(certified=None, detail="x" * 100_000, images=[])
    for _ in range(6):
        await log.record(large, [], request_id="r", tenant="t", model="m")
    assert count(metrics, "lost") == 6
    assert log._pending == 3
    await log.close()
