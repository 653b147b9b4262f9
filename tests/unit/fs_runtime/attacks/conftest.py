"""The reference model and a few of its pictures, shared by the tests of the attacks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fs_runtime.attacks import FeaturePipeline
from fs_runtime.encoders import PreparedImage
from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path
from fs_runtime.reference.scenes import render, sample_scene
from fs_runtime.smoothing.smoother import Smoother


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smoother() -> Smoother:
    return load_smoother(str(reference_model_path()), psm="none", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def prepared(smoother: Smoother) -> list[PreparedImage]:
    rng = np.random.default_rng(11)
    return [smoother.encoder.prepare(np.asarray(render(sample_scene(rng)))) for _ in range(6)]


@pytest.fixture(scope="session")
def images(prepared: list[PreparedImage]) -> Tensor:
    return torch.stack([image.pixels for image in prepared[:3]])


@pytest.fixture(scope="session")
def targets(prepared: list[PreparedImage]) -> Tensor:
    return torch.stack([image.pixels for image in prepared[3:]])


@pytest.fixture
def undefended(smoother: Smoother, prepared: list[PreparedImage]) -> FeaturePipeline:
    return FeaturePipeline(smoother, 0.0, prepared[0].grid)


@pytest.fixture
def defended(smoother: Smoother, prepared: list[PreparedImage]) -> FeaturePipeline:
    return FeaturePipeline(smoother, 0.1, prepared[0].grid, draws=8)
