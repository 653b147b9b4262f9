"""An engine over the tiny encoder that can be watched, held up and broken."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import InnerProducts, SmoothingState
from tests.asked import Asked, asked


class WatchedSmoother(Smoother):
    """Records who was in which batch, by σ, and the seeds of all draws that begin; can be held up, and told to fail."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__(encoder)
        self.batches: list[dict[float, int]] = []
        self.seeds: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.failing_sigma: float | None = None
        self.memory: int | None = None

    def start(self, image: PreparedImage, sigma: float, seed: int, *rest: Any, **options: Any) -> SmoothingState:
        self.seeds.append(seed)
        return super().start(image, sigma, seed, *rest, **options)

    def step(self, parts: Sequence[tuple[SmoothingState, int]]) -> list[InnerProducts]:
        self.at_gate.set()
        self.gate.wait(30)
        if self.memory is not None and sum(count for _, count in parts) > self.memory:
            raise torch.OutOfMemoryError("too much")
        if any(state.sigma == self.failing_sigma for state, _ in parts):
            raise RuntimeError("this image breaks the encoder")
        self.batches.append({state.sigma: count for state, count in parts})
        return super().step(parts)

    def hold(self) -> None:
        """Hold up the next batch; ``at_gate`` says when it has begun."""
        self.at_gate.clear()
        self.gate.clear()

    @property
    def drawn(self) -> int:
        return sum(sum(batch.values()) for batch in self.batches)


Ask = Callable[..., Asked]


@pytest.fixture
def smoother(encoder: VisionEncoder) -> WatchedSmoother:
    return WatchedSmoother(encoder)


@pytest.fixture
def engine(smoother: WatchedSmoother) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(smoother, batch_size=8, max_queued_samples=200)
    yield engine
    smoother.gate.set()
    engine.close()


@pytest.fixture
def cached(smoother: WatchedSmoother) -> Iterator[SmoothingEngine]:
    """An engine with a cache."""
    engine = SmoothingEngine(smoother, batch_size=8, cache_bytes=2**26)
    yield engine
    smoother.gate.set()
    engine.close()


@pytest.fixture
def ask(picture: NDArray[np.uint8]) -> Ask:
    return partial(asked, picture)
