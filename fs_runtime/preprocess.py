"""Resize and crop in floating point, as the linear map A whose spectral norm the certificate needs.

Source: docs/guarantee.md section 6. The filters and their antialiasing are those of Pillow's ``Image.resize``
(Keys' cubic with a = -1/2), so at the same size the result differs from an 8-bit processor by its rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]

# Numbers of PIL.Image.Resampling, as processor configurations store them.
_FILTER_OF_RESAMPLE: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def _bilinear(t: FloatArray) -> FloatArray:
    return np.maximum(0.0, 1.0 - np.abs(t))


def _bicubic(t: FloatArray) -> FloatArray:
    a, t = -0.5, np.abs(t)
    near = ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    far = (((t - 5.0) * t + 8.0) * t - 4.0) * a
    return np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))


def _lanczos(t: FloatArray) -> FloatArray:
    return np.where(np.abs(t) < 3.0, np.sinc(t) * np.sinc(t / 3.0), 0.0)


_KERNELS: dict[str, tuple[Callable[[FloatArray], FloatArray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


def resize_matrix(source: int, target: int, filter: Filter = "bicubic") -> FloatArray:
    """One-dimensional resize as a matrix.

    Args:
        source: Number of input pixels, at least 1.
        target: Number of output pixels, at least 1.
        filter: Interpolation kernel; it is widened by source / target when shrinking (antialiasing).

    Returns:
        ``(target, source)`` matrix whose rows sum to 1.
    """
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale
    if filter == "nearest":
        matrix = np.zeros((target, source))
        matrix[np.arange(target), np.minimum(centre.astype(int), source - 1)] = 1.0
    elif source == target:
        matrix = np.eye(source)
    else:
        kernel, half_width = _KERNELS[filter]
        stretch = max(scale, 1.0)
        support = half_width * stretch
        # Pillow cuts the window to whole pixels before it normalises the weights; so do we.
        low = np.maximum(0, (centre - support + 0.5).astype(int))[:, None]
        high = np.minimum(source, (centre + support + 0.5).astype(int))[:, None]
        pixel = np.arange(source)[None, :]
        weights = kernel((pixel - centre[:, None] + 0.5) / stretch)
        matrix = np.where((pixel >= low) & (pixel < high), weights, 0.0)
        matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _crop_matrix(source: int, target: int) -> FloatArray:
    """Centre crop of ``source`` pixels to ``target``, zero padded where it is larger, as ``(target, source)``."""
    matrix = np.zeros((target, source))
    offset = (source - target) // 2 if source >= target else -((target - source) // 2)
    rows = np.arange(target)
    inside = (rows + offset >= 0) & (rows + offset < source)
    matrix[rows[inside], rows[inside] + offset] = 1.0
    return matrix


# Few entries: sizes come from strangers' images, and one matrix can take 10 MB.
@lru_cache(maxsize=8)
def _axis_map(source: int, resized: int, cropped: int | None, filter: Filter) -> tuple[NDArray[np.float32], float]:
    """Resize and crop of one axis as ``(target, source)``, and its spectral norm."""
    matrix = resize_matrix(source, resized, filter)
    if cropped is not None and cropped != resized:
        matrix = _crop_matrix(resized, cropped) @ matrix
    largest = float(np.linalg.eigvalsh(matrix @ matrix.T)[-1])  # of a small (target, target) matrix
    return matrix.astype(np.float32), float(np.sqrt(largest))


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """What preprocessing hands on.

    Attributes:
        pixels: ``(C, H, W)`` float32 in [0, 1]: x of docs/guarantee.md, before mean/std normalisation.
        spectral_norm: ‖A‖₂ of the map from the client's pixels in [0, 1] to ``pixels``.
    """

    pixels: NDArray[np.float32]
    spectral_norm: float


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """Resize, then centre crop: the geometry of CLIP-like image processors.

    Attributes:
        resize: ``(height, width)``, or one integer for the shortest edge; None leaves the size alone.
        crop: ``(height, width)`` of the centre crop, or None.
        filter: Interpolation kernel.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    filter: Filter = "bicubic"

    @classmethod
    def from_processor_config(cls, config: dict[str, Any]) -> ResizeCrop:
        """Reads the geometry from a Hugging Face ``preprocessor_config.json``.

        Raises:
            ValueError: The configuration asks for a step that this map cannot express (padding, another rescaling).
        """
        for flag in ("do_pad", "do_thumbnail"):
            if config.get(flag):
                raise ValueError(f"preprocessor_config.json sets {flag}, which this model family does not use here")
        if not config.get("do_rescale", True) or not np.isclose(config.get("rescale_factor", 1 / 255), 1 / 255):
            raise ValueError("preprocessor_config.json must rescale pixels by 1/255")
        resize: int | tuple[int, int] | None = None
        if config.get("do_resize", True):
            size = config.get("size", {"shortest_edge": 224})
            if isinstance(size, int):
                resize = size
            elif "shortest_edge" in size and "longest_edge" not in size:
                resize = int(size["shortest_edge"])
            elif "height" in size:
                resize = (int(size["height"]), int(size["width"]))
            else:
                raise ValueError(f"preprocessor_config.json has a size that is not understood: {size}")
        crop: tuple[int, int] | None = None
        if config.get("do_center_crop", True):
            side = config.get("crop_size", {"height": 224, "width": 224})
            crop = (side, side) if isinstance(side, int) else (int(side["height"]), int(side["width"]))
        resample = int(config.get("resample", 3))
        if resample not in _FILTER_OF_RESAMPLE:
            raise ValueError(f"preprocessor_config.json has resample={resample}; use 0 to 3")
        return cls(resize, crop, _FILTER_OF_RESAMPLE[resample])

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size after the resize and before the crop, for an image of ``height`` by ``width`` pixels."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        long_side = int(self.resize * long / short)
        return (self.resize, long_side) if height <= width else (long_side, self.resize)

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one image.

        Args:
            image: ``(H, W, C)`` uint8.

        Returns:
            The image that the encoder reads and the map's spectral norm, the product of the two axes' norms.

        Each axis' result is clipped to [0, 1] as 8-bit processors do, width first: the kernels overshoot at sharp
        edges. Clipping is a projection on a convex set, so it never moves two images further apart.
        """
        height, width = image.shape[:2]
        resized_height, resized_width = self.resized_size(height, width)
        crop_height, crop_width = self.crop or (None, None)
        rows, rows_norm = _axis_map(height, resized_height, crop_height, self.filter)
        columns, columns_norm = _axis_map(width, resized_width, crop_width, self.filter)
        x = image.astype(np.float32).transpose(2, 0, 1) / np.float32(255)  # (C, H, W)
        x = np.clip(x @ columns.T, 0.0, 1.0)  # (C, H, W')
        x = np.clip(rows @ x, 0.0, 1.0)  # (C, H', W')
        return Preprocessed(np.ascontiguousarray(x, dtype=np.float32), rows_norm * columns_norm)
