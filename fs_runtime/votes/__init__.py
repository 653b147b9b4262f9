"""Votes of a model's answers to noisy copies: what is read from an answer, and how the readings are counted."""

from fs_runtime.votes.ballot import FIRST_LOOK, Ballot
from fs_runtime.votes.reading import Choices, Fields, Pattern, Reading, ReadingError, Value, WholeText, normalised

__all__ = [
    "FIRST_LOOK",
    "Ballot",
    "Choices",
    "Fields",
    "Pattern",
    "Reading",
    "ReadingError",
    "Value",
    "WholeText",
    "normalised",
]
