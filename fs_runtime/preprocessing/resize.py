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
from scipy.sparse import csr_array

FloatArray = NDArray[np.float64]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]

# Numbers of PIL.Image.Resampling, as processor configurations store them.
_FILTER_OF_RESAMPLE: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def filter_of_resample(config: dict[str, Any]) -> Filter:
    """The kernel that a ``preprocessor_config.json`` names; ValueError if it is unknown."""
    resample = int(config.get("resample", 3))
    if resample not in _FILTER_OF_RESAMPLE:
        raise ValueError(f"preprocessor_config.json has resample={resample}; use 0 to 3")
    return _FILTER_OF_RESAMPLE[resample]


def check_rescaling(config: dict[str, Any]) -> None:
    """Checks that a ``preprocessor_config.json`` rescales pixels to [0, 1]; ValueError if not."""
    if not config.get("do_rescale", True) or not np.isclose(config.get("rescale_factor", 1 / 255), 1 / 255):
        raise ValueError("preprocessor_config.json must rescale pixels by 1/255")


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


def resize_matrix(
    source: int, target: int, filter: Filter = "bicubic", rows: tuple[int, int] | None = None
) -> csr_array:
    """One-dimensional resize as a sparse matrix: a row has as many entries as the kernel is wide.

    Args:
        source: Number of input pixels, at least 1.
        target: Number of output pixels, at least 1.
        filter: Interpolation kernel; it is widened by source / target when shrinking (antialiasing).
        rows: Range of the wanted rows, its end excluded; None for all. Rows that a crop leaves out of a long and
            narrow image need not be computed.

    Returns:
        ``(rows, source)`` matrix whose rows sum to 1.
    """
    scale = source / target
    wanted = np.arange(*(rows or (0, target)))
    centre = (wanted + 0.5) * scale
    if filter == "nearest":
        low = np.minimum(centre.astype(int), source - 1)[:, None]
        pixel, weights = low, np.ones((len(wanted), 1))
    elif source == target:
        pixel, weights = wanted[:, None], np.ones((len(wanted), 1))
    else:
        kernel, half_width = _KERNELS[filter]
        stretch = max(scale, 1.0)
        support = half_width * stretch
        # Pillow cuts the window to whole pixels before it normalises the weights; so do we.
        low = np.maximum(0, (centre - support + 0.5).astype(int))[:, None]
        high = np.minimum(source, (centre + support + 0.5).astype(int))[:, None]
        pixel = low + np.arange(int((high - low).max()))[None, :]
        weights = np.where(pixel < high, kernel((pixel - centre[:, None] + 0.5) / stretch), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
    inside = weights != 0
    ends = np.concatenate(([0], np.cumsum(inside.sum(axis=1))))
    return csr_array((weights[inside], pixel[inside], ends), shape=(len(wanted), source))


def _padding_matrix(source: int, target: int) -> csr_array:
    """Pads ``source`` pixels with zeros to ``target`` ≥ ``source``, as a ``(target, source)`` matrix."""
    first = (target - source) // 2
    pixels = np.arange(source)
    return csr_array((np.ones(source), (first + pixels, pixels)), shape=(target, source))


_EXACT_SIDE = 512  # above it, exact eigenvalues cost more than the rest of the preprocessing
# Computed eigenvalues are those of a matrix that differs by about a rounding for each row, 512 · 2⁻⁵³ = 6e-14 in all.
# Receipts compare norms to nine digits.
_EXACT_ROUNDING = 1 + 1e-12
_SQUARINGS = 4


def matrix_norm(matrix: csr_array) -> float:
    """‖A‖₂ of a resize matrix, from above: to twelve digits for small ones, else one or two percent above it at most.

    The bound is ‖G^p‖_∞^(1/2p) with the Gram matrix G and p = 2⁴: G has only a few diagonals, so its powers are cheap
    on images of any size, and every norm of G^p is at least the p-th power of G's largest eigenvalue.
    """
    gram = csr_array(matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix)
    if gram.shape[0] <= _EXACT_SIDE:
        if gram.nnz == gram.shape[0] and np.all(gram.diagonal() == 1):
            return 1.0  # it copies pixels
        return float(np.sqrt(np.linalg.eigvalsh(gram.toarray())[-1]) * _EXACT_ROUNDING)
    for _ in range(_SQUARINGS):
        gram = csr_array(gram @ gram)
    largest: float = abs(gram).sum(axis=1).max()
    rounding = 1 + 1e-9
    return float(largest ** (0.5 / 2**_SQUARINGS) * rounding)


# Few entries: clients choose the sizes.
@lru_cache(maxsize=16)
def _axis_map(source: int, resized: int, cropped: int | None, filter: Filter) -> tuple[csr_array, float]:
    """Resize and crop of one axis as ``(target, source)`` float32, and its spectral norm."""
    if cropped is None or cropped >= resized:
        matrix = resize_matrix(source, resized, filter)
        if cropped is not None:
            matrix = csr_array(_padding_matrix(resized, cropped) @ matrix)
    else:
        first = (resized - cropped) // 2
        matrix = resize_matrix(source, resized, filter, (first, first + cropped))
    return matrix.astype(np.float32), matrix_norm(matrix)


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """Result of preprocessing.

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
        check_rescaling(config)
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
        return cls(resize, crop, filter_of_resample(config))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size after the resize and before the crop, for an image of ``height`` by ``width`` pixels."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        long_side = int(self.resize * long / short)
        return (self.resize, long_side) if height <= width else (long_side, self.resize)

    def __call__(self, image: NDArray[np.uint8] | Preprocessed) -> Preprocessed:
        """Applies the map to one image.

        Args:
            image: ``(H, W, C)`` uint8, or the result of another map.

        Returns:
            The resized image, and the spectral norm of the map: the product of the two axes' norms. After another map
            it is multiplied by that map's norm, which bounds the norm of the composition.

        After each axis, width first, the result is clipped to [0, 1] as in 8-bit processors: the kernels overshoot at
        sharp edges. Clipping is a projection onto a convex set, so it never moves two images further apart.
        """
        if isinstance(image, Preprocessed):
            x, before = image.pixels.transpose(2, 1, 0), image.spectral_norm
        else:
            x, before = image.astype(np.float32).transpose(1, 0, 2) / np.float32(255), 1.0
        width, height, channels = x.shape
        resized_height, resized_width = self.resized_size(height, width)
        crop_height, crop_width = self.crop or (None, None)
        rows, rows_norm = _axis_map(height, resized_height, crop_height, self.filter)
        columns, columns_norm = _axis_map(width, resized_width, crop_width, self.filter)
        x = np.clip(columns @ x.reshape(width, -1), 0.0, 1.0)  # (W', H C)
        x = x.reshape(-1, height, channels).transpose(1, 2, 0)  # (H, C, W')
        x = np.clip(rows @ x.reshape(height, -1), 0.0, 1.0)  # (H', C W')
        x = x.reshape(x.shape[0], channels, -1).transpose(1, 0, 2)  # (C, H', W')
        return Preprocessed(np.ascontiguousarray(x, dtype=np.float32), before * rows_norm * columns_norm)
