"""Imports matplotlib, which the extra ``plots`` installs, and saves axes as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class PlottingError(RuntimeError):
    """matplotlib is not installed; the message says how to get it."""


def require_matplotlib() -> type[Figure]:
    """Returns matplotlib's figure, which needs no display.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlottingError("plots need matplotlib: pip install 'fs-serve[plots]', or ask for none") from None
    return Figure


@contextmanager
def plot_to(path: Path, size: tuple[float, float] = (6.5, 4.2)) -> Iterator[Axes]:
    """Axes to draw on, which are saved at the end with ``.png`` and ``.svg`` appended to ``path``.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=size, layout="constrained")
    yield figure.subplots()
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_name(path.name + suffix), dpi=150)
