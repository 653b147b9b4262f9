import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.audit.file import LineFile


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for start in (0, 3):
        file = LineFile(path, 0, 0)
        for number in range(start, start + 3):
            file.write(str(number).encode())
        file.close()
    assert lines(path) == [str(number) for number in range(6)]
    assert path.stat().st_mode & 0o007 == 0


def test_files_are_rotated_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = LineFile(path, 10, 2)
    for number in range(8):
        file.write(f"line{number}".encode())  # six bytes with its end: one line a file
    file.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert [lines(tmp_path / name) for name in ("audit.jsonl.2", "audit.jsonl.1", "audit.jsonl")] == [
        ["line5"],
        ["line6"],
        ["line7"],
    ]


def test_without_backups_the_file_begins_afresh(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "audit.jsonl", 10, 0)
    for text in (b"line1", b"line2", b"a line that is longer than the limit"):
        file.write(text)
    file.close()
    assert lines(tmp_path / "audit.jsonl") == ["a line that is longer than the limit"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = LineFile(path, 0, 0)
    file.write(b"one")
    path.rename(tmp_path / "moved")
    file.write(b"two")
    file.close()
    assert (lines(tmp_path / "moved"), lines(path)) == (["one"], ["two"])


def test_a_full_disk_is_an_error() -> None:
    file = LineFile(Path("/dev/full"), 0, 0)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x")
    file.close()


def test_what_a_full_disk_took_of_a_line_is_cut_off_again(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: it takes a part of the line, as a full disk does."""
    path = tmp_path / "audit.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from server.audit.file import LineFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = LineFile(Path({str(path)!r}), 0, 0)
file.write(b"first")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    file.write(b"too long for the disk")
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.write(b"second")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "File too large"
    assert lines(path) == ["first", "second"]
