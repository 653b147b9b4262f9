"""Gaussian noise of one image, drawn sample by sample from one seed."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

SEED_BITS = 64


def fresh_seed() -> int:
    """A seed from the operating system's generator: unpredictable to the sender (docs/guarantee.md section 7)."""
    return secrets.randbits(SEED_BITS)


class NoiseStream:
    """The draws δ₁, δ₂, … of one image, in order.

    Each sample is drawn by a call of its own, so sample i depends on the seed, i, the image's shape and the kind of
    device alone, never on how samples were put into batches.

    Args:
        seed: Unsigned integer below 2**64.
        device: Where the draws are made. CPU and CUDA draw different numbers from the same seed.

    Raises:
        ValueError: The seed is out of range.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        if not 0 <= seed < 2**SEED_BITS:
            raise ValueError(f"seed must be an integer from 0 to 2**{SEED_BITS} - 1, got {seed}")
        self._generator = torch.Generator(device).manual_seed(seed if seed < 2**63 else seed - 2**64)
        if device.type == "cpu":
            _spread_seed(self._generator, seed)

    def draw(self, out: Tensor) -> None:
        """Fills ``out``, ``(n, C, H, W)`` float32, with the next n samples of N(0, I)."""
        for sample in out:
            sample.normal_(generator=self._generator)

    def position(self) -> Tensor:
        """State of the generator, for :meth:`rewind`."""
        return self._generator.get_state()

    def rewind(self, position: Tensor) -> None:
        """Goes back to a position, so that the same draws follow again."""
        self._generator.set_state(position)


def _spread_seed(generator: torch.Generator, seed: int) -> None:
    """Fills the CPU generator's Mersenne Twister from the whole seed: ``manual_seed`` reads only its low 32 bits."""
    state = generator.get_state()
    words = state.numpy().view(np.uint64)  # seed; left, seeded; next; 624 words of state; …
    words[3 : 3 + 624] = np.random.SeedSequence(seed).generate_state(624)
    generator.set_state(state)
