"""Qwen-VL's preprocessing: a size near the image's own, whose sides the patch grid divides."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs_runtime.encoders.base import ImageSizeError
from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop, check_rescaling, filter_of_resample

_MAX_ASPECT = 200  # as in Qwen's processor


@dataclass(frozen=True, slots=True)
class SmartResize:
    """Resize to whole merged patches, with the number of pixels between two bounds (arXiv 2409.12191, section 2.1).

    The target size depends on the image's height and width alone. An ℓ2 attack changes pixels only, so it does not
    change the target, and the map is linear for each size.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches per side that the merger turns into one token.
        min_pixels: Fewest pixels after the resize.
        max_pixels: Most pixels after the resize.
        filter: Interpolation kernel.
    """

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    filter: Filter = "bicubic"

    @classmethod
    def from_processor_config(cls, config: dict[str, Any], patch: int, merge: int) -> SmartResize:
        """Reads the bounds from a ``preprocessor_config.json``; the defaults are those of Qwen2-VL's processor.

        Args:
            config: Contents of the file.
            patch: Patch side of the vision tower.
            merge: Merge side of the vision tower.

        Raises:
            ValueError: The configuration does not fit the tower, or asks for a step that this map cannot express.
        """
        for name, expected in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", 2)):
            if config.get(name, expected) != expected:
                raise ValueError(f"preprocessor_config.json has {name}={config[name]}, the vision tower {expected}")
        if not config.get("do_resize", True):
            raise ValueError("preprocessor_config.json must not switch do_resize off")
        check_rescaling(config)
        size = config.get("size") or {}
        low = config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56
        high = config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 28 * 28 * 1280
        return cls(patch, merge, int(low), int(high), filter_of_resample(config))

    def capped(self, max_pixels: int) -> SmartResize:
        """The same map with at most ``max_pixels`` pixels, if that is fewer.

        Raises:
            ValueError: ``max_pixels`` is below ``min_pixels``.
        """
        if max_pixels < self.min_pixels:
            raise ValueError(
                f"an image has at least {self.min_pixels} pixels to this model, so {max_pixels} cannot be the most; "
                "raise the limit, or leave it to the model with 0"
            )
        return dataclasses.replace(self, max_pixels=min(self.max_pixels, max_pixels))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize, both multiples of ``patch * merge``.

        Raises:
            ImageSizeError: One side is more than 200 times the other.
        """
        if max(height, width) > _MAX_ASPECT * min(height, width):
            raise ImageSizeError(
                f"the image has {width} x {height} pixels; this model reads images "
                f"whose longer side is at most {_MAX_ASPECT} times the shorter"
            )
        unit = self.patch * self.merge
        rows, columns = round(height / unit) * unit, round(width / unit) * unit
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows, columns = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        elif rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(side * grow / unit) * unit for side in (height, width))
        return rows, columns

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one ``(H, W, 3)`` uint8 image."""
        return ResizeCrop(self.size(*image.shape[:2]), None, self.filter)(image)
