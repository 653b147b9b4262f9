"""Scores count exact answers, over pictures that training never saw."""

import pytest
from PIL import Image

from fs_runtime.reference.evaluate import (
    AnswerScore,
    Evaluation,
    answer_all,
    evaluate_reference,
    held_out_items,
    load_model,
    user_message,
    wilson_interval,
)
from fs_runtime.reference.questions import SCENE_KINDS

ALL_RIGHT = [AnswerScore(kind, 100, 100) for kind in (*SCENE_KINDS, "digit")]


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (950, 1000, (0.9347, 0.9619))],
)
def test_wilson_interval(right, total, expected):
    assert wilson_interval(right, total) == pytest.approx(expected, abs=2e-4)


def test_wilson_interval_needs_a_trial():
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(
    ("kind", "right", "passed"),
    [
        ("colour", 88, True),
        ("colour", 87, False),
        ("describe", 90, True),
        ("describe", 89, False),
        ("digit", 94, False),
    ],
)
def test_what_passes(kind, right, passed):
    # Six kinds of 100 questions each: 588 of 600 is 98%.
    scores = tuple(AnswerScore(kind, right, 100) if score.kind == kind else score for score in ALL_RIGHT)
    assert Evaluation(scores, ()).passed == passed


def test_unrequired_kinds_do_not_decide():
    assert Evaluation((*ALL_RIGHT, AnswerScore("text only", 0, 100)), ()).passed


def test_table():
    table = Evaluation(tuple(ALL_RIGHT), ()).markdown()
    assert "| describe | 100 | 100 | 100.0% | 96.3% to 100.0% |" in table
    assert "| all scene questions but describe | 600 | 600 |" in table


def test_items_repeat_with_the_seed_and_cover_every_kind():
    items, again = held_out_items(8, seed=1), held_out_items(8, seed=1)
    assert [item.answer for item in items] == [item.answer for item in again]
    assert {item.kind for item in items} >= {*SCENE_KINDS, "digit", "several images", "conversation", "text only"}
    assert sum(item.kind == "digit" for item in items) == 359
    assert [item.answer for item in held_out_items(8, seed=2)] != [item.answer for item in items]


def test_conversations_end_with_the_question_to_answer():
    items = [item for item in held_out_items(16, seed=1) if item.kind == "conversation"]
    for item in items:
        assert [message["role"] for message in item.messages] == ["user", "assistant"] * 3 + ["user"]
        assert item.messages[0]["content"][0]["type"] == "image"
    assert any(part["type"] == "image" for item in items for part in item.messages[4]["content"])


def test_answers_keep_their_order_whatever_the_batch(untrained_folder):
    model, processor = load_model(untrained_folder)
    image = Image.new("RGB", (64, 64), "red")
    conversations = [
        [user_message("How many shapes are there in the picture?", image)],
        [user_message("Hi")],
        [user_message("What is this?", image, image)],
        [user_message("Describe the image.", image)],
    ]
    alone = [answer_all(model, processor, [conversation])[0] for conversation in conversations]
    assert answer_all(model, processor, conversations, batch_size=2) == alone


def test_scores_add_up(untrained_folder, monkeypatch):
    monkeypatch.setattr(
        "fs_runtime.reference.evaluate.answer_all",
        lambda model, processor, asked, size, report: ["The digit is 3."] * len(asked),
    )
    evaluation = evaluate_reference(untrained_folder, questions=8)
    digits = evaluation.score("digit")
    assert (digits.right, digits.total) == (37, 359)  # as many as there are threes
    assert len(evaluation.mistakes) == sum(score.total - score.right for score in evaluation.scores)
    assert not evaluation.passed
