"""The command line in this process: its table of commands, and a call of its entry point.

The groups of the table are the module's own: added again, each command would be there once more.
"""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from server.cli.commands import add_all_commands, app, main

__all__ = ["app", "run_here"]

add_all_commands()


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``fs-serve`` to its end in this process, which spares the imports of a new one.

    Not for commands that keep something of the process: ``serve`` its signals, ``ask`` and ``bench serve`` its log.
    """
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb"}),
        patch.object(sys, "argv", ["fs-serve", *arguments]),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["fs-serve", *arguments], code, output.getvalue(), errors.getvalue())
