"""The table of all commands, and the entry point of ``fs-serve``."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import typer

from fs_runtime import __version__
from fs_runtime.cli.commands import add_commands, bench
from server.cli.api_key import api_key
from server.cli.ask import ask
from server.cli.bench_serve import bench_serve
from server.cli.serve import serve
from server.observability.log_output import open_missing_streams

app = typer.Typer(
    name="fs-serve",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Certified feature-space smoothing in front of a multimodal language model.",
)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Certified feature-space smoothing in front of a multimodal language model."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@functools.cache
def add_all_commands() -> None:
    """Registers every command, once."""
    # Settings parses the flags of serve and prints their help, so this command passes its arguments on unparsed.
    app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        serve
    )
    app.command()(ask)
    bench.command("serve")(bench_serve)
    add_commands(app)
    app.add_typer(api_key, name="api-key")


def main() -> None:
    """Entry point of the console script."""
    open_missing_streams()
    add_all_commands()
    try:
        app(prog_name="fs-serve")
    except ValueError as error:
        from fs_runtime.encoders import CheckpointError  # a slow import (torch), which --help does not need

        if not isinstance(error, CheckpointError):
            raise
        typer.echo(f"cannot load the model: {error}", err=True)
        sys.exit(2)
