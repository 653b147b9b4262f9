"""The training loop: batches, optimiser, learning-rate schedule, checkpoints and resuming.

All randomness of a step (pictures, noise levels, noise) depends on the seed, the stage and the step's number alone, so
a resumed run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from fs_runtime.encoders import VisionEncoder
from fs_runtime.system.files import TrainingError
from fs_runtime.training.checkpoint import CHECKPOINT, TrainingCheckpoint, read_checkpoint, write_checkpoint
from fs_runtime.training.data import Pictures, PreparedPictures, batches, digest, split
from fs_runtime.training.progress import Progress
from fs_runtime.training.score import HeldOut


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How one network is trained: AdamW, linear warm-up, then a cosine decay to 0.

    Attributes:
        epochs: Passes over the pictures.
        learning_rate: Its peak.
        weight_decay: Of AdamW.

    Raises:
        TrainingError: A value is negative or not finite.
    """

    epochs: float
    learning_rate: float
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise TrainingError(f"{name.replace('_', ' ')} must be finite and not negative; got {value}")


class TrainingLoop:
    """Trains networks one after another, each in its own stage, on batches of preprocessed pictures.

    Args:
        encoder: Provides preprocessing and device.
        pictures: To train on; a tenth, at most 64, is held out.
        output: Folder for the checkpoint.
        stages: Names of all stages, in order.
        identity: Identifies the run, as JSON values; a checkpoint of another run is refused. Entries may be added until
            :meth:`resume`.
        batch_size: Pictures of one step, over all processes.
        seed: Of order and noise.
        accelerator: For several processes and mixed precision.
        workers: Processes that read pictures.
        checkpoint_every: Steps between checkpoints, and between scores.
        report: Called after each step, on the main process only.

    Raises:
        TrainingError: Too few pictures, or a batch that does not divide over the processes.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        pictures: Pictures,
        output: Path,
        stages: tuple[str, ...],
        identity: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
        workers: int = 0,
        checkpoint_every: int = 100,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._encoder, self._accelerator = encoder, accelerator
        self._path, self._stages = output / CHECKPOINT, stages
        self._batch_size, self._seed = batch_size, seed
        self._workers, self._every, self._report = workers, checkpoint_every, report
        if batch_size % accelerator.num_processes:
            raise TrainingError(
                f"a batch of {batch_size} does not divide over {accelerator.num_processes} processes; "
                "choose another --batch-size"
            )
        share = batch_size // accelerator.num_processes
        self._mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        self._prepared = PreparedPictures(pictures, encoder)
        self._split = split(len(pictures), batch_size)
        self.held_out = HeldOut(
            torch.stack([self._prepared[int(number)] for number in self._split.held_out]), self._prepared.grid, seed
        )
        data = {"pictures": len(pictures), "pictures_sha256": digest(pictures)}
        self.identity = {"encoder": encoder.fingerprint, **data, **identity}

    def resume(self, networks: Mapping[str, nn.Module]) -> TrainingCheckpoint | None:
        """Reads the checkpoint, if there is one, and loads its weights into the networks, one for each stage.

        Raises:
            TrainingError: The checkpoint belongs to another run, or cannot be read.
        """
        resumed = read_checkpoint(self._path, self.identity)
        if resumed:
            for stage, weights in resumed.networks.items():
                networks[stage].load_state_dict(weights)
        return resumed

    def stage(
        self,
        stage: str,
        networks: Mapping[str, nn.Module],
        settings: StageSettings,
        losses_of: Callable[[nn.Module, Tensor, torch.Generator], Iterable[Tensor]],
        score_of: Callable[[], float],
        resumed: TrainingCheckpoint | None,
    ) -> None:
        """Trains one network to its end, and leaves it in evaluation mode, without gradients.

        Args:
            stage: Its name.
            networks: By stage; all but this stage's are frozen.
            settings: Of the optimisation.
            losses_of: Yields losses, given the network as the accelerator wrapped it, this process's ``(B, C, H, W)``
                pixels, and a generator for the randomness of the step. The weights are updated after each loss, before
                the next one is computed.
            score_of: Scores the network on the held-out pictures.
            resumed: The checkpoint of this stage to resume from.

        Raises:
            TrainingError: A full disk, or a loss that is not finite.
        """
        per_epoch = len(self._split.training) // self._batch_size
        steps = round(settings.epochs * per_epoch)  # 0 leaves the network unchanged
        network = networks[stage].train()
        for other in networks.values():
            other.requires_grad_(other is network)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        wrapped, optimizer = self._accelerator.prepare(network, optimizer)
        start, score = 0, math.nan
        if resumed and resumed.optimizer:
            optimizer.load_state_dict(resumed.optimizer)
            start, score = resumed.step, resumed.score
        for step, x in zip(range(start, steps), self._load(stage, start, steps), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(step, steps)
            losses = iter(losses_of(wrapped, x, self._generator(stage, step)))
            while True:
                with self._accelerator.autocast():
                    following = next(losses, None)
                if following is None:
                    break
                loss = following
                self._accelerator.backward(loss)
                norm = self._accelerator.clip_grad_norm_(network.parameters(), 1.0)
                if not bool(torch.isfinite(norm)):
                    raise TrainingError(f"the {stage}'s gradient is not finite at step {step}; choose a smaller rate")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % self._every == 0 or done == steps:
                score = score_of()
                before = self._stages[: self._stages.index(stage) + 1]
                weights = {name: networks[name].state_dict() for name in before}
                self._save(TrainingCheckpoint(stage, done, score, weights, optimizer.state_dict()))
            if self._accelerator.is_main_process:
                self._report(Progress(stage, done, steps, float(loss.detach()), score))
        network.eval().requires_grad_(False)

    def draw(self, sample: Callable[..., Tensor], generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        """``(B, *shape)`` random values for this process's pictures.

        Each process draws the values of the whole batch and takes its part, so the number of processes does not matter.

        Args:
            sample: ``torch.rand`` or ``torch.randn``.
            generator: Of this step.
            shape: Of one picture's values.
        """
        values = sample(self._batch_size, *shape, generator=generator, device=self._encoder.device)
        return values[self._mine]

    def average(self, x: Tensor) -> Tensor:
        """Mean of a tensor over all processes, with gradients. All processes must call it in the same order."""
        if self._accelerator.num_processes == 1:
            return x
        mean: Tensor = _ProcessMean.apply(x)  # type: ignore[no-untyped-call]
        return mean

    def _generator(self, stage: str, step: int) -> torch.Generator:
        words = (self._seed, self._stages.index(stage), step)
        seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        return torch.Generator(self._encoder.device).manual_seed(seed >> 1)

    def _load(self, stage: str, start: int, steps: int) -> Iterator[Tensor]:
        """This process's part of each batch, on the device."""
        stream = (self._seed, 1 + self._stages.index(stage))
        numbers = batches(self._split.training, self._batch_size, stream, start, steps)
        mine = [batch[self._mine] for batch in numbers]
        pin = self._encoder.device.type == "cuda"
        for x in DataLoader(self._prepared, batch_sampler=mine, num_workers=self._workers, pin_memory=pin):
            yield x.to(self._encoder.device, non_blocking=True)

    def _save(self, checkpoint: TrainingCheckpoint) -> None:
        if self._accelerator.is_main_process:
            write_checkpoint(self._path, checkpoint, self.identity)
        self._accelerator.wait_for_everyone()


class _ProcessMean(torch.autograd.Function):
    """Mean over all processes. It is its own adjoint, since each process's loss depends on every process's value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean_over_processes(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean_over_processes(gradient)


def _mean_over_processes(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def warmup_cosine(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: linear warm-up over a twentieth of the steps (at most 200), then a cosine."""
    rise = max(1, min(200, steps // 20))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
