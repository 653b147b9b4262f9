"""Shared by the ``bench`` commands: options, and output of the results as table, JSON and plot."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.options import check_plots, checkpoint_of
from fs_runtime.evaluation.plotting import plot_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PIPE_WIDTH = 140


def _check_plots_first(output: Path | None) -> Path | None:
    """Checks before the measurement that plots can be drawn."""
    if output is not None:
        check_plots()
    return output


OutputOption = Annotated[
    Path | None,
    typer.Option(
        callback=_check_plots_first,
        help="Also write the figures and a plot there, with .json, .png and .svg appended.",
    ),
]
ShapeOption = Annotated[
    str | None, typer.Option(help="Instead of a model: random weights in the shape of a well-known encoder.")
]


@contextmanager
def measured_checkpoint(model: str, shape: str | None) -> Iterator[str]:
    """Folder or hub id of the model to measure; for a shape, a temporary folder.

    Raises:
        typer.BadParameter: The shape is unknown.
    """
    if shape is None:
        yield checkpoint_of(model)
        return
    from fs_runtime.benchmarks.random_models import write_random_model

    with tempfile.TemporaryDirectory() as folder:
        try:
            written = write_random_model(shape, Path(folder))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        yield str(written)


def present(
    found: object,
    tables: Callable[[], Iterable[Table]],
    *,
    as_json: bool,
    output: Path | None = None,
    draw: Callable[[Axes], None] | None = None,
) -> None:
    """Prints the results, and writes them to files if wanted.

    Args:
        found: Dataclasses, maybe in lists or dictionaries.
        tables: Makes the tables to print.
        as_json: Whether to print JSON instead.
        output: Path to which ``.json``, ``.png`` and ``.svg`` are appended; None writes nothing.
        draw: Draws the plot.
    """
    figures = json.dumps(_plain(found), indent=2)
    if output is not None:
        output.with_name(output.name + ".json").write_text(figures + "\n", encoding="utf-8")
        if draw is not None:
            with plot_to(output) as axes:
                draw(axes)
    if as_json:
        typer.echo(figures)
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe, for which rich assumes 80 columns
        console = Console(width=_PIPE_WIDTH)
    for table in tables():
        console.print(table)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
