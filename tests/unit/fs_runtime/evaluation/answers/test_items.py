"""Questions: the held-out ones, and those of a file."""

import json

import numpy as np
import pytest
from PIL import Image

from fs_runtime.evaluation.answers.items import ItemsError, held_out, own_items
from fs_runtime.evaluation.robustness.items import KINDS
from fs_runtime.votes import Choices


def test_fewer_questions_are_the_first_of_more(questions):
    more = held_out(40, seed=4)
    assert [one.digest for one in more[:16]] == [one.digest for one in questions]
    assert len({one.digest for one in more}) == 40
    assert [one.kind for one in questions] == [*KINDS, *KINDS]
    assert [one.digest for one in held_out(16, seed=5)] != [one.digest for one in questions]


def test_choices_are_answers_of_the_kind_and_one_is_right(questions):
    for one in held_out(600, seed=4):
        assert one.choices is not None
        assert one.answer in one.choices
        assert Choices(one.choices)(one.answer, True) == (one.answer,)
        assert 2 <= len(one.choices) <= 75
    first, again = questions[0], questions[len(KINDS)]
    assert first.choices == again.choices  # they do not tell which one is right


def test_there_are_only_so_many_digits():
    with pytest.raises(ItemsError, match="held-out digits"):
        held_out(8000, seed=0)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def written(folder, *lines):
    path = folder / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


GOOD = {"image": "a.png", "question": "What is it?", "answer": "grey"}


def test_own_questions(folder):
    chosen = {**GOOD, "choices": ["Grey.", "red"]}
    found = own_items(written(folder, GOOD, "", chosen, GOOD))
    assert [one.choices for one in found] == [None, ("Grey.", "red"), None]
    assert found[0].read().shape == (20, 30, 3)
    assert found[0].digest == found[2].digest != found[1].digest
    assert len(own_items(written(folder, GOOD, chosen), limit=1)) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "no JSON"),
        ("[1]", "give an object such as"),
        ({**GOOD, "choice": ["a"]}, "'choice' is none of image, question, answer, choices"),
        ({**GOOD, "question": ""}, "'question' must be a text, got ''"),
        ({"image": "a.png", "question": "What?"}, "'answer' must be a text, got None"),
        ({**GOOD, "image": "b.png"}, "cannot be read"),
        ({**GOOD, "image": "broken.png"}, "cannot be read"),
        ({**GOOD, "choices": "grey"}, "'choices' must be a list of texts"),
        ({**GOOD, "choices": ["grey", 3]}, "'choices' must be a list of texts"),
        ({**GOOD, "choices": ["grey"]}, "'choices' must be 2 to 100 texts"),
        ({**GOOD, "choices": ["red", "RED."]}, "are the same but for case"),
        ({**GOOD, "choices": ["red", "blue"]}, "the answer 'grey' is not among its choices; add it"),
    ],
)
def test_a_bad_line_is_named(folder, line, words):
    path = written(folder, GOOD, "", line)
    with pytest.raises(ItemsError, match=r"items\.jsonl, line 3: ") as error:
        own_items(path)
    assert words in str(error.value)


def test_a_file_without_questions(folder):
    with pytest.raises(ItemsError, match="has no question"):
        own_items(written(folder, "", ""))
    with pytest.raises(ItemsError, match="cannot be read"):
        own_items(folder / "missing.jsonl")
    (folder / "latin.jsonl").write_bytes(b"\xe4")
    with pytest.raises(ItemsError, match="UTF-8"):
        own_items(folder / "latin.jsonl")
