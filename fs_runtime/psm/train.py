"""Trains a PSM for one encoder in two stages: the purifier, then the mapper behind the finished purifier.

Everything that is random in a step (pictures, noise levels, noise) follows from the seed, the stage and the step's
number, so a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fs_runtime import __version__
from fs_runtime.encoders import VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.psm.checkpoint import CHECKPOINT, STAGES, Checkpoint, Stage, read_checkpoint, write_checkpoint
from fs_runtime.psm.data import Pictures, PreparedPictures, Split, batches, split
from fs_runtime.psm.files import TrainingError
from fs_runtime.psm.losses import LossWeights, mapper_loss, purifier_loss
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.progress import Progress
from fs_runtime.psm.schedule import warm_cosine
from fs_runtime.psm.score import HeldOut, robustness_score
from fs_runtime.psm.storage import save_psm


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How one network is trained: AdamW, linear warm-up, then a cosine down to nothing.

    Attributes:
        epochs: Times that every picture is seen.
        learning_rate: Its peak.
        weight_decay: Of AdamW.
    """

    epochs: float
    learning_rate: float
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class PsmSettings:
    """What to train, and how. A run resumes only with the settings it began with.

    Attributes:
        sigma: Noise levels. The first is the one to be served at; with several, training draws them uniformly between
            the smallest and the largest.
        batch_size: Pictures of one step, over all processes.
        purifier: Of the first stage.
        mapper: Of the second; 2e-4 and 8 epochs are the paper's.
        bare: Share of the mapper's pictures that it sees without the purifier, so that it is of use alone, too.
        weights: Of the losses.
        mapper_width: Channels inside the mapper.
        seed: Fixes weights, order and noise.
        precision: Arithmetic of the passes; weights and optimiser stay in float32.
    """

    sigma: tuple[float, ...] = (0.25,)
    batch_size: int = 32
    purifier: StageSettings = field(default_factory=lambda: StageSettings(epochs=8, learning_rate=1e-3))
    mapper: StageSettings = field(default_factory=lambda: StageSettings(epochs=8, learning_rate=2e-4))
    bare: float = 0.25
    weights: LossWeights = field(default_factory=LossWeights)
    mapper_width: int = 128
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"

    def __post_init__(self) -> None:
        if not self.sigma or not all(0 < level <= 1 for level in self.sigma):
            raise TrainingError(f"sigma must be levels above 0 and at most 1, got {self.sigma}")


