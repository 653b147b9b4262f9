"""The table of photographs as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.evaluation.photographs.cells import MEASURES, Measure, PhotographCell, PhotographKey
from fs_runtime.evaluation.photographs.plan import LINF_SIZES
from fs_runtime.evaluation.photographs.summary import (
    UNSMOOTHED,
    CellEstimates,
    PairedDifference,
    estimates_of,
    paired_differences,
)
from fs_runtime.system.files import write_file

_NORM_SIGNS = {"linf": "ℓ∞", "l2": "ℓ2"}
_CAVEAT = (
    "The photographs may have been among the pictures that an encoder was trained on, so top-1 is no accuracy on new "
    "pictures; what counts is how it falls."
)


def write_report(folder: Path, cells: Sequence[PhotographCell], settings: Mapping[str, Any]) -> list[Path]:
    """Writes ``photographs.md``, ``.csv`` and ``.json``.

    Args:
        folder: Of the results.
        cells: Finished ones.
        settings: Of the measurement, with the list of pictures.

    Returns:
        The files written.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    texts = {
        "photographs.md": markdown(cells, settings),
        "photographs.csv": as_csv(cells),
        "photographs.json": as_json(cells, settings),
    }
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def markdown(cells: Sequence[PhotographCell], settings: Mapping[str, Any]) -> str:
    """For each encoder: rows without attack, paired differences, rows under attack."""
    estimates = [estimates_of(cell) for cell in cells]
    differences = paired_differences(cells)
    samples, confidence = settings["samples"], settings["confidence"]
    provable = NormConfidenceSequence(confidence).forecast(1.0, samples - 1)
    lines = [
        "# Photographs",
        "",
        f"{len(settings['pictures'])} photographs, n = {samples} noisy copies each, seed "
        f"{settings['seed']}; `photographs.json` lists them. {_CAVEAT} In brackets 95% intervals over the pictures: "
        "Wilson's for shares, Student's for means and differences.",
        "",
        "- *Top-1*: of a copy by itself (mean over the copies), of the smoothed feature through the head, of the vote "
        "over the copies.",
        "- *Fidelity*: cosine similarity of the smoothed features with those of the picture as sent, without noise: "
        "stacked, and by token. Computed for what was served; no bound.",
        "- *ρ*: plug-in estimate, without confidence. *Certified*: mean certified similarity at ℓ2 radius σ/2, α = "
        f"{1 - confidence:.3g} for each picture; {samples} copies prove no ρ above {provable:.2f}. *At the estimate of "
        "ρ* is what many copies would give, and **not** certified.",
        "- *Finds itself*: share of pictures whose smoothed features are nearest to their own clean ones among all.",
    ]
    for encoder in dict.fromkeys(cell.key.encoder for cell in cells):
        own = [one for one in estimates if one.key.encoder == encoder]
        paired = [one for one in differences if one.key.encoder == encoder]
        lines += ["", f"## {encoder}", "", *_clean_lines(own)]
        lines += _difference_lines([one for one in paired if one.key.attack == "none"])
        if any(one.key.attack != "none" for one in own):
            lines += ["", f"### {encoder}, under attack", "", *_attack_text(own, settings), ""]
            lines += _attack_lines(own)
            lines += _difference_lines([one for one in paired if one.key.attack != "none"])
    return "\n".join(lines) + "\n"


