"""Measures every cell of the robustness table: rows × attacks × sizes × samples, attacks fixed and adaptive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fs_runtime.attacks import ATTACKS, Attack, FeaturePipeline, Norm, run_attack
from fs_runtime.attacks.similarity import token_cosine
from fs_runtime.certificate import tight_similarity
from fs_runtime.evaluation.intervals import mean, proportion
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.attack_inputs import AttackInputs
from fs_runtime.evaluation.robustness.attack_settings import attack_settings
from fs_runtime.evaluation.robustness.cells import NO_ATTACK, Cell, CellFile, CellKey
from fs_runtime.evaluation.robustness.defences import UNDEFENDED, Defence, ServedImages, serve_images
from fs_runtime.evaluation.robustness.items import EvaluationItem, with_pixels
from fs_runtime.evaluation.seeds import seed_of
from fs_runtime.system.files import write_file

_ATTACKED_AT_ONCE = 20  # images; they are stored after their attack, so an interruption loses at most these


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Settings of an evaluation: what to measure.

    Attributes:
        attacks: Names in ``ATTACKS``.
        norms: Of the balls.
        sizes: ε in 255ths.
        samples: All values of n.
        steps: Gradient steps; None for each attack's default.
        adaptive_steps: The same for adaptive attacks; None for as many as fixed attacks have.
        restarts: Random starts of each attack.
        draws: Fresh noisy copies per gradient of an adaptive attack.
        adaptive: Whether to make adaptive attacks as well.
        adaptive_images: Number of items of an adaptive cell, the first ones; None for all.
        radius: ℓ2 radius of the certified similarity, in pixels of [0, 1].
        confidence: 1 - α of the certificates.
        seed: Of attacks and noise.
    """

    attacks: tuple[str, ...]
    norms: tuple[Norm, ...]
    sizes: tuple[float, ...]
    samples: tuple[int, ...]
    radius: float
    steps: int | None = None
    adaptive_steps: int | None = None
    restarts: int = 1
    draws: int = 8
    adaptive: bool = True
    adaptive_images: int | None = None
    confidence: float = 0.999
    seed: int = 0

    def attack(self, name: str, *, adaptive: bool = False) -> Attack:
        """The attack with this name, with this plan's steps and restarts."""
        wanted = self.adaptive_steps if adaptive and self.adaptive_steps is not None else self.steps
        steps = {} if wanted is None else {"steps": wanted}
        return ATTACKS[name](restarts=self.restarts, **steps)

    def cells(self, defence: Defence) -> list[CellKey]:
        """All cells of a row, in no particular order."""
        adaptive = (False, True) if self.adaptive and defence.name != UNDEFENDED else (False,)
        counts = self.samples if defence.sigma > 0 else (1,)
        keys = [CellKey(defence.name, NO_ATTACK, None, 0.0, False, n) for n in counts]
        for attack, norm, size in self.attacked():
            keys += [CellKey(defence.name, attack, norm, size, kind, n) for kind in adaptive for n in counts]
        return keys

    def attacked(self) -> Iterator[tuple[str, Norm, float]]:
        """Name, norm and size of every attack."""
        for name in self.attacks:
            for norm in self.norms:
                for size in self.sizes:
                    yield name, norm, size


