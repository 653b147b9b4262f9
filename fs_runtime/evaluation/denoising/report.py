"""The scores of denoisers as Markdown, CSV and JSON, and their outputs side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fs_runtime.evaluation.denoising.cost import Costs
from fs_runtime.evaluation.denoising.denoisers import BM3D, DESCRIPTIONS
from fs_runtime.evaluation.denoising.measure import Case, DenoisingScore, ScoreFile, clean_image
from fs_runtime.evaluation.intervals import Estimate, mean

_MARGIN, _TITLE = 4, 24  # pixels


@dataclass(frozen=True, slots=True)
class Summary:
    """One denoiser at one size and noise level, over all pictures.

    A picture's value is its mean over the draws. Intervals are Student's over the pictures.

    Attributes:
        denoiser: Its name.
        side: Pixels a side.
        sigma: σ.
        pictures: How many.
        psnr: Mean PSNR in dB.
        ssim: Mean SSIM.
        over_bm3d: Mean of the pictures' differences to BM3D in dB; None for BM3D itself, and if it was not measured.
        ssim_over_bm3d: The same for SSIM.
    """

    denoiser: str
    side: int
    sigma: float
    pictures: int
    psnr: Estimate
    ssim: Estimate
    over_bm3d: Estimate | None
    ssim_over_bm3d: Estimate | None


def summarise(scores: Sequence[DenoisingScore]) -> list[Summary]:
    """Every denoiser at every size and noise level, in order of appearance."""
    by_picture = {field: _by_picture(scores, field) for field in ("psnr", "ssim")}
    summaries = []
    for denoiser, side, sigma in dict.fromkeys((s.denoiser, s.case.side, s.case.sigma) for s in scores):
        values = {field: found[denoiser, side, sigma] for field, found in by_picture.items()}
        differences: dict[str, Estimate | None] = dict.fromkeys(values)
        for field, found in by_picture.items():
            reference = found.get((BM3D, side, sigma))
            if reference is not None and denoiser != BM3D:
                differences[field] = mean([value - reference[name] for name, value in values[field].items()])
        summaries.append(
            Summary(
                denoiser,
                side,
                sigma,
                len(values["psnr"]),
                mean(list(values["psnr"].values())),
                mean(list(values["ssim"].values())),
                differences["psnr"],
                differences["ssim"],
            )
        )
    return summaries


def _by_picture(scores: Sequence[DenoisingScore], field: str) -> dict[tuple[str, int, float], dict[str, float]]:
    """Means over the draws: by denoiser, side and σ, then by picture."""
    draws: dict[tuple[str, int, float], dict[str, list[float]]] = {}
    for score in scores:
        key = score.denoiser, score.case.side, score.case.sigma
        draws.setdefault(key, {}).setdefault(score.case.picture, []).append(getattr(score, field))
    return {key: {name: float(np.mean(values)) for name, values in pictures.items()} for key, pictures in draws.items()}


def markdown(scores: Sequence[DenoisingScore], costs: Costs | None) -> str:
    """Means with their difference to BM3D, the scores of each picture, and the cost of the purifiers."""
    summaries = summarise(scores)
    names = list(dict.fromkeys(score.denoiser for score in scores))
    sigmas = list(dict.fromkeys(summary.sigma for summary in summaries))
    draws = 1 + max(score.case.draw for score in scores)
    lines = [
        "# Denoising photographs",
        "",
        f"{summaries[0].pictures} photographs that nothing was trained on, {draws} draw(s) of the noise each, the same "
        "for all rows. Pixels in [0, 1]; noisy images are not clipped before, outputs are clipped before they are "
        "scored. PSNR in dB / SSIM, means over the pictures; in brackets the mean difference to BM3D in dB with its "
        "95% interval over the pictures.",
        "",
    ]
    for side in dict.fromkeys(summary.side for summary in summaries):
        lines += [f"## {side} x {side}", "", f"| | {' | '.join(f'σ = {sigma:g}' for sigma in sigmas)} |"]
        lines.append("|---|" + "---|" * len(sigmas))
        found = {(s.denoiser, s.sigma): s for s in summaries if s.side == side}
        lines += [f"| {name} | {' | '.join(_cell(found[name, sigma]) for sigma in sigmas)} |" for name in names]
        lines.append("")
    lines += [f"- *{name}*: {DESCRIPTIONS[name]}." for name in names if name in DESCRIPTIONS]
    lines += [
        "- Not clipped, noise of σ has a PSNR of −20 log₁₀ σ: "
        + ", ".join(f"{-20 * np.log10(sigma):.2f} dB at {sigma:g}" for sigma in sigmas)
        + ".",
        "",
        *_every_picture(scores, names),
        *(_cost_lines(costs) if costs else []),
    ]
    return "\n".join(lines)


def _cell(summary: Summary) -> str:
    text = f"{summary.psnr.value:.2f} / {summary.ssim.value:.3f}"
    over = summary.over_bm3d
    return text if over is None else f"{text} ({over.value:+.2f}: {over.low:+.2f} to {over.high:+.2f})"


def _every_picture(scores: Sequence[DenoisingScore], names: Sequence[str]) -> list[str]:
    lines = []
    psnr, ssim = _by_picture(scores, "psnr"), _by_picture(scores, "ssim")
    for side, sigma in dict.fromkeys((score.case.side, score.case.sigma) for score in scores):
        lines += [f"## Every picture, {side} x {side}, σ = {sigma:g}", "", f"| | {' | '.join(names)} |"]
        lines.append("|---|" + "---:|" * len(names))
        for picture in psnr[names[0], side, sigma]:
            cells = [
                f"{psnr[name, side, sigma][picture]:.2f} / {ssim[name, side, sigma][picture]:.3f}" for name in names
            ]
            lines.append(f"| {picture} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _cost_lines(costs: Costs) -> list[str]:
    lines = [
        "## Cost",
        "",
        f"One image of {costs.side} x {costs.side} on {costs.device}, {costs.dtype}, {costs.threads} thread(s), "
        f"batches of {costs.batch_size}.",
        "",
        "| | parameters | GFLOP | of the encoder's | ms | of the encoder's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {'' if row.parameters is None else f'{row.parameters:,}'} | {row.flops / 1e9:.2f} "
        f"| {100 * row.flops_share:.1f}% | {1000 * row.seconds:.1f} | {100 * row.seconds_share:.1f}% |"
        for row in costs.rows
    ]
    return [*lines, ""]


def as_csv(scores: Sequence[DenoisingScore]) -> str:
    """The scores as CSV: one line for each picture, size, noise level, draw and denoiser."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Case)]
    writer.writerow([*names, "denoiser", "version", "psnr", "ssim", "seconds"])
    for score in scores:
        case = [getattr(score.case, name) for name in names]
        writer.writerow([*case, score.denoiser, score.version, score.psnr, score.ssim, score.seconds])
    return out.getvalue()


