"""Shows a training run: a progress bar, and logs for TensorBoard."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from fs_runtime.system.files import TrainingError
from fs_runtime.system.progress_bar import ProgressBar
from fs_runtime.training.progress import Progress

_FLUSH = 30.0  # seconds between flushes


class RunReport:
    """Shows each step. A full disk ends the logs, with a warning, but not the training.

    Args:
        logs: Folder for the TensorBoard logs.
        console: Where the bar is drawn.
        shown: True on the main process only; the others write nothing.

    Raises:
        TrainingError: The folder cannot be made.
    """

    def __init__(self, logs: Path, console: Console, *, shown: bool) -> None:
        self._logs, self._console = logs, console
        if shown:
            try:
                logs.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"cannot write {logs}: {error.strerror or error}") from error
        self._bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  score {task.fields[score]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown,
        )
        self._tasks: dict[str, TaskID] = {}
        self._events: EventFile | None = None
        self._logging = shown

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._events:
            self._events.close()

    def step(self, progress: Progress) -> None:
        """Shows a step."""
        score = "…" if math.isnan(progress.score) else f"{progress.score:.4f}"
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bar.add_task(
                progress.stage, total=progress.steps, loss=progress.loss, score=score
            )
        self._bar.update(self._tasks[progress.stage], completed=progress.step, loss=progress.loss, score=score)
        if not self._logging:
            return
        try:
            self._log(progress)
        except OSError as error:
            self._logging = False
            self._console.print(
                f"no more logs for TensorBoard in {self._logs}: {error.strerror or error}; training goes on",
                markup=False,
            )

    def _log(self, progress: Progress) -> None:
        self._events = self._events or EventFile(self._logs)
        self._events.add(f"{progress.stage}/loss", progress.loss, progress.step)
        if not math.isnan(progress.score):
            self._events.add(f"{progress.stage}/score", progress.score, progress.step)


class EventFile:
    """A new file of TensorBoard events in a folder of logs.

    Args:
        folder: Of the logs; it exists.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads files in order of name, so the time comes first.
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._next_flush = 0.0
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, name: str, value: float, step: int) -> None:
        """Writes a scalar.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def close(self) -> None:
        """Closes the file. If the disk is full, the rest of the log is lost without an error."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        if time.monotonic() >= self._next_flush:
            self._writer.flush()
            self._next_flush = time.monotonic() + _FLUSH