def evaluate_robustness(
    plan: EvaluationPlan,
    defences: Sequence[Defence],
    items: Sequence[EvaluationItem],
    answerer: Answerer,
    file: CellFile,
    *,
    batch_size: int = 64,
    report: Callable[[str], None] | None = None,
) -> None:
    """Measures the cells that ``file`` does not have yet, and adds each one when it is finished.

    Args:
        plan: What to measure.
        defences: The rows; the first is the undefended model, on which fixed attacks are made.
        items: The questions.
        answerer: The language model.
        file: Stores finished cells.
        batch_size: Most noisy copies in one pass.
        report: Called with a description of each part when it begins.

    Raises:
        ValueError: The first row is not the undefended model.
        TrainingError: The disk is full or cannot be written.
    """
    if not defences or defences[0].name != UNDEFENDED:
        raise ValueError(f"the first row must be {UNDEFENDED!r}, the undefended model: fixed attacks are made on it")
    run = _EvaluationRun(plan, items, answerer, file, batch_size, report or (lambda text: None))
    for defence in defences:
        run.measure(defence, [key for key in plan.cells(defence) if key.attack == NO_ATTACK], None)
    for name, norm, size in plan.attacked():
        for source in defences if plan.adaptive else defences[:1]:
            rows = defences if source.name == UNDEFENDED else [source]
            wanted = {
                row.name: [
                    key
                    for key in plan.cells(row)
                    if (key.attack, key.norm, key.size, key.adaptive) == (name, norm, size, source.name != UNDEFENDED)
                    and key not in file.cells
                ]
                for row in rows
            }
            if not any(wanted.values()):
                continue
            attacked = run.attacked(source, name, norm, size)
            for row in rows:
                run.measure(row, wanted[row.name], attacked)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Results of a row on the images of the first items."""

    served: ServedImages
    answers: list[str]


class _EvaluationRun:
    """A running evaluation; caches the results of the rows without attack."""

    def __init__(
        self,
        plan: EvaluationPlan,
        items: Sequence[EvaluationItem],
        answerer: Answerer,
        file: CellFile,
        batch_size: int,
        report: Callable[[str], None],
    ) -> None:
        self.plan, self.items, self.answerer, self.file = plan, items, answerer, file
        self.batch_size, self.report = batch_size, report
        self._clean: dict[tuple[str, int], _Outcome] = {}

    def attacked(self, source: Defence, name: str, norm: Norm, size: float) -> Tensor:
        """``(B, C, H, W)`` images attacked on a row: all of them, or as many as an adaptive cell has.

        Images that an earlier run attacked under the same settings are read from disk.
        """
        adaptive = source.name != UNDEFENDED
        attack = self.plan.attack(name, adaptive=adaptive)
        count = self.plan.adaptive_images if adaptive else None
        parts = []
        for start in range(0, len(self.items[:count]), _ATTACKED_AT_ONCE):
            self.report(f"{name} {norm} {size:g}/255 on {source.name}, from image {start + 1}")
            items = self.items[:count][start : start + _ATTACKED_AT_ONCE]
            settings = attack_settings(
                source, attack, norm, size, items, self.answerer, draws=self.plan.draws, seed=self.plan.seed
            )
            label = "-".join((source.name.replace(" ", ""), name, norm, f"{size:g}", f"{start:04}"))
            path = self.file.attacked_path(label, settings)
            if path.exists():
                found = load_file(path)["images"]
            else:
                seed = seed_of(self.plan.seed, "attack", f"{label}.safetensors")
                found = self._attack(source, attack, norm, size, items, seed).cpu()
                write_file(path, save({"images": found}, {"settings": json.dumps(settings)}))
            parts.append(found)
        return torch.cat(parts)

    def _attack(
        self, source: Defence, attack: Attack, norm: Norm, size: float, items: Sequence[EvaluationItem], seed: int
    ) -> Tensor:
        smoother, draws = source.smoother, self.plan.draws
        inputs = AttackInputs.of(items, attack, norm, size, smoother.encoder, self.answerer)
        pipeline = FeaturePipeline(
            smoother, source.sigma, inputs.grid, draws=draws, seed=seed, batch_size=self.batch_size
        )
        return run_attack(
            attack,
            [pipeline],
            inputs.images,
            inputs.threat,
            targets=inputs.targets,
            answers=inputs.answers,
            seed=seed,
        )

    def measure(self, row: Defence, keys: Sequence[CellKey], attacked: Tensor | None) -> None:
        """Measures cells of one row that share their images."""
        for key in keys:
            if key in self.file.cells:
                continue
            self.report(f"{row.name}, n = {key.samples}" + ("" if attacked is None else f" under {key.attack}"))
            clean = self._without_attack(row, key.samples)
            found = clean if attacked is None else self._serve(row, key.samples, attacked, str(key))
            self.file.add(self._cell(row, key, clean, found))

    def _without_attack(self, row: Defence, samples: int) -> _Outcome:
        if (row.name, samples) not in self._clean:
            images = torch.stack([item.image.pixels for item in self.items])
            self._clean[row.name, samples] = self._serve(row, samples, images, "clean")
        return self._clean[row.name, samples]

    def _serve(self, row: Defence, samples: int, pixels: Tensor, purpose: str) -> _Outcome:
        items = self.items[: len(pixels)]
        images = [with_pixels(item.image, one) for item, one in zip(items, pixels, strict=True)]
        seed = seed_of(self.plan.seed, "noise", row.name, samples, purpose)
        served = serve_images(
            row, images, samples, seed=seed, confidence=self.plan.confidence, batch_size=self.batch_size
        )
        return _Outcome(served, self.answerer.answer([item.question for item in items], served.embeddings))

    def _cell(self, row: Defence, key: CellKey, clean: _Outcome, found: _Outcome) -> Cell:
        count = len(found.answers)
        items = self.items[:count]
        right = np.array([given == item.answer for given, item in zip(found.answers, items, strict=True)])
        was_right = np.array([given == item.answer for given, item in zip(clean.answers[:count], items, strict=True)])
        at_target = [given == item.target_answer for given, item in zip(found.answers, items, strict=True)]
        attacked = key.attack != NO_ATTACK
        targeted = attacked and self.plan.attack(key.attack).targeted
        served = found.served
        certified = np.zeros(count)
        if row.sigma > 0:
            certified = np.asarray(tight_similarity(served.norm_lower, self.plan.radius, row.sigma))
        known = np.isfinite(served.norm_estimate).all()
        return Cell(
            key=key,
            images=count,
            accuracy=proportion(int(right.sum()), count),
            changed=proportion(int((was_right & ~right).sum()), int(was_right.sum()))
            if attacked and was_right.any()
            else None,
            reached=proportion(sum(at_target), count) if targeted else None,
            similarity=mean(token_cosine(served.features, clean.served.features[:count]).tolist()),
            certified=mean(certified.tolist()),
            score=mean(((1 + served.norm_estimate) / 2).tolist()) if known else None,
            seconds=served.seconds,
            radius=self.plan.radius,
        )
