"""Idefics3 and SmolVLM: the image resized to whole tiles, plus the whole image in one tile; pixel shuffle."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModel
from typing_extensions import override

from fs_runtime.encoders.base import PreparedImage
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import frozen, mean_and_std, per_channel, processor_config, special_token_text
from fs_runtime.encoders.pixel_shuffle import PixelShuffleEncoder
from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop, check_rescaling, filter_of_resample
from fs_runtime.preprocessing.tiling import cut

# On disk: with or without a leading `model.`.
_TOWER_KEY = re.compile(r"^(?:model\.)?vision_model\.(.+)$")
_PROJECTOR_KEY = re.compile(r"^(?:model\.)?connector\.modality_projection\.proj\.(.+)$")
_LARGEST = 4096  # pixels along a side; above it the processor would resize a second time
_MOST_TILES = 6  # along a side; the tokenizer has a token for each position


@dataclass(frozen=True, slots=True)
class SplitTiling:
    """Resize the longer side to a fixed length, then both to whole tiles (Laurençon et al. 2024, arXiv 2408.12637).

    Attributes:
        side: Pixels along a tile.
        longest: Pixels along the longer side after the first resize.
        split: Whether to cut tiles; otherwise the encoder sees only the whole image in one tile.
        filter: Interpolation kernel of every resize.
    """

    side: int
    longest: int
    split: bool = True
    filter: Filter = "lanczos"

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, columns = self._sizes(height, width)[-1]
        return rows // self.side, columns // self.side

    def _sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heights and widths after the first and after the second resize, rounded as the processor does."""
        ratio = width / height
        if width >= height:
            width, height = self.longest, int(self.longest / ratio)
            height = max(1, height + height % 2)
        else:
            height, width = self.longest, int(self.longest * ratio)
            width = max(1, width + width % 2)
        if not self.split:
            return (height, width), (self.side, self.side)
        ratio = width / height
        if width >= height:
            columns = self._whole_tiles(width)
            return (height, width), (self._whole_tiles(int(columns / ratio)), columns)
        rows = self._whole_tiles(height)
        return (height, width), (rows, self._whole_tiles(int(rows * ratio)))

    def _whole_tiles(self, pixels: int) -> int:
        return math.ceil(pixels / self.side) * self.side

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one ``(H, W, C)`` uint8 image.

        Returns:
            ``(N, C, side, side)`` pixels: the canvas' tiles row by row and, if there are several, the whole image last;
            and a bound of the spectral norm: each resize's norm times those of the resizes before it.
        """
        first, second = self._sizes(*image.shape[:2])
        resized = ResizeCrop(first, None, self.filter)(image)
        canvas = ResizeCrop(second, None, self.filter)(resized)
        tiles = cut(canvas.pixels, self.side)
        if len(tiles) == 1:
            return Preprocessed(tiles, canvas.spectral_norm)
        whole = ResizeCrop((self.side, self.side), None, self.filter)(canvas)
        norm = math.hypot(canvas.spectral_norm, whole.spectral_norm)
        return Preprocessed(np.concatenate([tiles, whole.pixels[None]]), norm)


class Idefics3Encoder(PixelShuffleEncoder):
    """Vision transformer and connector of an Idefics3 or SmolVLM checkpoint.

    Beside the embeddings, the payload has ``tiles``: the rows and columns of tiles, which the prompt tells the language
    model.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and connector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config: Any = AutoConfig.for_model(**raw)
        self.family = str(config.model_type)
        vision = config.vision_config
        self.device, self.dtype = device, dtype
        patches = vision.image_size // vision.patch_size
        self._grid, self._merge = (patches, patches), int(config.scale_factor)
        processor = processor_config(checkpoint)
        try:
            self._geometry = _tiling(processor, vision.image_size)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        self.embedding_size = int(config.text_config.hidden_size)
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector = nn.Linear(vision.hidden_size * self._merge**2, self.embedding_size, bias=False)
        load_weights(tower, checkpoint.tensors(lambda key: _name(key, _TOWER_KEY)), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, _PROJECTOR_KEY)), "connector")
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, tower, projector)
        self._tower = frozen(tower, device, dtype)
        self._projector = frozen(projector, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        places = range(1, _MOST_TILES + 1)
        self.control_tokens = (
            special_token_text(checkpoint, config.image_token_id, "<image>"),
            "<fake_token_around_image>",
            "<global-img>",
            *(f"<row_{row}_col_{column}>" for row in places for column in places),
        )

    @override
    def payload(self, embeddings: torch.Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return super().payload(embeddings, image) | {"tiles": np.array(image.grid[2:], dtype=np.int64)}


def _tiling(processor: dict[str, Any], side: int) -> SplitTiling:
    """The tiling that a ``preprocessor_config.json`` describes.

    Raises:
        ValueError: It does not fit the tower, or asks for a step that the map cannot express.
    """
    tile = (processor.get("max_image_size") or {}).get("longest_edge", 364)
    if tile != side:
        raise ValueError(f"preprocessor_config.json makes tiles of {tile} pixels, the vision tower reads {side}")
    longest = (processor.get("size") or {"longest_edge": 4 * 364}).get("longest_edge")
    if not longest or longest > _LARGEST or not processor.get("do_resize", True):
        raise ValueError(f"preprocessor_config.json must resize the longest_edge, to at most {_LARGEST} pixels")
    check_rescaling(processor)
    split = bool(processor.get("do_image_splitting", True))
    return SplitTiling(side, int(longest), split, filter_of_resample({"resample": 1} | processor))


def _name(key: str, pattern: re.Pattern[str]) -> str | None:
    match = pattern.match(key)
    return match.group(1) if match else None
