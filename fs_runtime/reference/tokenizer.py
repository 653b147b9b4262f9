"""The reference model's tokenizer (byte-level BPE, which can encode any text) and its chat template.

A conversation is written

    <|begin|><|system|>…<|end|><|user|><image>What colour is the circle?<|end|><|assistant|>The circle is red.<|end|>

with a message's images before its text, in whatever order they were sent.
"""

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .conversations import sample_conversation

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
IMAGE = "<image>"
SPECIAL_TOKENS = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT, IMAGE)  # their ids are 0 to 6, in this order

VOCABULARY_SIZE = 1024
_CORPUS_SEED = 1


def train_tokenizer(conversations: int = 3000) -> Tokenizer:
    """Learn the tokens from this many training conversations; the result is deterministic."""
    rng = np.random.default_rng(_CORPUS_SEED)
    turns = [turn for _ in range(conversations) for turn in sample_conversation(rng).turns]
    corpus = [text for turn in turns for text in (turn.question.text, turn.question.answer)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def chat_template() -> str:
    """Return the Jinja template that turns OpenAI-style messages into the model's format."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
