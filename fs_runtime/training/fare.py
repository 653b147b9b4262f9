"""FARE: trains a vision tower so that its features under attack stay those of the original tower on clean images.

Source: Schlarmann, Singh, Croce and Hein, "Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for
Robust Large Vision-Language Models", ICML 2024 (arXiv 2402.12336), equation 3:

    L(φ, x) = max_{‖z − x‖∞ ≤ ε} ‖φ(z) − φ_orig(x)‖²

It needs neither labels nor the language model, and the result replaces the original tower before the projector. The
paper uses the distance of CLIP's class token; here it is the mean over the tokens that the projector reads.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fs_runtime import __version__
from fs_runtime.attacks.inner import feature_distance, worst_case
from fs_runtime.attacks.similarity import token_cosine
from fs_runtime.attacks.threat_model import ThreatModel
from fs_runtime.encoders import VisionEncoder
from fs_runtime.encoders.robust_tower import save_robust_encoder
from fs_runtime.options import MixedPrecision
from fs_runtime.system.files import TrainingError
from fs_runtime.training.data import Pictures
from fs_runtime.training.loop import StageSettings, TrainingLoop
from fs_runtime.training.progress import Progress

STAGE = "robust encoder"
_JUDGING_STEPS = 10


@dataclass(frozen=True, slots=True)
class RobustEncoderSettings:
    """Settings of FARE. A run resumes only with the settings it began with.

    Attributes:
        epsilon: Radius ε of the ℓ∞ ball, in pixels of [0, 1].
        attack_steps: PGD steps of the inner maximisation in each training step; 10 in the paper.
        optimisation: Of the tower.
        batch_size: Pictures of one step, over all processes.
        seed: Of order and starting points.
        precision: Arithmetic of the passes; weights and optimiser stay in float32.
    """

    epsilon: float = 8 / 255
    attack_steps: int = 10
    optimisation: StageSettings = field(default_factory=lambda: StageSettings(epochs=2, learning_rate=1e-5))
    batch_size: int = 32
    seed: int = 0
    precision: MixedPrecision = "no"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise TrainingError(f"epsilon must lie between 0 and 1 in pixels of [0, 1]; got {self.epsilon}")
        if self.attack_steps < 1:
            raise TrainingError(f"attack steps must be at least 1; got {self.attack_steps}")


class _Student(nn.Module):
    """The tower in training, as one module from pixels to token features."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        assert encoder.tower is not None  # noqa: S101 (checked by with_tower)
        self.tower = encoder.tower
        self._encode = encoder.encode

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(x)


def train_robust_encoder(
    encoder: VisionEncoder,
    pictures: Pictures,
    output: Path,
    settings: RobustEncoderSettings,
    *,
    facts: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    checkpoint_every: int = 100,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains a copy of the encoder's tower and writes it to ``output``; resumes from a checkpoint there.

    The score is the mean cosine, over tokens of held-out pictures, between the original tower's clean features and the
    trained tower's features under a PGD attack of ten steps.

    Args:
        encoder: The original, which does not change. On the accelerator's device.
        pictures: To train on; a tenth, at most 64, is held out.
        output: Folder for the tower, its checkpoint and its logs.
        settings: How to train.
        facts: Further entries of the card: ``encoder.model``, ``data``.
        accelerator: For several processes; created by default.
        workers: Processes that read pictures.
        checkpoint_every: Steps between checkpoints, and between scores.
        report: Called after each step, on the main process only.

    Returns:
        The card.

    Raises:
        TrainingError: The family's tower cannot be replaced, there are too few pictures, the disk is full, a
            checkpoint is of another run, or the loss is not finite.
    """
    if encoder.tower is None:
        raise TrainingError(f"the vision tower of family {encoder.family} cannot be trained by itself")
    accelerator = accelerator or Accelerator(mixed_precision=settings.precision, cpu=encoder.device.type == "cpu")
    loop = TrainingLoop(
        encoder,
        pictures,
        output,
        (STAGE,),
        dataclasses.asdict(settings),
        batch_size=settings.batch_size,
        seed=settings.seed,
        accelerator=accelerator,
        workers=workers,
        checkpoint_every=checkpoint_every,
        report=report,
    )
    held_out = loop.held_out.pixels.to(encoder.device)
    with torch.no_grad():
        held_out_clean = encoder.encode(held_out).float()
    # Distances are measured in units of the features' own size, so that rates and clipping suit every encoder.
    unit = float(held_out_clean.square().sum(-1).mean())
    student = _Student(encoder.with_tower(copy.deepcopy(encoder.tower)))
    threat = ThreatModel("linf", settings.epsilon)

    def losses(network: nn.Module, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        with torch.no_grad():
            clean = encoder.encode(x)
        shift = settings.epsilon * (2 * loop.draw(torch.rand, generator, tuple(x.shape[1:])) - 1)
        # PGD bypasses the distributed wrapper, which counts forward passes.
        attacked = worst_case(student, x, clean, threat.project(x + shift, x), threat, settings.attack_steps)
        yield feature_distance(network(attacked), clean).mean() / unit

    def cosine(network: nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            return float(token_cosine(network(x).float(), held_out_clean).mean())

    def cosine_attacked(network: nn.Module) -> float:
        start = threat.random_start(held_out, torch.Generator(encoder.device).manual_seed(settings.seed))
        return cosine(network, worst_case(network, held_out, held_out_clean, start, threat, _JUDGING_STEPS))

    resumed = loop.resume({STAGE: student})
    loop.stage(STAGE, {STAGE: student}, settings.optimisation, losses, lambda: cosine_attacked(student), resumed)
    card = {
        **(facts or {}),
        "training": dataclasses.asdict(settings),
        "held_out_cosine": {
            "clean": cosine(student, held_out),
            "attacked": cosine_attacked(student),
            "attacked, original": cosine_attacked(_Student(encoder)),
        },
        "versions": {"fs_serve": __version__, "torch": torch.__version__},
    }
    if not accelerator.is_main_process:
        return card
    return save_robust_encoder(output, encoder, student.tower, card)
