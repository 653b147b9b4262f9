"""The reference model, and votes of which every copy is known."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from fs_runtime.embedded import load_embedded_model
from fs_runtime.evaluation.answers.ask import CopyAsker
from fs_runtime.evaluation.answers.items import VotedItem, held_out
from fs_runtime.evaluation.answers.records import CopyAnswers, ItemVotes, VoteKey
from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def asker() -> CopyAsker:
    model = str(reference_model_path())
    smoother = load_smoother(model, device="cpu", dtype="float32")
    return CopyAsker(smoother, load_embedded_model(model), batch_size=16)


@pytest.fixture(scope="session")
def questions() -> list[VotedItem]:
    return held_out(16, seed=4)


def item(answer: str = "Red.", choices: tuple[str, ...] | None = ("red", "blue")) -> VotedItem:
    return VotedItem("colour", "Which?", answer, choices, "sha256:0", lambda: np.zeros((8, 8, 3), np.uint8))


def votes_of(copies: Sequence[str], number: int = 0, sigma: float = 0.25, norm: float = 0.9) -> ItemVotes:
    """Copies that answer with these texts; an answer that begins with ``…`` was cut off."""
    texts = list(dict.fromkeys(copies))
    answers = CopyAnswers(texts, [not text.startswith("…") for text in texts], [texts.index(one) for one in copies])
    return ItemVotes(
        key=VoteKey(number, sigma),
        clean={"text": "red"},
        votes={"text": answers},
        smoothed={"text": ["blue", "red"]},
        norm_lower=[norm / 2, norm],
        smoothing=2.0,
        answering=1.0,
    )
