"""The real images of the reference model: scanned handwritten digits, split into training and held-out scans.

The 1,797 scans come with scikit-learn (8 × 8 pixels, ink from 0 to 16; Optical Recognition of Handwritten
Digits, E. Alpaydin and C. Kaynak, 1998). Held-out scans are drawn without variation, and never trained on.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .scenes import render_background, sample_background

FULL_INK = 16.0
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 20240607


@dataclass(frozen=True, slots=True)
class DigitScans:
    """Scans of shape (count, 8, 8) with ink in [0, 1], their labels 0 to 9, and their rows in the data set."""

    ink: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@cache
def load_digit_scans() -> tuple[DigitScans, DigitScans]:
    """Return the training scans and the held-out scans, the same split every time.

    A fifth of each digit's scans is held out.

    Raises:
        RuntimeError: if scikit-learn, which contains the scans, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError("the digit scans come with scikit-learn: pip install 'fs-serve[train]'") from error
    bunch = load_digits()
    ink = (bunch.images / FULL_INK).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    rng = np.random.default_rng(SPLIT_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        held_out[rows[: round(HELD_OUT_SHARE * len(rows))]] = True
    train_rows, held_rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return (
        DigitScans(ink[train_rows], labels[train_rows], train_rows),
        DigitScans(ink[held_rows], labels[held_rows], held_rows),
    )


def plain_digit(ink: NDArray[np.float32], size: int = 64) -> Image.Image:
    """Draw one scan, shape (8, 8), as dark ink on white paper: an RGB image of `size` × `size` pixels."""
    paper = np.round(255 * (1 - ink)).astype(np.uint8)
    return Image.fromarray(paper).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def varied_digit(ink: NDArray[np.float32], rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Draw one scan for training: shifted, scaled, turned, with other ink, contrast, paper and background.

    A third of the pictures keep the paper white, as in a plain scan.
    """
    scale, angle = rng.uniform(0.62, 1.06), np.deg2rad(rng.uniform(-12, 12))
    slack = 0.5 * abs(1 - scale) + 0.04
    shift_x, shift_y = rng.uniform(-slack, slack, size=2) * size
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    shear = rng.uniform(-0.15, 0.15) / scale
    middle = size / 2
    large = Image.fromarray(np.round(255 * ink).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    # Image.transform maps pixels of the result to points of the source: undo the shift, then rotate about the middle.
    x, y = middle + shift_x, middle + shift_y
    across, down = (cosine, sine + shear), (-sine, cosine)
    moved = large.transform(
        (size, size),
        Image.Transform.AFFINE,
        (
            *across,
            middle - across[0] * x - across[1] * y,
            *down,
            middle - down[0] * x - down[1] * y,
        ),
        Image.Resampling.BICUBIC,
    )
    cover = np.asarray(moved, dtype=np.float32)[..., None] / 255 * rng.uniform(0.7, 1.0)  # (size, size, 1)
    paper, tone = _paper_and_ink(rng, size)
    return Image.fromarray(np.round(paper + (tone - paper) * cover).astype(np.uint8))


def _paper_and_ink(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sample a paper of shape (size, size, 3) and an ink of shape (3,) that contrasts with it."""
    if rng.random() < 1 / 3:
        paper = np.full((size, size, 3), 255, dtype=np.float32)
        return paper, rng.uniform(0, 60, size=3).astype(np.float32)
    paper = render_background(sample_background(rng), size).astype(np.float32)
    bright = paper.mean() > 125
    low, high = (0, 80) if bright else (175, 255)
    return paper, rng.uniform(low, high, size=3).astype(np.float32)