def as_csv(cells: Sequence[PhotographCell]) -> str:
    """Estimates with the ends of their intervals, one line for each cell; missing values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [field.name for field in dataclasses.fields(PhotographKey)]
    writer.writerow([*keys, "pictures", *(f"{one.name}{end}" for one in MEASURES for end in ("", "_low", "_high"))])
    for estimates in map(estimates_of, cells):
        values: list[float | str] = []
        for measure in MEASURES:
            found = estimates.values.get(measure.name)
            values += ["", "", ""] if found is None else [found.value, found.low, found.high]
        key = ["" if part is None else part for part in dataclasses.astuple(estimates.key)]
        writer.writerow([*key, estimates.pictures, *values])
    return out.getvalue()


def as_json(cells: Sequence[PhotographCell], settings: Mapping[str, Any]) -> str:
    """Settings with the list of pictures, estimates and paired differences."""
    found = {
        "settings": settings,
        "cells": [dataclasses.asdict(estimates_of(cell)) for cell in cells],
        "differences": [dataclasses.asdict(one) for one in paired_differences(cells)],
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _clean_lines(estimates: Sequence[CellEstimates]) -> list[str]:
    rows = sorted((one for one in estimates if one.key.attack == "none"), key=lambda one: one.key.sigma)
    measures = _shown(rows)
    lines = [f"| σ | purifier | {' | '.join(one.title for one in measures)} |", _rule(2, len(measures))]
    for one in rows:
        values = [_text(measure, one.values.get(measure.name)) for measure in measures]
        lines.append(f"| {_row(one.key)} | {' | '.join(values)} |")
    return lines


def _attack_text(estimates: Sequence[CellEstimates], settings: Mapping[str, Any]) -> list[str]:
    most = max(one.pictures for one in estimates if one.key.attack != "none")
    text = (
        f"The first {most} pictures; APGD, {settings['steps']} steps: up the cross-entropy of the class where classes "
        "are known, else away from the picture's features. *Fixed* attacks are made on the encoder without smoothing, "
        f"*adaptive* ones through purifier and noise, {settings['draws']} fresh copies behind each gradient. Fidelity "
        "has two meanings here: to the picture *as sent*, which is what a server can report (low may mean that "
        "smoothing took the attack away), and to the *clean* picture, which only an evaluation knows. Balls are on the "
        "picture that the encoder reads, in pixels of [0, 1]."
    )
    if not any(one.key.attack == "adaptive" for one in estimates):
        text += " No adaptive attack was made on this encoder: fixed ones alone flatter smoothing."
    return [text]


def _attack_lines(estimates: Sequence[CellEstimates]) -> list[str]:
    rows = [one for one in estimates if one.key.attack != "none"]
    rows.sort(key=lambda one: (one.key.norm or "", one.key.radius, one.key.sigma))
    hidden = ("norm", "certified", "certified_estimate")
    measures = [measure for measure in _shown(rows) if measure.name not in hidden]
    lines = [f"| ball | attack | σ | purifier | {' | '.join(one.title for one in measures)} |", _rule(4, len(measures))]
    for one in rows:
        values = [_text(measure, one.values.get(measure.name)) for measure in measures]
        lines.append(f"| {_ball(one.key)} | {one.key.attack} | {_row(one.key)} | {' | '.join(values)} |")
    return lines


def _difference_lines(differences: Sequence[PairedDifference]) -> list[str]:
    hidden = ("fidelity", "clean_fidelity", "certified", "certified_estimate", "top1_vote")
    rows = [
        PairedDifference(one.key, one.other, one.pictures, values)
        for one in sorted(differences, key=lambda one: (one.key.norm or "", one.key.radius, one.key.sigma))
        if (values := {name: value for name, value in one.values.items() if name not in hidden})
    ]
    if not rows:
        return []
    measures = _shown(rows)
    attacked = any(one.key.attack != "none" for one in rows)
    start = "| ball | attack " if attacked else ""
    lines = [
        "",
        "Paired differences on the same pictures, the first row minus the second. Where no picture differs, Student's "
        "interval has no width, and says nothing of other pictures.",
        "",
        f"{start}| σ | | {' | '.join(one.title for one in measures)} |",
        _rule(4 if attacked else 2, len(measures)),
    ]
    for one in rows:
        values_shown = [_text(measure, one.values.get(measure.name), signed=True) for measure in measures]
        place = f"| {_ball(one.key)} | {one.key.attack} " if attacked else ""
        other = "without smoothing" if one.other == UNSMOOTHED else one.other
        pair = f"{one.key.purifier} − {other}"
        lines.append(f"{place}| {one.key.sigma:g} | {pair} | {' | '.join(values_shown)} |")
    return lines


def _shown(rows: Sequence[CellEstimates] | Sequence[PairedDifference]) -> list[Measure]:
    """The measures that any row has."""
    return [measure for measure in MEASURES if any(measure.name in row.values for row in rows)]


def _rule(words: int, numbers: int) -> str:
    return "|" + "---|" * words + "---:|" * numbers


def _row(key: PhotographKey) -> str:
    return f"{key.sigma:g} | {key.purifier}" if key.sigma else "0 | without smoothing"


def _ball(key: PhotographKey) -> str:
    sign = _NORM_SIGNS[key.norm] if key.norm else ""
    size = f"{255 * key.radius:.0f}/255" if key.radius in LINF_SIZES else f"{key.radius:g}"
    return f"{sign} {size}"


def _text(measure: Measure, estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "–"
    if measure.share:
        sign, unit = ("+", " points") if signed else ("", "%")
        value, low, high = (f"{100 * part:{sign}.1f}" for part in dataclasses.astuple(estimate))
        return f"{value}{unit} ({low} to {high})"
    value, low, high = (f"{part:{'+' if signed else ''}.3f}" for part in dataclasses.astuple(estimate))
    return f"{value} ({low} to {high})"
