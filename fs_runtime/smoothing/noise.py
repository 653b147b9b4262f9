"""Gaussian noise of one image, drawn sample by sample from one seed."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from fs_runtime.smoothing.normal_tail import replace_tail

SEED_BITS = 64
NOISE_VERSION = 2
"""Of the way from a seed to the draws: 1, PyTorch's float32 normals as they are; 2, with their tail replaced.

Cache keys and receipts name it. It rises with every change of the numbers, and the older ones stay, so that receipts
are replayed with theirs."""

_AT_ONCE = 2**18  # values whose tail is replaced together on CPU, while they are in its cache


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
        version: Of the draws; an older one for receipts alone.

    Raises:
        ValueError: The seed is out of range, or the version unknown.
    """

    def __init__(self, seed: int, device: torch.device, version: int = NOISE_VERSION) -> None:
        if not 0 <= seed < 2**SEED_BITS:
            raise ValueError(f"seed must be an integer from 0 to 2**{SEED_BITS} - 1, got {seed}")
        if not 1 <= version <= NOISE_VERSION:
            raise ValueError(f"version must be an integer from 1 to {NOISE_VERSION}, got {version}")
        self._generator = torch.Generator(device).manual_seed(seed if seed < 2**63 else seed - 2**64)
        if device.type == "cpu":
            _spread_seed(self._generator, np.random.SeedSequence(seed))
        self._tail: torch.Generator | None = None
        if version > 1:
            self._tail = torch.Generator()  # of its own: how often it is needed depends on the draws
            _spread_seed(self._tail, np.random.SeedSequence(seed, spawn_key=(1,)))

    def draw(self, out: Tensor) -> None:
        """Fills ``out``, ``(n, C, H, W)`` float32 and contiguous, with the next n samples of N(0, I)."""
        at_once = max(1, len(out))  # to look for the tail waits for a GPU: once for all of them
        if out.device.type == "cpu":
            at_once = max(1, _AT_ONCE // out.shape[1:].numel())
        for part in torch.split(out, at_once):
            for sample in part:
                sample.normal_(generator=self._generator)
            if self._tail is not None:
                replace_tail(part, self._tail)

    def position(self) -> Tensor:
        """State of the generators, for :meth:`rewind`."""
        if self._tail is None:
            return self._generator.get_state()
        return torch.cat([self._generator.get_state(), self._tail.get_state()])

    def rewind(self, position: Tensor) -> None:
        """Goes back to a position, so that the same draws follow again."""
        length = len(self._generator.get_state())
        self._generator.set_state(position[:length].clone())
        if self._tail is not None:
            self._tail.set_state(position[length:].clone())


def _spread_seed(generator: torch.Generator, seed: np.random.SeedSequence) -> None:
    """Fills the CPU generator's Mersenne Twister from the whole seed: ``manual_seed`` reads only its low 32 bits."""
    state = generator.get_state()
    words = state.numpy().view(np.uint64)  # seed; left, seeded; next; 624 words of state; …
    words[3 : 3 + 624] = seed.generate_state(624)
    generator.set_state(state)
