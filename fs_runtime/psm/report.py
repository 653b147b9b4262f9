"""What a training run shows while it runs: a progress bar, and logs that TensorBoard reads."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from fs_runtime.progress_bar import ProgressBar
from fs_runtime.psm.progress import Progress


class RunReport:
    """Shows each step as it is done.

    Args:
        logs: Folder for the TensorBoard logs.
        console: Where the bar is drawn.
        shown: False on all processes but the main one, which then write nothing.
    """

    def __init__(self, logs: Path, console: Console, *, shown: bool) -> None:
        self._logs, self._shown = logs, shown
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
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer:
            self._writer.close()

    def step(self, progress: Progress) -> None:
        """Shows a step."""
        score = "…" if math.isnan(progress.score) else f"{progress.score:.4f}"
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bar.add_task(
                progress.stage, total=progress.steps, loss=progress.loss, score=score
            )
        self._bar.update(self._tasks[progress.stage], completed=progress.step, loss=progress.loss, score=score)
        if self._writer is None:
            self._writer = SummaryWriter(str(self._logs))
        self._writer.add_scalar(f"{progress.stage}/loss", progress.loss, progress.step)
        if not math.isnan(progress.score):
            self._writer.add_scalar(f"{progress.stage}/score", progress.score, progress.step)
