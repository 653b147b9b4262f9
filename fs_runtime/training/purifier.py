"""Trains a purifier for photographs and any encoder, on synthetic pictures (dead leaves), on photographs, or on both.

All randomness of a step depends on the seed and the step's number alone, so a resumed run ends with the same weights as
an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from fs_runtime import __version__
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.options import MixedPrecision
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.system.files import TrainingError
from fs_runtime.training.checkpoint import CHECKPOINT, TrainingCheckpoint, read_checkpoint, write_checkpoint
from fs_runtime.training.data import Chosen, Pictures, Split, digest, split
from fs_runtime.training.dead_leaves import VERSION, LeavesStream, leaves_picture
from fs_runtime.training.loop import warmup_cosine
from fs_runtime.training.photo_crops import PhotoCrops
from fs_runtime.training.progress import Progress
from fs_runtime.training.teachers import Teacher, feature_distance

_SERVED = 0.25  # the noise level that the paper and the gateway use
_MEASURED = (0.1, _SERVED, 0.5)  # noise levels of the table in the card
_HELD_OUT = 24  # pictures
_SIDE = 224  # pixels a side of those
_LEAST_ERROR = 1e-6  # added to mean squared errors, which limits the PSNR to 60 dB
_DATA_STD = 0.25  # of pixels, for the unit of the loss
_STREAMS = {"noise": 2, "held out": 3}


@dataclass(frozen=True, slots=True)
class PurifierSettings:
    """Settings of the training of a purifier. A run resumes only with the settings it began with.

    Attributes:
        steps: Number of steps; the learning rate has a linear warm-up and then a cosine decay to 0.
        batch_size: Crops of one step.
        crop: Pixels per side of a crop.
        learning_rate: Peak learning rate of AdamW.
        sigma: Smallest and largest noise level. Noise levels are log-uniform, for half of the crops on this range and
            for half on ``focus``.
        focus: Range of the noise levels that matter most.
        average: Decay of the running mean of the weights, which is the result.
        seed: Fixes weights, pictures and noise.
        precision: Arithmetic of the passes; weights and optimiser stay in float32.
        leaves: Share of the crops that are dead leaves where there are photographs too; all of them without.
        features: Weight of the teachers' loss beside that of pixels.
    """

    steps: int = 20_000
    batch_size: int = 4
    crop: int = 96
    learning_rate: float = 8e-4
    sigma: tuple[float, float] = (0.05, 1.0)
    focus: tuple[float, float] = (0.1, 0.5)
    average: float = 0.999
    seed: int = 0
    precision: MixedPrecision = "bf16"
    leaves: float = 0.5
    features: float = 4.0

    def __post_init__(self) -> None:
        for name in ("sigma", "focus"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise TrainingError(
                    f"{name} must be two levels above 0 and at most 1 in rising order, got {low}, {high}"
                )
        if not 0 <= self.learning_rate < math.inf:
            raise TrainingError(f"learning rate must be finite and not negative; got {self.learning_rate}")
        if not 0 <= self.leaves <= 1:
            raise TrainingError(f"the share of leaves is between 0 and 1; got {self.leaves}")
        if not 0 <= self.features < math.inf:
            raise TrainingError(f"the weight of features must be finite and not negative; got {self.features}")


def train_purifier(
    purifier: PsmNetwork,
    output: Path,
    settings: PurifierSettings,
    *,
    pictures: Pictures | None = None,
    teachers: Sequence[Teacher] = (),
    device: torch.device | None = None,
    workers: int = 1,
    checkpoint_every: int = 500,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains ``purifier`` and sets it to the mean weights; resumes from a checkpoint in ``output``.

    The loss is each crop's root mean squared error, divided by that of the best linear shrinkage, so that all noise
    levels have equal weight. It is a compromise: detailed crops would dominate the squared error, and flat crops its
    logarithm. Teachers add the distance of purified from clean features (:func:`feature_distance`), so that the
    purifier keeps what encoders see, at the price of some PSNR.

    Args:
        purifier: Fresh, or pretrained.
        output: Folder of the checkpoint.
        settings: How to train.
        pictures: Photographs; without, all crops are dead leaves. Some are held out (:func:`split`).
        teachers: Encoders to learn from, on ``device``.
        device: Where to train; the CPU by default.
        workers: Processes that draw pictures.
        checkpoint_every: Steps between checkpoints, and between scores.
        report: Called after each step.

    Returns:
        Facts for the card: data, settings, noise levels, table of PSNR on held-out synthetic pictures, versions.

    Raises:
        TrainingError: A full disk, a checkpoint of another run, or a gradient that is not finite.
    """
    device = device or torch.device("cpu")
    purifier.to(device).train().requires_grad_(True)
    identity = {"start": fingerprint(purifier.describe(), purifier), "generator": VERSION} | _used(
        settings, pictures, teachers
    )
    if pictures is not None and len(pictures) < 2:
        raise TrainingError("one photograph is too few, since one is held out; give --images a folder with more")
    chosen = None if pictures is None else split(len(pictures), 1)
    mean = {name: parameter.detach().clone() for name, parameter in purifier.named_parameters()}
    optimizer = torch.optim.AdamW(
        purifier.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    resumed = read_checkpoint(output / CHECKPOINT, identity)
    start, score = 0, math.nan
    if resumed:
        purifier.load_state_dict(resumed.networks["purifier"])
        for name, tensor in mean.items():
            tensor.copy_(resumed.networks["mean"][name])
        optimizer.load_state_dict(resumed.optimizer)
        start, score = resumed.step, resumed.score
    held_out = _held_out(settings.seed)
    stream = LeavesStream(settings.seed, settings.batch_size, settings.crop)
    crops = stream.batches(start, settings.steps, workers)
    if pictures is not None and chosen is not None:
        photographs = PhotoCrops(Chosen(pictures, chosen.training), settings.crop, settings.seed)
        crops = photographs.mixed_into(crops, start, 1 - settings.leaves, workers)
    for step, clean in enumerate(crops, start=start):
        rate = settings.learning_rate * warmup_cosine(step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(purifier, clean.to(device, non_blocking=True), settings, step, teachers)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(purifier.parameters(), 1.0)
        if not bool(torch.isfinite(norm)):
            raise TrainingError(f"the gradient is not finite at step {step}; choose a smaller learning rate")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(settings.average, (step + 1) / (step + 10))  # small at first, to forget the first steps soon
        torch._foreach_lerp_(list(mean.values()), [p.detach() for p in purifier.parameters()], 1 - decay)
        done = step + 1
        if done % checkpoint_every == 0 or done == settings.steps:
            score = _with(purifier, mean, lambda: _psnr(purifier, held_out, _SERVED, settings.seed))
            networks = {"purifier": purifier.state_dict(), "mean": mean}
            write_checkpoint(
                output / CHECKPOINT,
                TrainingCheckpoint("purifier", done, score, networks, optimizer.state_dict()),
                identity,
            )
        report(Progress("purifier", done, settings.steps, float(loss.detach()), score))
    with torch.no_grad():
        for name, parameter in purifier.named_parameters():
            parameter.copy_(mean[name])
    purifier.eval().requires_grad_(False)
    data: dict[str, Any] = {"kind": "dead leaves", "generator": VERSION, "photographs": 0}
    if pictures is not None and chosen is not None:
        data |= {"kind": "photographs", "photographs": len(chosen.training), "leaves": settings.leaves}
        if settings.leaves:
            data["kind"] = "dead leaves and photographs"
    learnt: dict[str, Any] = {}
    if teachers:
        samples = held_out if pictures is None or chosen is None else _middles(pictures, chosen, settings.crop)
        learnt["teachers"] = [
            {
                "model": teacher.name,
                "family": teacher.encoder.family,
                "fingerprint": teacher.encoder.fingerprint,
                "held_out_fidelity": {
                    str(sigma): _fidelity(purifier, teacher, samples, sigma, settings.seed) for sigma in _MEASURED
                },
            }
            for teacher in teachers
        ]
    return learnt | {
        "data": data,
        "sigma": {"served": _SERVED, "trained": list(settings.sigma), "focus": list(settings.focus)},
        "training": {
            name: value
            for name, value in _used(settings, pictures, teachers).items()
            if name not in ("sigma", "pictures", "teachers")
        },
        "held_out_psnr": {str(sigma): _psnr(purifier, held_out, sigma, settings.seed) for sigma in _MEASURED},
        "versions": {"fs_serve": __version__, "torch": torch.__version__},
    }


def _used(settings: PurifierSettings, pictures: Pictures | None, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """What a run is told by; a run without photographs and teachers as before there were any."""
    used = dataclasses.asdict(settings)
    for name, there in (("leaves", pictures is not None), ("features", bool(teachers))):
        if not there:
            del used[name]
    if pictures is not None:
        used["pictures"] = digest(pictures)
    if teachers:
        used["teachers"] = [teacher.encoder.fingerprint for teacher in teachers]
    return used


def _loss(
    purifier: nn.Module, clean: Tensor, settings: PurifierSettings, step: int, teachers: Sequence[Teacher]
) -> Tensor:
    generator = _generator(settings.seed, "noise", step)  # on the CPU, so that it is the same on every device
    count = len(clean)
    share = torch.rand(count, generator=generator)
    low, high = torch.tensor([settings.sigma, settings.focus], dtype=torch.float32).log().unbind(-1)
    narrow = (torch.rand(count, generator=generator) < 0.5).long()
    sigma = (low[narrow] + (high - low)[narrow] * share).exp().to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        purified = purifier(clean + sigma.view(-1, 1, 1, 1) * noise, sigma)
        seen = feature_distance(teachers, purified, clean) if teachers else None
    error = ((purified.float() - clean).square().mean(dim=(1, 2, 3)) + _LEAST_ERROR).sqrt()
    unit = sigma * _DATA_STD / (sigma.square() + _DATA_STD**2).sqrt()
    loss: Tensor = (error / unit).mean()
    return loss if seen is None else loss + settings.features * seen


def _held_out(seed: int) -> Tensor:
    """``(_HELD_OUT, 3, _SIDE, _SIDE)`` pictures that training does not draw."""
    rngs = [np.random.default_rng((seed, _STREAMS["held out"], number)) for number in range(_HELD_OUT)]
    pictures = np.stack([leaves_picture(rng, _SIDE) for rng in rngs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _middles(pictures: Pictures, chosen: Split, side: int) -> Tensor:
    """``(N, 3, side, side)`` middle squares of held-out photographs, at most as many as of held-out leaves."""
    found = [
        ImageOps.fit(Image.fromarray(pictures[int(number)]), (side, side), Image.Resampling.BICUBIC)
        for number in chosen.held_out[:_HELD_OUT]
    ]
    return torch.from_numpy(np.stack([np.asarray(one) for one in found])).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def _fidelity(purifier: nn.Module, teacher: Teacher, pictures: Tensor, sigma: float, seed: int) -> float:
    """Cosine of a teacher's features of purified noisy pictures with those of clean ones, mean over tokens."""
    device = next(purifier.parameters()).device
    found = []
    for number, clean in enumerate(pictures):
        noise = torch.randn(clean.shape, generator=_generator(seed, "held out", number))
        purified = purifier((clean + sigma * noise)[None].to(device), torch.tensor([sigma], device=device))
        found.append(1 - float(feature_distance([teacher], purified, clean[None].to(device))))
    return sum(found) / len(found)


@torch.inference_mode()
def _psnr(purifier: nn.Module, pictures: Tensor, sigma: float, seed: int) -> float:
    """Mean PSNR, dB, over pictures with values clipped to [0, 1]."""
    device = next(purifier.parameters()).device
    scores = []
    for number, clean in enumerate(pictures):
        noise = torch.randn(clean.shape, generator=_generator(seed, "held out", number))
        noisy = (clean + sigma * noise)[None].to(device)
        purified = purifier(noisy, torch.tensor([sigma], device=device))[0].clamp(0, 1).cpu()
        scores.append(-10 * math.log10(float((purified - clean).square().mean()) + _LEAST_ERROR))
    return sum(scores) / len(scores)


def _with(purifier: nn.Module, weights: dict[str, Tensor], measure: Callable[[], float]) -> float:
    """Measures with other weights, and then restores the old ones."""
    kept = {name: parameter.detach().clone() for name, parameter in purifier.named_parameters()}
    purifier.load_state_dict(weights, strict=False)
    try:
        return measure()
    finally:
        purifier.load_state_dict(kept, strict=False)


def _generator(seed: int, stream: str, number: int) -> torch.Generator:
    words = np.random.SeedSequence((seed, _STREAMS[stream], number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)
