"""A tiny classifier with random weights, a tiny purifier, and pictures of 16 pixels a side."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.evaluation.photographs.encoders import EvaluatedEncoder
from fs_runtime.evaluation.photographs.pictures import Photograph
from fs_runtime.options import Stage

CLASSES, SIDE, WIDTH = 4, 16, 12


class TinyClassifier(VisionEncoder):
    """A class token, the mean of 16 patches, before them; the head reads it."""

    family = "tiny-classifier"
    control_tokens = ()

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.device, self.dtype, self.preprocessing = torch.device("cpu"), torch.float32, {}
        self._patches = nn.Conv2d(3, WIDTH, 4, stride=4).requires_grad_(False)
        self._head = nn.Linear(WIDTH, CLASSES).requires_grad_(False)
        self._head.weight *= 20
        self.fingerprint = fingerprint({}, self._patches, self._head)

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1).contiguous()
        return PreparedImage(pixels, 1.0, (SIDE // 4, SIDE // 4))

    @override
    def encode(self, x: Tensor) -> Tensor:
        patches = torch.tanh(3 * self._patches(x - 0.5)).flatten(2).mT
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        logits: Tensor = self._head(features[..., :1, :])
        return logits

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        return ((1, 1),) if stage == "projector" else ((1, 1), (grid[0], grid[1]))

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": embeddings.numpy()}


class HalfwayToGrey:
    """A purifier that a test can compute by hand."""

    fingerprint = "sha256:half"

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 + (x - 0.5) / (1 + sigma.view(-1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def classifier() -> EvaluatedEncoder:
    return EvaluatedEncoder("tiny", TinyClassifier(), CLASSES)


@pytest.fixture(scope="session")
def photographs(classifier: EvaluatedEncoder) -> list[Photograph]:
    """Six pictures whose classes are mostly the ones that the classifier sees, so that noise has something to take."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(6):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        encoder = classifier.encoder
        seen = int(encoder.project(encoder.encode(encoder.prepare(pixels).pixels[None]), (4, 4)).argmax())
        label = (seen + (number == 5)) % CLASSES
        found.append(Photograph(f"{number}.png", f"sha256:{number}", label, lambda pixels=pixels: pixels))
    return found
