"""Every answer must be true of the scene, judged from the words alone, and no question a close call."""

import re

import numpy as np
import pytest

from fs_runtime.reference.phrases import LEARNED, UNSEEN, american
from fs_runtime.reference.questions import (
    SCENE_KINDS,
    Picture,
    Question,
    ask,
    count_answer,
    exists_answer,
    follow_up,
    indefinite,
)
from fs_runtime.reference.scenes import COLOURS, SHAPES, Background, Scene, SceneObject, sample_scene
from fs_runtime.reference.small_talk import NO_PICTURE, OFF_TOPIC, missing_picture, small_talk

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4}
NOUN = r"(?:(?P<colour>" + "|".join(COLOURS) + r") )?(?P<shape>" + "|".join(SHAPES) + r"|shape)(?:e?s)?"


def samples(kind, count=60, unseen=False):
    """Pictures with a question of a kind about each."""
    rng = np.random.default_rng(11)
    found = []
    while len(found) < count:
        picture = Picture(scene=sample_scene(rng))
        question = ask(picture, kind, rng, unseen=unseen)
        if question:
            found.append((picture, question))
    return found


def read(pattern, text):
    match = re.fullmatch(pattern, text)
    assert match, f"{text!r} does not read {pattern!r}"
    return match


def those(picture, match):
    """The objects that a noun in an answer stands for."""
    shape = None if match["shape"] == "shape" else match["shape"]
    return [o for o in picture.objects if shape in (None, o.shape) and match["colour"] in (None, o.colour)]


def named(picture, text):
    """The one object called by colour and shape."""
    found = those(picture, read(NOUN, text))
    assert len(found) == 1
    return found[0]


def scene_of(*kinds):
    objects = tuple(
        SceneObject(shape, colour, 0.2 + 0.2 * index, 0.5, 0.1, 0.0, (0, 0, 0))
        for index, (colour, shape) in enumerate(kinds)
    )
    return Picture(scene=Scene(objects, Background("plain", ((0, 0, 0), (0, 0, 0)), 1.0, 0.0, 0)))


def check_number(picture, answer):
    match = read(rf"There (?:is|are) (?P<number>\w+) {NOUN}\.", answer)
    assert len(those(picture, match)) == NUMBERS[match["number"]]
    return match


def test_colour_answers():
    for picture, question in samples("colour"):
        if question.answer.startswith("There"):
            assert check_number(picture, question.answer)["number"] != "one"
            continue
        shape, colour = read(r"The (\w+) is (\w+)\.", question.answer).groups()
        assert [o.colour for o in picture.objects if o.shape == shape] == [colour]
        assert shape in question.text or len(picture.objects) == 1
        assert colour not in question.text


def test_shape_answers():
    for picture, question in samples("shape"):
        if question.answer.startswith("There"):
            assert check_number(picture, question.answer)["number"] != "one"
            continue
        match = read(r"The (?:(?P<colour>\w+) )?shape is an? (?P<answer>\w+)\.", question.answer)
        candidates = [o.shape for o in picture.objects if match["colour"] in (None, o.colour)]
        assert candidates == [match["answer"]]


def test_count_answers():
    for picture, question in samples("count"):
        match = check_number(picture, question.answer)
        for word in (match["colour"], match["shape"]):
            assert word in (None, "shape") or word in question.text


def test_exists_answers():
    for picture, question in samples("exists"):
        match = read(rf"(?P<verdict>Yes|No), there is (?:an?|no) {NOUN}\.", question.answer)
        assert bool(those(picture, match)) == (match["verdict"] == "Yes")
        for word in (match["colour"], match["shape"]):
            assert word in (None, "shape") or word in question.text


def test_size_answers_are_never_a_close_call():
    for picture, question in samples("size"):
        match = read(r"The (.+) is (?:the )?(larger|largest|smaller|smallest)\.", question.answer)
        winner = named(picture, match[1])
        rivals = [o for o in picture.objects if o is not winner]
        if match[2] in ("larger", "smaller") and len(picture.objects) > 2:  # two were named
            rivals = [o for o in rivals if o.shape in question.text or o.colour in question.text]
            ratios = [o.radius / winner.radius for o in rivals]
            assert min(ratios) <= 1 / 1.25 if match[2] == "larger" else max(ratios) >= 1.25
        elif match[2] in ("larger", "largest"):
            assert all(winner.radius >= 1.25 * o.radius for o in rivals)
        else:
            assert all(1.25 * winner.radius <= o.radius for o in rivals)


