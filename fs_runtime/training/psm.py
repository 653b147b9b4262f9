"""Trains a PSM for one encoder in two stages: the purifier, then the mapper behind the finished purifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fs_runtime import __version__
from fs_runtime.attacks.inner import feature_distance, replays, worst_case
from fs_runtime.attacks.threat_model import ThreatModel
from fs_runtime.encoders import VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.options import MixedPrecision
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.storage import save_psm
from fs_runtime.system.files import TrainingError
from fs_runtime.training.checkpoint import TrainingCheckpoint
from fs_runtime.training.data import Pictures
from fs_runtime.training.loop import StageSettings, TrainingLoop
from fs_runtime.training.losses import LossWeights, mapper_loss, purifier_loss
from fs_runtime.training.progress import Progress
from fs_runtime.training.score import robustness_score

STAGES = ("purifier", "mapper")


@dataclass(frozen=True, slots=True)
class PsmSettings:
    """Settings of the training of a PSM. A run resumes only with the settings it began with.

    Attributes:
        sigma: Noise levels; the first is the one to serve at. With several, training draws levels uniformly between the
            smallest and the largest.
        batch_size: Pictures of one step, over all processes.
        purifier: Settings of the first stage.
        mapper: Settings of the second; 2e-4 and 8 epochs are the paper's.
        bare: Share of the mapper's pictures that skip the purifier, so that the mapper also works alone.
        weights: Of the losses.
        mapper_width: Hidden width of a fresh mapper.
        epsilon: Radius of the ℓ∞ ball of adversarial training, in pixels of [0, 1]; 0 trains on clean pictures only.
        attack_steps: PGD steps that attack a batch before it is trained on.
        replays: Times in a row that a batch is trained on, with new noise and one more attack step each time; needs
            ``epsilon``.
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
    epsilon: float = 0.0
    attack_steps: int = 2
    replays: int = 1
    seed: int = 0
    precision: MixedPrecision = "no"

    def __post_init__(self) -> None:
        if not self.sigma or not all(0 < level <= 1 for level in self.sigma):
            raise TrainingError(f"sigma must be levels above 0 and at most 1, got {self.sigma}")
        if not 0 <= self.epsilon < 1:
            raise TrainingError(f"epsilon must be at least 0 and below 1 in pixels of [0, 1]; got {self.epsilon}")
        if self.attack_steps < 0 or self.replays < 1 or self.attack_steps + self.replays < 2:
            raise TrainingError(
                "attack steps must be at least 1, or 0 with 2 replays or more; "
                f"got {self.attack_steps} attack steps and {self.replays} replays"
            )
        if self.replays > 1 and not self.epsilon:
            raise TrainingError("replays are for training against attacks, and epsilon is 0")
        if not 0 <= self.bare <= 1:
            raise TrainingError(f"bare is a share from 0 to 1; got {self.bare}")
        try:
            MapperConfig(features=1, width=self.mapper_width)
        except ValueError as error:
            raise TrainingError(str(error)) from None


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
    """Trains both networks and writes them to ``output``; resumes from a checkpoint there.

    Args:
        encoder: Frozen. On the accelerator's device.
        purifier: Fresh, or pretrained, to be fine-tuned.
        pictures: To train on; a tenth, at most 64, is held out.
        output: Folder for the PSM, its checkpoint and its logs.
        settings: How to train.
        mapper: Pretrained, to be fine-tuned; None for a fresh one.
        facts: Further entries of the card: ``encoder.model``, ``data``.
        accelerator: For several processes; created by default.
        workers: Processes that read pictures.
        checkpoint_every: Steps between checkpoints, and between scores.
        report: Called after each step, on the main process only.

    Returns:
        The card.

    Raises:
        TrainingError: Too few pictures, a full disk, a checkpoint of another run, or a loss that is not finite.
    """
    accelerator = accelerator or Accelerator(mixed_precision=settings.precision, cpu=encoder.device.type == "cpu")
    loop = TrainingLoop(
        encoder,
        pictures,
        output,
        STAGES,
        dataclasses.asdict(settings),
        batch_size=settings.batch_size,
        seed=settings.seed,
        accelerator=accelerator,
        workers=workers,
        checkpoint_every=checkpoint_every,
        report=report,
    )
    run = _PsmRun(encoder, settings, loop)
    networks: dict[str, PsmNetwork] = {
        "purifier": purifier.to(encoder.device),
        "mapper": (mapper or run.new_mapper()).to(encoder.device),
    }
    loop.identity["start"] = [fingerprint(network.describe(), network) for network in networks.values()]
    resumed = loop.resume(networks)
    start = STAGES.index(resumed.stage) if resumed else 0
    for number, stage in enumerate(STAGES):
        if number >= start:
            run.stage(stage, networks, resumed if number == start else None)
    sigma = settings.sigma[0]
    rows = {"none": (False, False), "mapper": (False, True), "purifier": (True, False), "both": (True, True)}
    scores = {
        name: robustness_score(
            encoder,
            loop.held_out,
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
        }
        | {"mapper_width": networks["mapper"].describe()["width"]},
        "held_out_score": scores,
        "versions": {"fs_serve": __version__, "torch": torch.__version__},
    }
    if not accelerator.is_main_process:
        return card
    return save_psm(output, networks["purifier"], networks["mapper"], encoder, card)


