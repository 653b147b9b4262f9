"""The command line with its commands added once, as the process that people start adds them.

Its groups are the module's own: added again, each command would be there once more, and twice more the time after.
"""

from server.cli.commands import add_all_commands, app

__all__ = ["app"]

add_all_commands()