def as_json(scores: Sequence[DenoisingScore], costs: Costs | None) -> str:
    """Summaries, costs and scores as JSON."""
    found = {
        "summaries": [dataclasses.asdict(summary) for summary in summarise(scores)],
        "costs": None if costs is None else dataclasses.asdict(costs),
        "scores": [dataclasses.asdict(score) for score in scores],
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def side_by_side(
    pictures: Mapping[str, NDArray[np.uint8]],
    scores: Sequence[DenoisingScore],
    file: ScoreFile,
    columns: Sequence[str],
    *,
    side: int,
    sigma: float,
) -> Image.Image:
    """A grid of pictures: a row for each picture, a column for each denoiser, then the clean picture; PSNR in a corner.

    Args:
        pictures: By name, one row each.
        scores: Those of the first draw are shown.
        file: Has their outputs.
        columns: Denoisers, from the left.
        side: Size that is shown.
        sigma: Noise level that is shown.
    """
    shown = {
        (score.case.picture, score.denoiser): score
        for score in scores
        if (score.case.side, score.case.sigma, score.case.draw) == (side, sigma, 0)
    }
    titles = [*columns, "clean"]
    step = side + _MARGIN
    grid = Image.new("RGB", (len(titles) * step - _MARGIN, _TITLE + len(pictures) * step - _MARGIN), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=16)
    for column, title in enumerate(titles):
        draw.text((column * step + 4, 2), f"{title}, sigma {sigma:g}" if not column else title, "black", font)
    for row, (name, picture) in enumerate(pictures.items()):
        top = _TITLE + row * step
        for column, title in enumerate(columns):
            score = shown[name, title]
            with Image.open(file.output(score)) as output:
                grid.paste(output, (column * step, top))
            place = (column * step + 6, top + side - 22)
            draw.text(place, f"{score.psnr:.1f} dB", "white", font, stroke_width=2, stroke_fill="black")
        clean = np.rint(255 * clean_image(picture, side)).astype(np.uint8)
        grid.paste(Image.fromarray(clean), (len(columns) * step, top))
    return grid


def write_report(
    folder: Path,
    pictures: Mapping[str, NDArray[np.uint8]],
    scores: Sequence[DenoisingScore],
    file: ScoreFile,
    columns: Sequence[str],
    costs: Costs | None,
) -> list[Path]:
    """Writes ``denoising.md``, ``.csv`` and ``.json``, and a grid at the largest size for each noise level.

    Returns:
        The files written.
    """
    texts = {
        "denoising.md": markdown(scores, costs),
        "denoising.csv": as_csv(scores),
        "denoising.json": as_json(scores, costs),
    }
    written = []
    for name, text in texts.items():
        written.append(folder / name)
        written[-1].write_text(text, encoding="utf-8")
    side = max(score.case.side for score in scores)
    for sigma in dict.fromkeys(score.case.sigma for score in scores):
        written.append(folder / f"pictures-{sigma:g}.jpg")
        side_by_side(pictures, scores, file, columns, side=side, sigma=sigma).save(written[-1], quality=90)
    return written
