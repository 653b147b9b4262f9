"""Models small enough to build in a moment, shared by the tests of the reference model."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from fs_runtime.reference.model import build_reference, reference_config, save_reference
from fs_runtime.reference.tokenizer import train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(conversations=200)


@pytest.fixture(scope="session")
def untrained(tokenizer: Tokenizer) -> LlavaForConditionalGeneration:
    config = reference_config(vision_layers=2, text_layers=2, width=64, vocabulary=tokenizer.get_vocab_size())
    return build_reference(3, config).eval()


@pytest.fixture(scope="session")
def untrained_folder(
    untrained: LlavaForConditionalGeneration, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    save_reference(untrained, tokenizer, folder)
    return folder
