"""Plots of one certificate; the extra ``plots`` installs matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate.bounds import BOUNDS
from fs_runtime.evaluation.plotting import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fs_runtime.robustness import ImageRobustness


def plot_certificate(certificate: ImageRobustness, view: NDArray[np.float32] | None, path: Path) -> list[Path]:
    """Plots similarity against radius, and the tokens' certified similarity over the picture.

    Args:
        certificate: With ``curve``, and with ``token_map`` for the second plot.
        view: ``(C, H, W)`` the picture as the encoder reads it, resized and cropped. None if the encoder reads several
            tiles, which one map cannot cover: then there is no second plot.
        path: Output; its suffix is replaced by ``.png`` and ``.svg``.

    Returns:
        The files written.
    """
    has_map = certificate.token_map is not None and view is not None
    figure = require_matplotlib()(figsize=(11 if has_map else 6.5, 4.8), layout="constrained")
    axes = figure.subplots(1, 2 if has_map else 1, squeeze=False)[0]
    _draw_curve(axes[0], certificate)
    if has_map and view is not None:
        _draw_tokens(axes[1], certificate, view)
    figure.suptitle(
        f"σ = {certificate.sigma:g}, {certificate.samples} samples, confidence {certificate.confidence:.4g}, "
        f"{certificate.stage} features{', centred' if certificate.centred else ''}"
    )
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, dpi=150)
    return written


def _draw_curve(axes: Axes, certificate: ImageRobustness) -> None:
    curve = certificate.curve
    axes.set(xlabel="ℓ2 radius on the model's image, pixels in [0, 1]", ylabel="cosine similarity", ylim=(0, 1.02))
    if curve is None:
        return
    for kind in BOUNDS:
        certified = getattr(curve.certified, kind.name)
        if certified is None:
            continue
        axes.plot(curve.radius_model, _gaps(certified), color=kind.colour, label=f"{kind.label}, certified")
        if curve.estimate is not None and getattr(curve.estimate, kind.name) is not None:
            estimate = getattr(curve.estimate, kind.name)
            axes.plot(curve.radius_model, _gaps(estimate), color=kind.colour, linestyle=":", linewidth=1)
    axes.plot([], [], color="0.4", linestyle=":", linewidth=1, label="estimates, not certified")
    if certificate.floor is not None:
        axes.axhline(certificate.floor.mean, color="0.5", linestyle="--", linewidth=1, label="floor: different images")
    axes.axvline(certificate.radius.model, color="0.7", linewidth=1)
    shown = curve.certified if curve.estimate is None else curve.estimate
    positive = [radius for radius, value in zip(curve.radius_model, shown.best, strict=True) if value > 0]
    axes.set_xlim(0, max(positive, default=curve.radius_model[-1]) or curve.radius_model[-1])
    axes.legend(loc="lower left", fontsize="small")
    gain = certificate.radius.model / certificate.radius.client if certificate.radius.client else 1.0
    above = axes.secondary_xaxis("top", functions=(_times(1 / gain), _times(gain)))
    above.set_xlabel("ℓ2 radius on the client's image")


def _draw_tokens(axes: Axes, certificate: ImageRobustness, view: NDArray[np.float32]) -> None:
    tokens = certificate.token_map
    if tokens is None:
        return
    columns = max(map(len, tokens.similarity))
    similarity = [row for row in tokens.similarity if len(row) == columns]  # without a class token
    rows = len(similarity)
    extent = (0.0, float(columns), float(rows), 0.0)
    axes.imshow(view.mean(0), cmap="gray", extent=extent, interpolation="bilinear")
    lowest = float(np.floor(10 * np.min(similarity)) / 10)  # so that colours distinguish the tokens
    shown = axes.imshow(similarity, cmap="viridis", extent=extent, alpha=0.6, vmin=min(lowest, 0.9), vmax=1)
    axes.set(xticks=[], yticks=[], title=f"certified similarity by token, r = {certificate.radius.model:.4g}")
    axes.figure.colorbar(shown, ax=axes, shrink=0.85)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: np.asarray(values) * factor


def _gaps(values: list[float]) -> list[float]:
    """Replaces 0, no certificate, by NaN, which plots as a gap."""
    return [value if value > 0 else float("nan") for value in values]
