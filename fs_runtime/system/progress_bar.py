"""The progress bar of commands that take long, which also tells a log how far they are."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import Progress, TaskID
from typing_extensions import override

_EVERY = 60.0  # seconds from one line of a log to the next


class ProgressBar(Progress):
    """rich's progress bar; where the console is no terminal, such as a log, it prints a line once a minute instead.

    Takes what rich's takes.
    """

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._next_line = time.monotonic() + _EVERY

    @override
    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._tell(task_id)

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if self.disable or self.console.is_terminal or now < self._next_line:
            return
        self._next_line = now + _EVERY
        self.console.print(self.make_tasks_table([self._tasks[task_id]]))