class _PsmRun:
    """The two stages of a run, and the state that they share."""

    def __init__(self, encoder: VisionEncoder, settings: PsmSettings, loop: TrainingLoop) -> None:
        self.encoder, self.settings, self.loop = encoder, settings, loop
        with torch.no_grad():
            self._clean = encoder.encode(loop.held_out.pixels.to(encoder.device)).float()
        # l_stats and l_id are measured in units of the features' own size, so that λ₃ and λ₄ suit every encoder.
        self.feature_unit = float(self._clean.square().sum(-1).mean().sqrt())

    def new_mapper(self) -> SmoothnessMapper:
        """A fresh mapper, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            mapper = SmoothnessMapper(MapperConfig(self._clean.shape[-1], width=self.settings.mapper_width))
        mapper.calibrate(self._clean.cpu())
        return mapper

    def stage(self, stage: str, networks: dict[str, PsmNetwork], resumed: TrainingCheckpoint | None) -> None:
        """Trains one network to its end."""
        purifier = networks["purifier"]
        mapper = networks["mapper"] if stage == "mapper" else None

        def losses(network: nn.Module, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
            # PGD bypasses the distributed wrapper, which counts forward passes.
            if mapper is None:
                return self._purifier_losses(network, purifier, x, generator)
            return self._mapper_losses(network, mapper, purifier, x, generator)

        def score() -> float:
            return robustness_score(self.encoder, self.loop.held_out, self.settings.sigma[0], purifier, mapper)

        self.loop.stage(stage, networks, getattr(self.settings, stage), losses, score, resumed)

    def _purifier_losses(
        self, purifier: nn.Module, unwrapped: nn.Module, x: Tensor, generator: torch.Generator
    ) -> Iterator[Tensor]:
        noise, sigma = self._noise(x, generator)
        with torch.no_grad():
            clean = self.encoder.encode(x)
        worst = self._worst(lambda z: self.encoder.encode(unwrapped(z + noise, sigma)), x, clean, generator)
        for moved in self._replayed(x, worst):
            purified = purifier(moved + noise, sigma)
            features = self.encoder.encode(purified)
            loss = purifier_loss(purified, x, sigma, features, clean, self.settings.weights)
            yield loss + self._distance(features, clean)
            noise, sigma = self._noise(x, generator)

    def _mapper_losses(
        self, mapper: nn.Module, unwrapped: nn.Module, purifier: nn.Module, x: Tensor, generator: torch.Generator
    ) -> Iterator[Tensor]:
        noise, sigma = self._noise(x, generator)
        grid = self.loop.held_out.grid
        skip = self.loop.draw(torch.rand, generator, (1, 1, 1)) < self.settings.bare

        def encode(z: Tensor) -> Tensor:
            return self.encoder.encode(torch.where(skip, z + noise, purifier(z + noise, sigma)))

        with torch.no_grad():
            clean = self.encoder.encode(x)
        worst = self._worst(lambda z: unwrapped(encode(z), sigma, grid), x, clean, generator)
        for moved in self._replayed(x, worst):
            with torch.set_grad_enabled(moved.requires_grad):
                features = encode(moved)
            # One pass for both noise levels, since the distributed wrapper averages gradients once per pass.
            both = mapper(torch.cat([features, clean]), torch.cat([sigma, torch.zeros_like(sigma)]), grid)
            mapped, mapped_clean = both.float().chunk(2)
            unit = self.feature_unit
            loss = mapper_loss(
                mapped / unit, mapped_clean / unit, clean.float() / unit, self.settings.weights, self.loop.average
            )
            yield loss + self._distance(mapped, clean)
            noise, sigma = self._noise(x, generator)

    def _worst(
        self, features: Callable[[Tensor], Tensor], x: Tensor, clean: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The pictures to train on: the worst that PGD finds in the ball for this draw of the noise."""
        epsilon, steps = self.settings.epsilon, self.settings.attack_steps
        if not epsilon:
            return x
        threat = ThreatModel("linf", epsilon)
        shift = epsilon * (2 * self.loop.draw(torch.rand, generator, tuple(x.shape[1:])) - 1)
        start = threat.project(x + shift, x)
        return worst_case(features, x, clean, start, threat, steps) if steps else start

    def _replayed(self, x: Tensor, worst: Tensor) -> Iterable[Tensor]:
        """The pictures of each replay."""
        if self.settings.replays == 1:
            return (worst,)
        return replays(x, worst, ThreatModel("linf", self.settings.epsilon), self.settings.replays)

    def _distance(self, features: Tensor, clean: Tensor) -> Tensor:
        """The loss that attacks maximise, in units of the features' mean square; 0 without attacks."""
        if not self.settings.epsilon:
            return features.new_zeros(())
        return self.settings.weights.attack * feature_distance(features, clean).mean() / self.feature_unit**2

    def _noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise of each picture, and its level."""
        low, high = min(self.settings.sigma), max(self.settings.sigma)
        sigma = low + (high - low) * self.loop.draw(torch.rand, generator)
        return sigma.view(-1, 1, 1, 1) * self.loop.draw(torch.randn, generator, tuple(x.shape[1:])), sigma
