"""Measures every cell of the table of photographs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from fs_runtime.attacks import ThreatModel
from fs_runtime.encoders import PreparedImage
from fs_runtime.evaluation.photographs.attack import attack_on, attack_pictures
from fs_runtime.evaluation.photographs.cells import (
    MEASURES,
    NO_PURIFIER,
    PhotographCell,
    PhotographFile,
    PhotographKey,
)
from fs_runtime.evaluation.photographs.cost import CopyCosts, seconds_of_copy
from fs_runtime.evaluation.photographs.encoders import EvaluatedEncoder, has_class_token
from fs_runtime.evaluation.photographs.pictures import Photograph, classes_of
from fs_runtime.evaluation.photographs.plan import PhotographPlan
from fs_runtime.evaluation.photographs.scores import Gallery, scores_of
from fs_runtime.evaluation.photographs.serve import clean_features, serve_picture
from fs_runtime.evaluation.seeds import seed_of
from fs_runtime.psm import Purifier
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.files import write_file

_ATTACKED_AT_ONCE = 20  # pictures; they are stored after their attack, so an interruption loses at most these


def settings_of(
    plan: PhotographPlan,
    encoders: Sequence[EvaluatedEncoder],
    purifiers: Mapping[str, Purifier | None],
    photographs: Sequence[Photograph],
) -> dict[str, Any]:
    """The settings that all cells share, as JSON values; noise levels, and what else adds cells, are not among them."""
    shared = dataclasses.asdict(plan)
    for name in ("sigmas", "attacks", "adaptive", "attack_sigmas"):
        del shared[name]
    parts = {f"encoder {one.name}": one.encoder.fingerprint for one in encoders}
    parts |= {f"purifier {name}": one.fingerprint for name, one in purifiers.items() if one is not None}
    return shared | {"parts": parts, "pictures": [[one.name, one.digest, one.label] for one in photographs]}


class PhotographRun:
    """A running measurement.

    Args:
        plan: What to measure.
        encoders: With names that differ.
        purifiers: By name; ``none`` is None.
        photographs: In their order.
        file: Keeps finished cells.
        batch_size: Most noisy copies in one pass.
        gradient_batch_size: The same with gradients, which take more memory.
    """

    def __init__(
        self,
        plan: PhotographPlan,
        encoders: Sequence[EvaluatedEncoder],
        purifiers: Mapping[str, Purifier | None],
        photographs: Sequence[Photograph],
        file: PhotographFile,
        *,
        batch_size: int = 16,
        gradient_batch_size: int = 8,
    ) -> None:
        self.plan, self.photographs, self.file = plan, photographs, file
        self._encoders = {one.name: one for one in encoders}
        self._purifiers = dict(purifiers)
        self._batch_size, self._gradient_batch_size = batch_size, gradient_batch_size
        self._galleries: dict[str, Gallery] = {}
        everything = plan.keys(list(self._encoders), list(self._purifiers))
        self.missing = [key for key in everything if key not in file.results]
        self._costs = CopyCosts(
            {
                (encoder, purifier): self._seconds_of_copy(encoder, purifier)
                for encoder in {key.encoder for key in self.missing}
                for purifier in self._purifiers
            }
        )

    @property
    def seconds(self) -> float:
        """Estimate of the time that the missing cells take, from one timed copy of each row."""
        return sum(self._costs.of_cell(key, self.plan, len(self.photographs)) for key in self.missing)

    def measure(self, advance: Callable[[float, str], None] = lambda _seconds, _text: None) -> None:
        """Measures the missing cells, and stores each one when it is finished.

        Args:
            advance: Called after each picture and gradient with the part of ``seconds`` that is done, and what is
                being measured.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        for encoder in dict.fromkeys(key.encoder for key in self.missing):
            self._galleries[encoder] = self._gallery(encoder, advance)
        while self.missing:
            self._measure(self.missing[0], advance)
            del self.missing[0]

    def _measure(self, key: PhotographKey, advance: Callable[[float, str], None]) -> None:
        plan, encoder = self.plan, self._encoders[key.encoder]
        smoother = self._smoother(key.encoder, key.purifier)
        labels = classes_of(self.photographs, encoder.classes)
        paths: list[Path] = []
        if key.attack == "none":
            count = len(self.photographs)
        else:
            count = min(len(self.photographs), plan.attack_images)
            paths = self._attacked(key, count, labels, advance)
        columns: dict[str, list[float]] = {}
        gallery = self._galleries[key.encoder]
        pixels: dict[str, torch.Tensor] = {}
        for number in range(count):
            image = self._prepared(key.encoder, number)
            if paths:
                if number % _ATTACKED_AT_ONCE == 0:
                    pixels = load_file(paths[number // _ATTACKED_AT_ONCE])
                image = dataclasses.replace(image, pixels=pixels[str(number)])
            clean = clean_features(smoother, image) if paths else gallery.features[number]
            served = serve_picture(
                smoother,
                image,
                key.sigma,
                clean=clean,
                seed=seed_of(plan.seed, "noise", self.photographs[number].name),
                samples=plan.samples,
                confidence=plan.confidence,
                batch_size=self._batch_size,
            )
            values = scores_of(
                served,
                key.sigma,
                number,
                gallery,
                label=labels[number] if labels else None,
                class_token=has_class_token(encoder.encoder, image.grid),
                attacked=bool(paths),
            )
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
            advance(self._costs.of_copies(key, len(served.copies)), _described(key))
        ordered = {measure.name: columns[measure.name] for measure in MEASURES if measure.name in columns}
        self.file.add(PhotographCell(key, ordered))
        if key.attack == "adaptive":  # no other cell reads them
            for path in paths:
                path.unlink()

    def _attacked(
        self, key: PhotographKey, count: int, labels: Sequence[int] | None, advance: Callable[[float, str], None]
    ) -> list[Path]:
        """Files of the attacked pictures, each by its number; those that an earlier run made are taken as they are."""
        plan = self.plan
        adaptive = key.attack == "adaptive"
        made_on = self._smoother(key.encoder, key.purifier if adaptive else NO_PURIFIER)
        sigma = key.sigma if adaptive else 0.0
        assert key.norm is not None  # noqa: S101 (an attack has one)
        ball = ThreatModel(key.norm, key.radius)
        paths = []
        for start in range(0, count, _ATTACKED_AT_ONCE):
            numbers = range(start, min(start + _ATTACKED_AT_ONCE, count))
            taken = [self.photographs[number] for number in numbers]
            settings = {
                "attack": attack_on(labels, plan.steps).name,
                "steps": plan.steps,
                "draws": plan.draws if adaptive else 1,
                "ball": dataclasses.asdict(ball),
                "sigma": sigma,
                "encoder": made_on.encoder.fingerprint,
                "purifier": made_on.purifier.fingerprint if made_on.purifier else None,
                "seed": plan.seed,
                "pictures": [[one.name, one.digest, one.label] for one in taken],
            }
            label = f"{key.encoder}-{key.attack}-{ball.norm}-{ball.epsilon:.4f}-{start:04}"
            path = self.file.attacked_path(re.sub(r"[^\w.-]+", "_", label), settings)
            if not path.exists():
                found = attack_pictures(
                    made_on,
                    sigma,
                    [self._prepared(key.encoder, number) for number in numbers],
                    ball,
                    labels=[labels[number] for number in numbers] if labels else None,
                    steps=plan.steps,
                    draws=plan.draws,
                    seed=seed_of(plan.seed, "attack", settings),
                    batch_size=self._gradient_batch_size,
                    advance=lambda copies: advance(
                        self._costs.of_gradients(key, copies), f"attack on {_described(key)}"
                    ),
                )
                tensors = {str(number): pixels.contiguous() for number, pixels in zip(numbers, found, strict=True)}
                write_file(path, save(tensors, {"settings": json.dumps(settings)}))
            paths.append(path)
        return paths

    def _gallery(self, name: str, advance: Callable[[float, str], None]) -> Gallery:
        smoother = self._smoother(name, NO_PURIFIER)
        features, grids = [], []
        for number in range(len(self.photographs)):
            image = self._prepared(name, number)
            features.append(clean_features(smoother, image))
            grids.append(image.grid)
            advance(0.0, f"{name}, clean pictures")
        return Gallery(features, grids)

    def _prepared(self, encoder: str, number: int) -> PreparedImage:
        return self._encoders[encoder].encoder.prepare(self.photographs[number].read())

    def _smoother(self, encoder: str, purifier: str) -> Smoother:
        return Smoother(self._encoders[encoder].encoder, self._purifiers[purifier])

    def _seconds_of_copy(self, encoder: str, purifier: str) -> float:
        return seconds_of_copy(self._smoother(encoder, purifier), self._prepared(encoder, 0), self.plan.sigmas[0])


def _described(key: PhotographKey) -> str:
    """A cell in words."""
    row = f"{key.encoder}, σ = {key.sigma:g}, {key.purifier}" if key.sigma else f"{key.encoder} without smoothing"
    if key.attack == "none":
        return row
    return f"{row}, {key.attack} {key.norm} {key.radius:.3g}"
