"""Trains the reference MLLM from scratch on drawn scenes and scanned digits.

First the vision tower alone learns to classify what each patch shows (the dense loss): which shape, which colour. Then
the language model joins, and training continues with both losses. The images have no noise, so that the result is an
ordinary, undefended encoder.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fs_runtime.system.progress_bar import ProgressBar

from .conversations import (
    IGNORED,
    PATCH_CLASSES,
    Conversation,
    draw_picture,
    sample_conversation,
)
from .model import PIXEL_MEAN, PIXEL_STD, build_reference, load_weights
from .packing import SHARED, PackedBatch, Packer
from .tokenizer import train_tokenizer


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. The defaults fit two CPU cores; a GPU takes larger batches and more steps.

    Attributes:
        steps: optimiser steps in all.
        vision_steps: how many of the first steps train the vision tower alone.
        batch_size: conversations per step, each with about nine questions.
        learning_rate: its peak in both phases; each phase has `warmup` steps of linear warm-up and a cosine decay.
        vision_rate: the vision tower's learning rate in the second phase, as a fraction of that of the rest.
        dense_weight: weight of the dense loss in the second phase.
        length: tokens per packed sequence.
        seed: fixes weights, data and their order. The same seed, settings and machine give the same model.
        device: where to train, such as "cpu" or "cuda".
        start_from: folder of a reference model to start from, instead of random weights.
        workers: processes that make data; 0 makes it in the training process. The data does not depend on it.
        time_limit: seconds after which training ends; the learning rate then falls faster. None for all steps.
    """

    steps: int = 2600
    vision_steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 4e-3
    vision_rate: float = 0.2
    weight_decay: float = 0.02
    warmup: int = 50
    dense_weight: float = 0.3
    length: int = 272
    seed: int = 0
    device: str = "cpu"
    start_from: Path | None = None
    workers: int = 1
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Progress of training: averages over the last steps."""

    step: int
    loss: float
    accuracy: float
    patch_accuracy: float


Report = Callable[[TrainingProgress], None]
Save = Callable[[LlavaForConditionalGeneration, Tokenizer], None]
TensorBatch = dict[str, Tensor]


def train_reference(
    settings: TrainingSettings,
    config: LlavaConfig | None = None,
    report: Report | None = None,
    save: Save | None = None,
    report_every: int = 20,
    save_every: int = 500,
) -> tuple[LlavaForConditionalGeneration, Tokenizer]:
    """Train the reference model; returns it with its tokenizer, ready for `save_reference`.

    `report` is called every `report_every` steps, `save` every `save_every` so that an interruption costs little.
    """
    tokenizer = train_tokenizer()
    model = build_reference(settings.seed, config).train()
    if settings.start_from:
        load_weights(model, settings.start_from)
    nn.Module.to(model, settings.device)
    learner = _Learner(model, settings)
    loader: DataLoader[TensorBatch] = DataLoader(
        _Batches(tokenizer, settings),
        batch_size=None,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        pin_memory=settings.device.startswith("cuda"),
        worker_init_fn=_use_one_thread,
    )
    started = time.monotonic()
    recent: list[Tensor] = []
    for step, batch in enumerate(loader):
        spent = (time.monotonic() - started) / settings.time_limit if settings.time_limit else 0.0
        progress = max(step / settings.steps, spent)
        if progress >= 1:
            break
        recent.append(learner.step(step, progress, batch))
        if report and (step + 1) % report_every == 0:
            loss, accuracy, patch_accuracy = torch.stack(recent).nanmean(dim=0).tolist()
            report(TrainingProgress(step + 1, loss, accuracy, patch_accuracy))
            recent = []
        if save and (step + 1) % save_every == 0:
            save(model, tokenizer)
    return model.eval(), tokenizer


def settings_for(device: str) -> TrainingSettings:
    """Return the settings that suit a device: "cpu", or "cuda" for a GPU and eight cores or more to feed it."""
    if torch.device(device).type != "cuda":
        return TrainingSettings(device=device)
    return TrainingSettings(
        steps=5_500,
        vision_steps=1_500,
        batch_size=256,
        warmup=100,
        device=device,
        workers=max(1, (os.cpu_count() or 1) - 1),
    )


def train_with_progress(
    settings: TrainingSettings, console: Console, save: Save | None = None
) -> tuple[LlavaForConditionalGeneration, Tokenizer]:
    """Train as `train_reference` does, and show loss, accuracy and the remaining time."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console) as progress:
        task = progress.add_task("training", total=settings.steps, figures="")

        def show(now: TrainingProgress) -> None:
            figures = f"loss {now.loss:.3f}  patches {now.patch_accuracy:.1%}"
            if not math.isnan(now.accuracy):
                figures += f"  answers {now.accuracy:.1%}"
            progress.update(task, completed=now.step, figures=figures)

        return train_reference(settings, report=show, save=save)


