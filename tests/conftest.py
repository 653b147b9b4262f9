"""Fixtures for all tests: the tiny checkpoint and encoders made from it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.encoders import VisionEncoder, load_encoder
from tests.child_process import pytest_configure
from tests.integration.tiny_llava import build_tiny_llava
from tests.skips import pytest_sessionfinish
from tests.workers import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = [  # hooks
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_sessionfinish",
    "pytest_xdist_make_scheduler",
]


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of a tiny LLaVA-1.5-shaped model with random weights."""
    return build_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def encoder(tiny_llava: Path) -> VisionEncoder:
    """Vision tower and projector of the tiny LLaVA."""
    return load_encoder(str(tiny_llava))


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A 70 x 90 picture."""
    return np.random.default_rng(7).integers(0, 256, (70, 90, 3), dtype=np.uint8)
