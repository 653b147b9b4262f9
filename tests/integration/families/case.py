"""A test entry of a model family, and what the builders of tiny checkpoints share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..tiny_llava import CONTEXT_LENGTH, TEXT_WIDTH, character_tokenizer, random_weight

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BICUBIC = 3
_PARTS = ("vision_tower.", "vision_model.", "multi_modal_projector.", "connector.", "visual.")
VISION_PREFIXES = (*_PARTS, *(f"model.{part}" for part in _PARTS))
"""Of the names on disk of what belongs to vision tower and projector."""
NEAREST = 0
"""Resampling of the tiny checkpoints that serve parity: 8-bit processors then round nothing, so that their rounding is
not what differs. How well the real filters agree is tested beside the adapters."""


@dataclass(frozen=True)
class FamilyCase:
    """What the tests of families need to know about one.

    Attributes:
        model_type: Its name in the registry.
        build: Writes the tiny checkpoint into a folder, in the layout of the published ones; ``resample`` is the image
            processor's filter.
        sizes: Heights and widths of pictures to ask about, of several aspect ratios and grids; the first two are also
            asked about in one request.
        reference: The class of transformers that has the whole model.
        vllm: Further arguments for vLLM.
        several: Whether the family takes several images in one request.
        inputs: What the image processor hands to the model.
        pixels: The image processor's pixels in the adapter's shape, normalised.
        options: What the family's processor passes to the image processor.
        image_features: What transformers makes of the inputs; by default its ``get_image_features``.
        embeddings: One image's embeddings in what ``image_features`` returns.
        filter: The resampling of the published checkpoints.
        rounding: Largest difference in pixels, in 8-bit steps, that the processor's rounding after each axis explains.
        constants: Names on disk of vectors that join the embeddings as they are.
        mend: Repairs what transformers' model gets wrong for these inputs.
        mark: What the chat template writes for an image, where the family's own processor does not run without
            torchvision.
        written: What that processor puts in its place, with ``mark``; of the image processor's outcome, the image's
            number and how many embeddings it has.
    """

    model_type: str
    build: Callable[..., None]
    sizes: tuple[tuple[int, int], ...]
    reference: type[PreTrainedModel]
    vllm: tuple[str, ...] = ()
    several: bool = True
    inputs: tuple[str, ...] = ("pixel_values",)
    pixels: Callable[[Any], torch.Tensor] = lambda inputs: inputs["pixel_values"][0]
    options: dict[str, Any] = field(default_factory=dict)
    image_features: Callable[[Any, Any], Any] | None = None
    embeddings: Callable[[Any], torch.Tensor] = lambda outputs: outputs.pooler_output[0]
    filter: int = BICUBIC
    rounding: float = 1.3  # the second axis' filter enlarges the first one's rounding a little
    constants: tuple[str, ...] = ()
    mend: Callable[[Any, Any], None] | None = None
    mark: str = ""
    written: Callable[[Any, int, int], str] | None = None


def tiny_widths(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A language model's configuration. Its heads are 32 wide: vLLM's CPU attention knows only some widths."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def tiny_tokenizer(*image_tokens: str, **extra: str) -> PreTrainedTokenizerFast:
    """A token for each character, and the family's special ones; the first is the image token.

    ``extra`` names some of them, as attributes of the tokenizer.
    """
    return character_tokenizer(image_tokens, **extra)


def write_checkpoint(
    folder: Path,
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    *,
    chat_template: str,
    published: Sequence[tuple[str, str]],
    files: dict[str, Any],
    seed: int = 0,
) -> None:
    """Writes a checkpoint with random weights that transformers and vLLM load.

    Args:
        folder: Where to; it is made.
        config: Of the whole model.
        model_class: What transformers makes of it; only shapes and names of its parameters are taken.
        tokenizer: Of the language model.
        chat_template: Jinja source.
        published: Pairs of prefixes: of parameter names in transformers, and of the same in published checkpoints. The
            first that fits is taken.
        files: Contents of JSON files, by name.
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat_template)
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=2))
    with torch.device("meta"):
        model = model_class(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    shapes = {_renamed(name, published): p.shape for name, p in model.named_parameters() if name not in tied}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: random_weight(name, shape, generator) for name, shape in sorted(shapes.items())}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_language_part(model: Path, folder: Path) -> None:
    """Copies the checkpoint in ``model`` to ``folder`` without the weights of vision tower and projector.

    vLLM refuses to start on missing weights, so one that starts on the copy has no vision tower.
    """
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    language = {name: weights[name] for name in weights if not name.startswith(VISION_PREFIXES)}
    assert 0 < len(language) < len(weights)
    save_file(language, folder / "model.safetensors", metadata={"format": "pt"})


def _renamed(name: str, published: Sequence[tuple[str, str]]) -> str:
    for ours, theirs in published:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"unexpected parameter {name}")