class _Learner:
    """The model in training, with its dense heads and its optimiser."""

    def __init__(self, model: LlavaForConditionalGeneration, settings: TrainingSettings) -> None:
        self.settings = settings
        self.model = model
        device = settings.device
        width = model.model.multi_modal_projector.linear_1.in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.dense_head = nn.Linear(width, sum(PATCH_CLASSES.values())).to(device)
        inner = model.model
        self.vision = _Part([inner.vision_tower, self.dense_head], settings)
        self.language = _Part([inner.multi_modal_projector, inner.language_model, model.lm_head], settings)
        self.joined_at = 0.0
        self.mean = torch.tensor(PIXEL_MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(PIXEL_STD, device=device).view(1, 3, 1, 1)

    def step(self, step: int, progress: float, batch: TensorBatch) -> Tensor:
        """Take one step. Returns loss, share of right answers and share of right patches: shape (3,)."""
        settings = self.settings
        batch = {name: value.to(settings.device, non_blocking=True) for name, value in batch.items()}
        speaking = step >= settings.vision_steps
        vision_rate, language_rate = self.rates(step, progress)
        with _autocast(settings.device):
            features = self.features(batch["pixels"])
            loss, patch_accuracy = self.dense_loss(features, batch)
            accuracy = loss.new_tensor(math.nan)
            if speaking:
                answer_loss, accuracy = self.answer_loss(features, batch)
                loss = answer_loss + settings.dense_weight * loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.vision.step(vision_rate)
        if speaking:
            self.language.step(language_rate)
        return torch.stack((loss.detach().float(), accuracy, patch_accuracy))

    def rates(self, step: int, progress: float) -> tuple[float, float]:
        """Learning rates of the vision tower and of the language model, each with its own cosine."""
        settings = self.settings
        alone = settings.vision_steps
        peak, share = settings.learning_rate, settings.vision_rate
        if step < alone:
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / alone)))
            return peak * (share + (1 - share) * falling) * min(1.0, (step + 1) / settings.warmup), 0.0
        if step == alone:
            self.joined_at = progress
        falling = 0.5 * (1 + math.cos(math.pi * (progress - self.joined_at) / (1 - self.joined_at)))
        rate = peak * falling * min(1.0, (step - alone + 1) / settings.warmup)
        return share * rate, rate

    def features(self, pixels: Tensor) -> Tensor:
        """Encode pictures: (N, 64, 64, 3) bytes to patch features (N, 64, width)."""
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        hidden: Tensor = self.model.model.vision_tower(images).last_hidden_state
        return hidden[:, 1:]

    def dense_loss(self, features: Tensor, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of the patch classes, and the share of object patches whose shape is right."""
        logits = self.dense_head(features).float().split(tuple(PATCH_CLASSES.values()), dim=-1)  # each (N, 64, classes)
        loss = torch.stack(
            [
                F.cross_entropy(asked.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
                for asked, wanted in zip(logits, batch["patches"].unbind(dim=1), strict=True)
            ]
        ).nansum()  # a loss is nan if the batch has no patch with that label
        shapes = batch["patches"][:, 0]
        drawn = shapes > 0
        right = (logits[0].argmax(dim=-1) == shapes) & drawn
        return loss, right.sum() / drawn.sum().clamp(min=1)

    def answer_loss(self, features: Tensor, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of the answers' tokens, and the share of answers without a wrong token."""
        model = self.model.model
        tokens = batch["tokens"]
        embedded: Tensor = model.language_model.embed_tokens(tokens)  # (B, L, width)
        images: Tensor = model.multi_modal_projector(features).to(embedded.dtype)  # (N, 64, width)
        is_image = (tokens == self.model.config.image_token_index).unsqueeze(-1)
        hidden = model.language_model(
            inputs_embeds=embedded.masked_scatter(is_image, images),
            attention_mask=visibility(batch["segments"]),
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state
        chosen = batch["chosen"]  # indices into the flattened (B · L) tokens that predict an answer's tokens
        logits: Tensor = self.model.lm_head(hidden.flatten(0, 1)[chosen]).float()
        targets = batch["targets"].flatten()[chosen]
        answers = batch["answers"].flatten()[chosen]
        right = (logits.argmax(dim=-1) == targets).float()
        whole = torch.ones_like(batch["answer_slots"]).scatter_reduce(0, answers, right, "amin")
        return F.cross_entropy(logits, targets), whole.mean()


class _Part:
    """Modules that are trained together: Muon for the matrices of their layers, AdamW for everything else.

    Muon (K. Jordan et al., 2024) lowers the loss of this model faster, step for step, than AdamW does.
    """

    def __init__(self, modules: list[nn.Module], settings: TrainingSettings) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                inner_matrix = parameter.ndim == 2 and "embed" not in name and not isinstance(module, nn.Linear)
                (matrices if inner_matrix else others).append(parameter)
        self.parameters = [*matrices, *others]
        decay = settings.weight_decay
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=decay, fused=True),
        )
        if matrices:
            self.optimisers += (torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),)

    def step(self, learning_rate: float) -> None:
        """Take one step with the current gradients, and clear them."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)


def visibility(segments: Tensor) -> Tensor:
    """Make the attention mask (B, 1, L, L) of segments (B, L); true where a token attends to another.

    A token attends to the tokens before it in its own segment and in the shared one. Padding attends to padding.
    """
    length = segments.shape[1]
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (((query == key) | ((key == SHARED) & (query >= 0))) & earlier).unsqueeze(1)


class _Batches(Dataset[TensorBatch]):
    """The training data: batch number `step` depends only on the seed and the step."""

    def __init__(self, tokenizer: Tokenizer, settings: TrainingSettings) -> None:
        self.settings = settings
        self.packer = Packer(tokenizer, settings.length)

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, step: int) -> TensorBatch:
        rng = np.random.default_rng((self.settings.seed, step))
        size = self.settings.batch_size
        if step < self.settings.vision_steps:
            conversations = [Conversation((draw_picture(rng),), (), True) for _ in range(size)]
        else:
            conversations = [sample_conversation(rng) for _ in range(size)]
        return _to_tensors(self.packer.pack(conversations))


def _to_tensors(batch: PackedBatch) -> TensorBatch:
    tensors = {item.name: torch.from_numpy(getattr(batch, item.name)) for item in fields(batch)}
    tensors["chosen"] = torch.from_numpy(np.flatnonzero(batch.targets != IGNORED))
    tensors["answer_slots"] = torch.ones(int(batch.answers.max()) + 1)
    return tensors


def _use_one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _autocast(device: str) -> AbstractContextManager[object]:
    """Use bfloat16 where the hardware multiplies it faster than float32."""
    kind = torch.device(device).type
    if kind == "cuda" or torch.cpu._is_amx_tile_supported():
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()
