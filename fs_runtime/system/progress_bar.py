"""A progress bar for long commands that also writes progress to logs."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import Progress, TaskID
from typing_extensions import override

_EVERY = 60.0  # seconds between lines in a log


class ProgressBar(Progress):
    """rich's progress bar; where the console is no terminal, such as a log, it prints a line once a minute instead.

    It has the arguments of rich's.
    """

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._next_line = time.monotonic() + _EVERY

    @override
    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._print_line(task_id)

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if self.disable or self.console.is_terminal or now < self._next_line:
            return
        self._next_line = now + _EVERY
        self.console.print(self.make_tasks_table([self._tasks[task_id]]))