def test_position_answers_are_never_a_close_call():
    seen = set()
    for picture, question in samples("position", count=150):
        answer = question.answer
        if match := re.fullmatch(r"The (.+) is at the (top|bottom) (left|right)\.", answer):
            o = named(picture, match[1])
            assert (o.y < 0.42) if match[2] == "top" else (o.y > 0.58)
            assert (o.x < 0.42) if match[3] == "left" else (o.x > 0.58)
            seen.add("corner")
        elif match := re.fullmatch(r"The (.+) is in the middle\.", answer):
            o = named(picture, match[1])
            assert max(abs(o.x - 0.5), abs(o.y - 0.5)) <= 0.1
            seen.add("middle")
        elif match := re.fullmatch(r"The (.+) is (on the left|on the right|at the top|at the bottom)\.", answer):
            o = named(picture, match[1])
            key = {
                "on the left": lambda p: p.x,
                "on the right": lambda p: -p.x,
                "at the top": lambda p: p.y,
                "at the bottom": lambda p: -p.y,
            }[match[2]]
            assert all(key(other) - key(o) >= 0.08 for other in picture.objects if other is not o)
            seen.add("extreme")
        else:
            pattern = (
                r"(?:(Yes|No), )?(?:[Tt]he (.+?)|Nothing) is (to the left of|to the right of|above|below) the (.+)\."
            )
            verdict, subject, relation, anchor = read(pattern, answer).groups()
            centre = named(picture, anchor)
            along = {
                "to the left of": lambda o, c: c.x - o.x,
                "to the right of": lambda o, c: o.x - c.x,
                "above": lambda o, c: c.y - o.y,
                "below": lambda o, c: o.y - c.y,
            }[relation]
            offsets = {o: along(o, centre) for o in picture.objects if o is not centre}
            if verdict:
                assert offsets[named(picture, subject)] >= 0.08
                asked = next(word for word in ("left", "right", "above", "below", "under") if word in question.text)
                assert (asked.replace("under", "below") in relation) == (verdict == "Yes")
            else:
                there = [o for o, offset in offsets.items() if offset > -0.08]
                assert there == ([named(picture, subject)] if subject else [])
            seen.add("verdict" if verdict else "beside")
    assert seen == {"corner", "middle", "extreme", "verdict", "beside"}


def test_descriptions_name_everything_from_left_to_right():
    for picture, question in samples("describe"):
        names = re.split(r", | and ", question.answer.rstrip("."))
        ordered = sorted(picture.objects, key=lambda o: o.x)
        assert [name.lower().removeprefix("an ").removeprefix("a ") for name in names] == [
            f"{o.colour} {o.shape}" for o in ordered
        ]


@pytest.mark.parametrize("digit", range(10))
def test_digit_answers(digit):
    rng = np.random.default_rng(digit)
    for _ in range(20):
        question = ask(Picture(digit=digit), "digit", rng)
        match = re.fullmatch(r"The digit is (\d)\.|(Yes|No), it is an? (\d)\.", question.answer)
        assert int(match[1] or match[3]) == digit
        if match[2]:
            assert (str(digit) in question.text) == (match[2] == "Yes")


def test_absent_and_repeated_things_are_answered_too():
    picture = scene_of(("red", "circle"), ("blue", "circle"), ("red", "star"))
    assert count_answer(picture, "circle", None) == "There are two circles."
    assert count_answer(picture, "cross", None) == "There are no crosses."
    assert count_answer(picture, None, "red") == "There are two red shapes."
    assert count_answer(picture, "star", "red") == "There is one red star."
    assert exists_answer(picture, "circle", "blue") == "Yes, there is a blue circle."
    assert exists_answer(picture, "star", "blue") == "No, there is no blue star."


@pytest.mark.parametrize(
    ("name", "expected"), [("circle", "a circle"), ("orange ring", "an orange ring"), ("8", "an 8"), ("1", "a 1")]
)
def test_articles(name, expected):
    assert indefinite(name) == expected


def test_what_cannot_be_asked_is_not():
    rng = np.random.default_rng(0)
    alone = scene_of(("red", "circle"))
    assert all(ask(alone, "size", rng) is None for _ in range(20))
    equal = scene_of(("red", "circle"), ("blue", "star"))
    assert all(ask(equal, "size", rng) is None for _ in range(20))
    assert all(ask(Picture(digit=3), "position", rng) is None for _ in range(20))


def test_follow_ups_keep_the_topic():
    rng = np.random.default_rng(2)
    picture = scene_of(("red", "circle"), ("blue", "star"))
    colours = [follow_up(picture, Question("colour", "", "", "colour of"), rng) for _ in range(30)]
    assert {"The star is blue.", "There is no heart."} <= {question.answer for question in colours}
    assert all("the" in question.text for question in colours)
    assert follow_up(picture, Question("describe", "", ""), rng) is None


def test_both_spellings_are_asked():
    texts = {question.text for _, question in samples("colour")}
    assert any("colour" in text for text in texts)
    assert any("color " in text for text in texts)
    assert american("What colour is the coloured one?") == "What color is the colored one?"


def test_unseen_wordings_are_not_among_the_learned():
    for name, wordings in UNSEEN.items():
        assert not set(wordings) & set(LEARNED[name])
    learned = {question.text for kind in SCENE_KINDS for _, question in samples(kind)}
    unseen = {question.text for kind in SCENE_KINDS for _, question in samples(kind, count=20, unseen=True)}
    assert not learned & unseen


def test_every_wording_can_be_filled():
    rng = np.random.default_rng(5)
    for kind in SCENE_KINDS:
        assert not any(set("{}") & set(question.text) for _, question in samples(kind))
    for _ in range(300):
        assert not set("{}") & set(small_talk(rng).text)


def test_questions_without_a_picture_ask_for_one():
    rng = np.random.default_rng(6)
    asked = [missing_picture(rng) for _ in range(40)]
    assert {question.answer for question in asked} == {NO_PICTURE}
    assert len({question.text for question in asked}) > 25


def test_small_talk_turns_other_topics_down():
    rng = np.random.default_rng(7)
    said = [small_talk(rng) for _ in range(200)]
    france = [question for question in said if "capital" in question.text]
    assert france
    assert all(question.answer == OFF_TOPIC for question in france)
    assert len({question.answer for question in said}) == 6
