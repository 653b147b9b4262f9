"""The undefended reference model with four questions, shared by the tests of the evaluation."""

import pytest
import torch

from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.defences import Defence, defences_for
from fs_runtime.evaluation.robustness.items import EvaluationItem, evaluation_items
from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def defences() -> list[Defence]:
    encoder = load_smoother(str(reference_model_path()), device="cpu", dtype="float32").encoder
    return defences_for(encoder, 0.1)[0]


@pytest.fixture(scope="session")
def answerer() -> Answerer:
    return Answerer(reference_model_path())


@pytest.fixture(scope="session")
def items(defences: list[Defence], answerer: Answerer) -> list[EvaluationItem]:
    return evaluation_items(4, defences[0], answerer, seed=3)
