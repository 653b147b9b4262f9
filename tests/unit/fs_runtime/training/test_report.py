import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from fs_runtime.system.files import TrainingError
from fs_runtime.training.progress import Progress
from fs_runtime.training.report import RunReport

# A process of its own, for its files end at 400 bytes, as on a disk that is full from there on.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from rich.console import Console
from fs_runtime.training.progress import Progress
from fs_runtime.training.report import RunReport

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
with RunReport(Path(sys.argv[1]), Console(stderr=True), shown=True) as report:
    for step in range(1000):
        report.step(Progress("purifier", step, 1000, 0.5, 0.5))
    raise ValueError("no space left, as the checkpoint says")
"""


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard would read: each record has its length, a digest of that, its bytes, and a digest of those."""
    contents = io.BytesIO(next(folder.iterdir()).read_bytes())
    found = []
    while length := contents.read(8):
        contents.read(4)
        event = Event.FromString(contents.read(int.from_bytes(length, "little")))
        contents.read(4)
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_steps_are_logged(tmp_path: Path) -> None:
    with RunReport(tmp_path / "logs", Console(file=io.StringIO()), shown=True) as report:
        report.step(Progress("robust encoder", 1, 2, 0.5, math.nan))
        report.step(Progress("robust encoder", 2, 2, 0.25, 0.75))
    assert scalars(tmp_path / "logs") == [
        ("robust_encoder/loss", 1, 0.5),
        ("robust_encoder/loss", 2, 0.25),
        ("robust_encoder/score", 2, 0.75),
    ]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with RunReport(tmp_path / "logs", Console(file=io.StringIO()), shown=False) as report:
        report.step(Progress("purifier", 1, 2, 0.5, math.nan))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_logs_and_hides_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "logs")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr.count("no more logs for TensorBoard") == 1
    assert done.stderr.endswith("ValueError: no space left, as the checkpoint says\n")
    assert "During handling" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write .*file/logs: Not a directory"):
        RunReport(tmp_path / "file" / "logs", Console(file=io.StringIO()), shown=True)
