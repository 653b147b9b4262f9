"""Llama 3.2 Vision: tiles that attend to one another, read by cross-attention layers of the language model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, MllamaVisionModel
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import (
    checked_embeddings,
    frozen,
    mean_and_std,
    per_channel,
    processor_config,
    special_token_text,
    to_numpy,
)
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop, check_rescaling, filter_of_resample


@dataclass(frozen=True, slots=True)
class CanvasFit:
    """Resize to fit the best canvas of tiles, aligned to its top left corner; the rest is black.

    Attributes:
        side: Pixels along a tile.
        most: Tiles of the canvas, at most.
        filter: Interpolation kernel.
    """

    side: int
    most: int
    filter: Filter = "bilinear"

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """Rows and columns of tiles of every canvas, in the order in which the model numbers them from 1."""
        sizes = range(1, self.most + 1)
        return [(down, across) for down in sizes for across in sizes if down * across <= self.most]

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The canvas that enlarges the image least or, if none does, shrinks it least; of equal ones the smallest."""
        scale = {c: min(c[0] * self.side / height, c[1] * self.side / width) for c in self.canvases}
        enlarging = [s for s in scale.values() if s >= 1]
        chosen = min(enlarging) if enlarging else max(scale.values())
        return min((c for c in scale if scale[c] == chosen), key=math.prod)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize, at the same aspect ratio: at least a tile's where the canvas allows."""
        down, across = self.canvas(height, width)
        target_height = min(max(height, self.side), down * self.side)
        target_width = min(max(width, self.side), across * self.side)
        if target_width / width < target_height / height:
            return min(math.floor(height * (target_width / width)) or 1, target_height), target_width
        return target_height, min(math.floor(width * (target_height / height)) or 1, target_width)

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one ``(H, W, C)`` uint8 image: the whole canvas, ``(C, down · side, across · side)``."""
        resized = ResizeCrop(self.size(*image.shape[:2]), None, self.filter)(image)
        down, across = self.canvas(*image.shape[:2])
        _, height, width = resized.pixels.shape
        below, beside = down * self.side - height, across * self.side - width
        return Preprocessed(np.pad(resized.pixels, ((0, 0), (0, below), (0, beside))), resized.spectral_norm)


class MllamaEncoder(VisionEncoder):
    """Vision transformer and projector of a Llama 3.2 Vision checkpoint (arXiv 2407.21783, section 7).

    x is the whole canvas, since tiles attend to one another. The tower always reads the maximal number of tiles: the
    canvas' own, padded with black ones, which get no noise and whose tokens are not used. A token's feature is the last
    layer's output followed by those of some earlier layers. The class tokens, one for each tile, come first; then the
    other tokens of all tiles, row by row over the canvas.

    Beside the embeddings, the payload has ``tiles``. Its embeddings are ordered tile by tile, each tile's class token
    first.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "mllama"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config: Any = AutoConfig.for_model(**raw)
        vision = config.vision_config
        self.device, self.dtype = device, dtype
        processor = processor_config(checkpoint)
        try:
            self._geometry = _geometry(processor, vision.image_size, vision.max_num_tiles)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        self._patches = vision.image_size // vision.patch_size
        with torch.device("meta"):
            tower = MllamaVisionModel._from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector = nn.Linear(vision.vision_output_dim, config.text_config.hidden_size)
        load_weights(tower, checkpoint.tensors(lambda key: _name(key, "vision_model.")), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, "multi_modal_projector.")), "projector")
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, tower, projector)
        self._tower: Any = frozen(tower, device, dtype)
        self._projector = frozen(projector, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.embedding_size = int(config.text_config.hidden_size)
        self.control_tokens = (special_token_text(checkpoint, config.image_token_index, "<|image|>"),)

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        x = self._geometry(image)
        return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, self._grid(*x.pixels.shape[1:]))

    def _grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the canvas' tokens, and of its tiles."""
        down, across = height // self._geometry.side, width // self._geometry.side
        return down * self._patches, across * self._patches, down, across

    @override
    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        side, most = self._geometry.side, self._geometry.most
        rows, columns, down, across = self._grid(*x.shape[2:])
        tiles = pixels.reshape(*x.shape[:2], down, side, across, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        tiles = functional.pad(tiles, (0, 0) * 3 + (0, most - down * across))  # zero after normalisation, as trained
        number = self._geometry.canvases.index((down, across)) + 1
        mask = torch.zeros(len(x), 1, most, dtype=torch.long, device=x.device)
        mask[:, :, : down * across] = 1
        features: Tensor = self._tower(
            tiles.unsqueeze(1), aspect_ratio_ids=torch.full_like(mask[:, :, 0], number), aspect_ratio_mask=mask
        ).last_hidden_state[:, 0, : down * across]  # (B, tiles, 1 + T, D)
        picture = features[:, :, 1:].reshape(len(x), down, across, self._patches, self._patches, -1)
        picture = picture.transpose(2, 3).reshape(len(x), rows * columns, -1)
        return torch.cat([features[:, :, 0], picture], dim=1)

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        projected: Tensor = self._projector(features.to(self.dtype))
        return projected

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        rows, columns, down, across = grid
        return (down, across), (rows, columns)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        rows, columns, down, across = image.grid
        embeddings = checked_embeddings(embeddings, down * across + rows * columns, self.embedding_size)
        classes, picture = torch.split(embeddings, [down * across, rows * columns])
        tiles = picture.view(down, self._patches, across, self._patches, -1).transpose(1, 2)
        by_tile = torch.cat([classes.unsqueeze(1), tiles.reshape(down * across, self._patches**2, -1)], dim=1)
        return {
            "image_embeds": to_numpy(by_tile.flatten(0, 1)),
            "tiles": np.array([down, across], dtype=np.int64),
        }


def _geometry(processor: dict[str, Any], side: int, most: int) -> CanvasFit:
    """The canvas that a ``preprocessor_config.json`` describes.

    Raises:
        ValueError: It does not fit the tower, or asks for a step that the map cannot express.
    """
    size = processor.get("size") or {}
    tile = (size.get("height"), size.get("width"))
    if tile != (side, side):
        raise ValueError(f"preprocessor_config.json makes tiles of {tile} pixels, the vision tower reads {side}")
    if processor.get("max_image_tiles", 4) != most:
        raise ValueError(f"preprocessor_config.json and config.json differ in the most tiles, {most} in config.json")
    check_rescaling(processor)
    return CanvasFit(side, most, filter_of_resample({"resample": 2} | processor))


def _name(key: str, prefix: str) -> str | None:
    name = key.removeprefix("model.")  # on disk with or without it
    return name.removeprefix(prefix) if name.startswith(prefix) else None