def train_psm(
    encoder: VisionEncoder,
    purifier: PsmNetwork,
    pictures: Pictures,
    output: Path,
    settings: PsmSettings,
    *,
    mapper: PsmNetwork | None = None,
    facts: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    checkpoint_every: int = 100,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains both networks and writes them to ``output``; goes on from a checkpoint that lies there.

    Args:
        encoder: Frozen. On the accelerator's device.
        purifier: Fresh, or pretrained to be tuned.
        pictures: To train on; a tenth, at most 64, is kept out to measure with.
        output: Folder for the PSM, its checkpoint and its logs.
        settings: How to train.
        mapper: A trained one to go on with; None for a fresh one.
        facts: What the card is to say beside what is known here: ``encoder.model``, ``data``.
        accelerator: For several processes; by default one is made.
        workers: Processes that read pictures.
        checkpoint_every: Steps from one checkpoint, and score, to the next.
        report: Told about each step, on the main process only.

    Returns:
        The card.

    Raises:
        TrainingError: Too few pictures, a full disk, a checkpoint of another run, or a loss that is not finite.
    """
    accelerator = accelerator or Accelerator(mixed_precision=settings.precision, cpu=encoder.device.type == "cpu")
    run = _Run(encoder, pictures, output, settings, accelerator, workers, checkpoint_every, report)
    networks: dict[str, PsmNetwork] = {
        "purifier": purifier.to(encoder.device),
        "mapper": (mapper or run.new_mapper()).to(encoder.device),
    }
    run.identity["start"] = [fingerprint(network.describe(), network) for network in networks.values()]
    resumed = read_checkpoint(output / CHECKPOINT, run.identity)
    if resumed:
        for stage, weights in resumed.networks.items():
            networks[stage].load_state_dict(weights)
    start = STAGES.index(resumed.stage) if resumed else 0
    for number, stage in enumerate(STAGES):
        if number >= start:
            run.stage(stage, networks, resumed if number == start else None)
    sigma = settings.sigma[0]
    rows = {"none": (False, False), "mapper": (False, True), "purifier": (True, False), "both": (True, True)}
    scores = {
        name: robustness_score(
            encoder,
            run.held_out,
            sigma,
            networks["purifier"] if purified else None,
            networks["mapper"] if mapped else None,
        )
        for name, (purified, mapped) in rows.items()
    }
    card = {
        **(facts or {}),
        "sigma": {"served": sigma, "trained": [min(settings.sigma), max(settings.sigma)]},
        "losses": dataclasses.asdict(settings.weights) | {"feature_unit": run.feature_unit},
        "training": {
            name: value for name, value in dataclasses.asdict(settings).items() if name not in ("sigma", "weights")
        },
        "held_out_score": scores,
        "versions": {"fs_serve": __version__, "torch": torch.__version__},
    }
    if not accelerator.is_main_process:
        return card
    return save_psm(output, networks["purifier"], networks["mapper"], encoder, card)


class _Run:
    """One run: what both stages share."""

    def __init__(
        self,
        encoder: VisionEncoder,
        pictures: Pictures,
        output: Path,
        settings: PsmSettings,
        accelerator: Accelerator,
        workers: int,
        checkpoint_every: int,
        report: Callable[[Progress], None],
    ) -> None:
        self.encoder, self.settings, self.accelerator = encoder, settings, accelerator
        self._output, self._workers, self._every, self._report = output, workers, checkpoint_every, report
        if settings.batch_size % accelerator.num_processes:
            raise TrainingError(
                f"a batch of {settings.batch_size} does not divide over {accelerator.num_processes} processes; "
                "choose another --batch-size"
            )
        share = settings.batch_size // accelerator.num_processes
        self._mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        self._prepared = PreparedPictures(pictures, encoder)
        self._split: Split = split(len(pictures), settings.batch_size)
        self.grid = self._prepared.grid
        self.held_out = HeldOut(
            torch.stack([self._prepared[int(number)] for number in self._split.held_out]), self.grid, settings.seed
        )
        self.identity: dict[str, Any] = {
            "encoder": encoder.fingerprint,
            "pictures": len(pictures),
            **dataclasses.asdict(settings),
        }
        with torch.no_grad():
            clean = encoder.encode(self.held_out.pixels.to(encoder.device)).float()
        self._clean = clean
        # l_stats and l_id are measured in units of the features' own size, so that λ₃ and λ₄ suit every encoder.
        self.feature_unit = float(clean.square().sum(-1).mean().sqrt())

    def new_mapper(self) -> SmoothnessMapper:
        """A fresh mapper, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            mapper = SmoothnessMapper(MapperConfig(self._clean.shape[-1], width=self.settings.mapper_width))
        mapper.calibrate(self._clean.cpu())
        return mapper

    def stage(self, stage: Stage, networks: dict[str, PsmNetwork], resumed: Checkpoint | None) -> None:
        """Trains one network to its end."""
        settings = getattr(self.settings, stage)
        per_epoch = len(self._split.training) // self.settings.batch_size
        steps = round(settings.epochs * per_epoch)  # none leaves the network as it is
        network = networks[stage].train()
        for other in networks.values():
            other.requires_grad_(other is network)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        wrapped, optimizer = self.accelerator.prepare(network, optimizer)
        start, score = 0, math.nan
        if resumed and resumed.optimizer:
            optimizer.load_state_dict(resumed.optimizer)
            start, score = resumed.step, resumed.score
        loss_of = self._purifier_loss if stage == "purifier" else self._mapper_loss
        for step, x in zip(range(start, steps), self._load(stage, start, steps), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warm_cosine(step, steps)
            with self.accelerator.autocast():
                loss = loss_of(wrapped, networks, x, self._generator(stage, step))
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(network.parameters(), 1.0)
            if not bool(torch.isfinite(norm)):
                raise TrainingError(f"the {stage}'s gradient is not finite at step {step}; choose a smaller rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % self._every == 0 or done == steps:
                score = self._score(stage, networks)
                self._keep(Checkpoint(stage, done, score, self._weights(networks, stage), optimizer.state_dict()))
            if self.accelerator.is_main_process:
                self._report(Progress(stage, done, steps, float(loss.detach()), score))
        network.eval().requires_grad_(False)

    def _score(self, stage: Stage, networks: dict[str, PsmNetwork]) -> float:
        mapper = networks["mapper"] if stage == "mapper" else None
        return robustness_score(self.encoder, self.held_out, self.settings.sigma[0], networks["purifier"], mapper)

    def _purifier_loss(
        self, purifier: nn.Module, networks: dict[str, PsmNetwork], x: Tensor, generator: torch.Generator
    ) -> Tensor:
        noisy, sigma = self._noisy(x, generator)
        with torch.no_grad():
            clean = self.encoder.encode(x)
        purified = purifier(noisy, sigma)
        return purifier_loss(purified, x, sigma, self.encoder.encode(purified), clean, self.settings.weights)

    def _mapper_loss(
        self, mapper: nn.Module, networks: dict[str, PsmNetwork], x: Tensor, generator: torch.Generator
    ) -> Tensor:
        noisy, sigma = self._noisy(x, generator)
        draws = torch.rand(self.settings.batch_size, 1, 1, 1, generator=generator, device=x.device)[self._mine]
        bare = draws < self.settings.bare
        with torch.no_grad():
            purified = torch.where(bare, noisy, networks["purifier"](noisy, sigma))
            clean, features = self.encoder.encode(torch.cat([x, purified])).chunk(2)
        # One pass for both levels, since several processes average gradients once a pass.
        both = mapper(torch.cat([features, clean]), torch.cat([sigma, torch.zeros_like(sigma)]), self.grid)
        mapped, mapped_clean = (both.float() / self.feature_unit).chunk(2)
        return mapper_loss(mapped, mapped_clean, clean.float() / self.feature_unit, self.settings.weights)

    def _noisy(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noisy copies and their levels. All processes draw the whole batch's noise, and each takes its part."""
        low, high = min(self.settings.sigma), max(self.settings.sigma)
        whole = self.settings.batch_size
        sigma = low + (high - low) * torch.rand(whole, generator=generator, device=x.device)[self._mine]
        noise = torch.randn(whole, *x.shape[1:], generator=generator, device=x.device)[self._mine]
        return x + sigma.view(-1, 1, 1, 1) * noise, sigma

    def _generator(self, stage: Stage, step: int) -> torch.Generator:
        words = (self.settings.seed, STAGES.index(stage), step)
        seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        return torch.Generator(self.encoder.device).manual_seed(seed >> 1)

    def _load(self, stage: Stage, start: int, steps: int) -> Iterator[Tensor]:
        """This process's part of each batch, on the device."""
        stream = (self.settings.seed, 1 + STAGES.index(stage))
        numbers = batches(self._split.training, self.settings.batch_size, stream, start, steps)
        mine = [batch[self._mine] for batch in numbers]
        pin = self.encoder.device.type == "cuda"
        for x in DataLoader(self._prepared, batch_sampler=mine, num_workers=self._workers, pin_memory=pin):
            yield x.to(self.encoder.device, non_blocking=True)

    @staticmethod
    def _weights(networks: dict[str, PsmNetwork], stage: Stage) -> dict[str, dict[str, Tensor]]:
        """Weights of this stage's network and those before."""
        return {name: networks[name].state_dict() for name in STAGES[: STAGES.index(stage) + 1]}

    def _keep(self, checkpoint: Checkpoint) -> None:
        if self.accelerator.is_main_process:
            write_checkpoint(self._output / CHECKPOINT, checkpoint, self.identity)
        self.accelerator.wait_for_everyone()
