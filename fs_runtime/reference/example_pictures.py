"""Draws the three shipped example images, at a size for people."""

from pathlib import Path

import numpy as np
from PIL import Image

from .digits import load_digit_scans, plain_digit
from .scenes import render, sample_scene

SIZE = 384


def draw_examples() -> dict[str, Image.Image]:
    """Draw the examples by name: a red circle among other shapes, two shapes, and a held-out digit scan."""
    held_out = load_digit_scans()[1]
    return {
        "red-circle": render(sample_scene(np.random.default_rng(1155), count=3), SIZE),
        "two-shapes": render(sample_scene(np.random.default_rng(0), count=2), SIZE),
        "handwritten-4": plain_digit(held_out.ink[0], SIZE),
    }


def save_examples(folder: Path) -> None:
    """Write the examples to a folder as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in draw_examples().items():
        image.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    save_examples(Path(__file__).with_name("examples"))
