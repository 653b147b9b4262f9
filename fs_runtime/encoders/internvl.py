"""InternVL in transformers' format (`InternVLForConditionalGeneration`): tiles by aspect ratio, pixel shuffle."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import frozen, mean_and_std, per_channel, processor_config, special_token_text
from fs_runtime.encoders.pixel_shuffle import PixelShuffleEncoder
from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop, check_rescaling, filter_of_resample
from fs_runtime.preprocessing.tiling import cut

# On disk: with or without a leading `model.`.
_KEY = re.compile(r"^(?:model\.)?(vision_tower|multi_modal_projector)\.(.+)$")


@dataclass(frozen=True, slots=True)
class AspectTiling:
    """Resize to the canvas of tiles with the nearest aspect ratio, plus the whole image in one tile.

    The canvas is a function of the image's height and width alone, which an ℓ2 attack does not change.

    Attributes:
        side: Pixels along a tile.
        fewest: Tiles of the canvas, at least.
        most: Tiles of the canvas, at most.
        filter: Interpolation kernel.
    """

    side: int
    fewest: int
    most: int
    filter: Filter = "bicubic"

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles; of equally near aspect ratios, the largest that the image fills by half."""
        best, nearest = (1, 1), math.inf
        sizes = range(1, self.most + 1)
        shapes = [(down, across) for across in sizes for down in sizes if self.fewest <= down * across <= self.most]
        for down, across in sorted(shapes, key=math.prod):
            distance = abs(width / height - across / down)
            half_filled = height * width > 0.5 * self.side**2 * down * across
            if distance < nearest or (distance == nearest and half_filled):
                best, nearest = (down, across), distance
        return best

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one ``(H, W, C)`` uint8 image.

        Returns:
            ``(N, C, side, side)`` pixels: the canvas' tiles row by row and, if there are several, the whole image last.
            The map stacks the two resizes, so ‖A‖₂² is at most the sum of the squares of their norms.
        """
        down, across = self.canvas(*image.shape[:2])
        canvas = ResizeCrop((down * self.side, across * self.side), None, self.filter)(image)
        tiles = cut(canvas.pixels, self.side)
        if len(tiles) == 1:
            return Preprocessed(tiles, canvas.spectral_norm)
        whole = ResizeCrop((self.side, self.side), None, self.filter)(image)
        norm = math.hypot(canvas.spectral_norm, whole.spectral_norm)
        return Preprocessed(np.concatenate([tiles, whole.pixels[None]]), norm)


class InternVLEncoder(PixelShuffleEncoder):
    """Vision transformer and projector of an InternVL checkpoint.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "internvl"
    _class_tokens: ClassVar[int] = 1

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config: Any = InternVLConfig(**raw)
        vision = config.vision_config
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            raise CheckpointError(f"{checkpoint.source} reads a layer other than the last, which vLLM does not support")
        self.device, self.dtype = device, dtype
        (height, width), (patch_height, patch_width) = vision.image_size, vision.patch_size
        self._grid = (height // patch_height, width // patch_width)
        self._merge = round(1 / config.downsample_ratio)
        processor = processor_config(checkpoint)
        try:
            self._geometry = _tiling(processor, tuple(vision.image_size))
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector: nn.Module = InternVLMultiModalProjector(config)
        load_weights(tower, checkpoint.tensors(lambda key: _name(key, "vision_tower")), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, "multi_modal_projector")), "projector")
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, tower, projector)
        self._tower: Any = frozen(tower, device, dtype)
        self._projector = frozen(projector, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.embedding_size = self.language_width = int(config.text_config.hidden_size)
        context = special_token_text(checkpoint, config.image_token_id, "<IMG_CONTEXT>")
        self.control_tokens = (context, "<img>", "</img>", "<video>")


def _tiling(processor: dict[str, Any], image_size: tuple[int, ...]) -> AspectTiling:
    """The tiling that a ``preprocessor_config.json`` describes; InternVL cuts tiles whatever ``crop_to_patches`` says.

    Raises:
        ValueError: It does not fit the tower, or asks for a step that the map cannot express.
    """
    size = processor.get("size") or {}
    tile = (size.get("height"), size.get("width"))
    if tile != image_size or image_size[0] != image_size[1]:
        raise ValueError(f"preprocessor_config.json makes tiles of {tile} pixels, the vision tower reads {image_size}")
    if not processor.get("do_resize", True):
        raise ValueError("preprocessor_config.json must not switch do_resize off")
    check_rescaling(processor)
    fewest, most = int(processor.get("min_patches", 1)), int(processor.get("max_patches", 12))
    return AspectTiling(image_size[0], fewest if most > 1 else 1, most, filter_of_resample(processor))


def _name(key: str, part: str) -> str | None:
    match = _KEY.match(key)
    return match.group(2) if match and match.group(1) == part else None
