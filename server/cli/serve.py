"""``fs-serve serve``: reads the settings and runs the gateway."""

from __future__ import annotations

import os
import signal
from types import FrameType

import typer


def serve(context: typer.Context) -> None:
    """Start the gateway. `fs-serve serve --help` lists every setting; `--config FILE` reads them from YAML."""
    _exit_on_signals()
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from server.run import run
    from server.settings.environment import unknown_variables
    from server.settings.gateway import CONFIG_FILE_VARIABLE, Settings

    arguments = list(context.args)
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            os.environ[CONFIG_FILE_VARIABLE] = arguments[index + 1]
            del arguments[index : index + 2]
            break
        if argument.startswith("--config="):
            os.environ[CONFIG_FILE_VARIABLE] = argument.partition("=")[2]
            del arguments[index]
            break
    try:
        settings = Settings(_cli_parse_args=arguments, _cli_prog_name="fs-serve serve")
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            where = ".".join(map(str, problem["loc"]))
            message = problem["msg"].removeprefix("Value error, ")
            typer.echo(f"setting {where}: {message}" if where else f"settings: {message}", err=True)
        raise typer.Exit(2) from None
    except (SettingsError, FileNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if unknown := unknown_variables(os.environ):
        typer.echo("\n".join(unknown), err=True)
        raise typer.Exit(2)
    raise typer.Exit(run(settings))


def _exit_on_signals() -> None:
    """Makes SIGTERM and SIGINT exit the process at once, until the server installs its own handlers.

    Without a handler the first process of a container would ignore SIGTERM for as long as its models load.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
