"""Questions about a picture, each with its one right answer.

A question is asked only if its answer is unambiguous: sizes and positions that are nearly equal are never compared.
Questions about something that is missing, or that occurs several times, also have an answer.
"""

from dataclasses import dataclass

import numpy as np

from .phrases import THING_WORDS, phrase, pick
from .scenes import COLOURS, SHAPES, Scene, SceneObject

SCENE_KINDS = ("colour", "shape", "count", "size", "position", "exists", "describe")
NUMBER_WORDS = ("no", "one", "two", "three", "four")
ORDINALS = ("first", "second", "third")

SIZE_RATIO = 1.25  # smallest ratio of radii that are compared
POSITION_MARGIN = 0.08  # smallest distance of centres that are compared, as a fraction of the picture's side
MIDDLE = 0.1  # largest distance from the picture's centre that counts as "in the middle"

_OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
_RELATION_WORDINGS = {
    "to the left of": ("to the left of", "left of"),
    "to the right of": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
_EXTREMES = {  # wording: axis, sign of the winner, how the answer says it
    "leftmost": ("x", -1, "on the left"),
    "rightmost": ("x", 1, "on the right"),
    "topmost": ("y", -1, "at the top"),
    "bottommost": ("y", 1, "at the bottom"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question of some kind, and its answer. `topic` says what it is about, for follow-up questions."""

    kind: str
    text: str
    answer: str
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture shows: a scene, or a handwritten digit."""

    scene: Scene | None = None
    digit: int | None = None

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """The objects of the scene; none if the picture shows a digit."""
        return self.scene.objects if self.scene else ()


def ask(picture: Picture, kind: str, rng: np.random.Generator, *, unseen: bool = False) -> Question | None:
    """Ask one question of a kind (one of `SCENE_KINDS`, or "digit"), worded at random.

    Returns None if the picture allows no question of that kind, for example about sizes with one object.
    With `unseen`, the wording is one that is held out from training.
    """
    askers = {
        "colour": _ask_colour,
        "shape": _ask_shape,
        "count": _ask_count,
        "size": _ask_size,
        "position": _ask_position,
        "exists": _ask_exists,
        "describe": _ask_describe,
        "digit": _ask_digit,
    }
    return askers[kind](picture, rng, unseen)


def follow_up(picture: Picture, previous: Question, rng: np.random.Generator) -> Question | None:
    """Ask the previous question again about something else: "And the star?"; None if that is not possible."""
    if previous.topic == "colour of":
        shape = pick(SHAPES, rng)
        answer = colour_answer(picture, shape)
        text = phrase("follow up", rng, topic=f"the {shape}")
    elif previous.topic == "count some":
        group = _any_group(picture, rng)
        answer = count_answer(picture, *group)
        text = phrase("follow up", rng, topic=group_name(*group))
    elif previous.topic == "exists":
        target = _any_target(picture, rng)
        answer = exists_answer(picture, *target)
        text = phrase("follow up", rng, topic=indefinite(object_name(*target)))
    else:
        return None
    return Question("follow-up", text, answer, previous.topic)


# Names of objects.


def indefinite(name: str) -> str:
    """Put "a" or "an" before a name or a digit."""
    return ("an " if name[0] in "aeiou8" else "a ") + name


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def object_name(shape: str | None, colour: str | None) -> str:
    """Name one: "red circle"; "circle" without a colour, "red shape" without a shape."""
    return " ".join(filter(None, (colour, shape or "shape")))


def group_name(shape: str | None, colour: str | None) -> str:
    """Name several: "red circles"; "circles" without a colour, "red shapes" without a shape."""
    return " ".join(filter(None, (colour, plural(shape or "shape"))))


def matching(picture: Picture, shape: str | None, colour: str | None) -> list[SceneObject]:
    """Return the objects of that shape and colour; None matches any."""
    return [o for o in picture.objects if shape in (None, o.shape) and colour in (None, o.colour)]


# The answers, as functions of the picture's contents.


def count_answer(picture: Picture, shape: str | None, colour: str | None) -> str:
    """Answer in the manner of "There are two red circles."."""
    count = len(matching(picture, shape, colour))
    if count == 1:
        return f"There is one {object_name(shape, colour)}."
    return f"There are {NUMBER_WORDS[count]} {group_name(shape, colour)}."


def missing_or_several(picture: Picture, shape: str | None, colour: str | None) -> str | None:
    """Answer a question about "the red circle" when there is none or more than one; None if there is just one."""
    count = len(matching(picture, shape, colour))
    if count == 0:
        return f"There is no {object_name(shape, colour)}."
    return None if count == 1 else count_answer(picture, shape, colour)


def colour_answer(picture: Picture, shape: str | None) -> str:
    """Answer in the manner of "The circle is red."."""
    objection = missing_or_several(picture, shape, None)
    if objection:
        return objection
    target = matching(picture, shape, None)[0]
    return f"The {target.shape} is {target.colour}."


def shape_answer(picture: Picture, colour: str | None) -> str:
    """Answer in the manner of "The red shape is a circle."."""
    objection = missing_or_several(picture, None, colour)
    if objection:
        return objection
    target = matching(picture, None, colour)[0]
    return f"The {object_name(None, colour)} is {indefinite(target.shape)}."


def exists_answer(picture: Picture, shape: str | None, colour: str | None) -> str:
    """Answer in the manner of "Yes, there is a red circle."."""
    name = object_name(shape, colour)
    if matching(picture, shape, colour):
        return f"Yes, there is {indefinite(name)}."
    return f"No, there is no {name}."


def describe_answer(picture: Picture) -> str:
    """Name everything from left to right: "A red circle, a blue star and a pink ring.", or "A handwritten 7."."""
    if picture.digit is not None:
        return f"A handwritten {picture.digit}."
    if not picture.objects:
        return "Nothing."
    names = [indefinite(object_name(o.shape, o.colour)) for o in picture.objects]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def digit_answer(picture: Picture) -> str:
    """Answer in the manner of "The digit is 7."."""
    return "There is no digit." if picture.digit is None else f"The digit is {picture.digit}."


# The questions of each kind.


def _ask_colour(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    shapes = [o.shape for o in picture.objects]
    if len(shapes) == 1 and rng.random() < 0.3:  # "the shape", where there is only one
        ref = pick(("it", "this", "the shape", "the object", "the figure"), rng)
        return Question("colour", phrase("colour of", rng, unseen=unseen, ref=ref), colour_answer(picture, shapes[0]))
    shape = pick(SHAPES, rng) if not shapes or rng.random() < 0.1 else pick(shapes, rng)
    text = phrase("colour of", rng, unseen=unseen, ref=f"the {shape}")
    return Question("colour", text, colour_answer(picture, shape), "colour of")


def _ask_shape(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    colours = [o.colour for o in picture.objects]
    if len(colours) == 1 and rng.random() < 0.3:
        ref = pick(("it", "this", "the object", "the figure", "this figure"), rng)
        return Question("shape", phrase("shape of", rng, unseen=unseen, ref=ref), shape_answer(picture, None))
    colour = pick(tuple(COLOURS), rng) if not colours or rng.random() < 0.1 else pick(colours, rng)
    if rng.random() < 0.5:
        text = phrase("shape in colour", rng, unseen=unseen, colour=colour)
    else:
        noun = pick(("one", "object", "thing", "figure", "item"), rng)
        text = phrase("shape of", rng, unseen=unseen, ref=f"the {colour} {noun}")
    return Question("shape", text, shape_answer(picture, colour))


def _ask_count(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    if rng.random() < 0.4:
        text = phrase("count all", rng, unseen=unseen)
        return Question("count", text, count_answer(picture, None, None), "count all")
    shape, colour = _any_group(picture, rng)
    noun = group_name(shape, colour)
    if shape is None:
        noun = f"{colour} {pick(THING_WORDS, rng)[1]}"
    text = phrase("count some", rng, unseen=unseen, group=noun)
    return Question("count", text, count_answer(picture, shape, colour), "count some")


def _ask_size(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    ranked = sorted(picture.objects, key=lambda o: o.radius)
    if len(ranked) < 2:
        return None
    if len(ranked) > 2 and rng.random() < 0.35:
        return _compare_two(picture, rng, unseen)
    larger = rng.random() < 0.5
    winner, next_best = (ranked[-1], ranked[-2]) if larger else (ranked[0], ranked[1])
    if max(winner.radius, next_best.radius) < SIZE_RATIO * min(winner.radius, next_best.radius):
        return None
    name = object_name(winner.shape, winner.colour)
    if len(ranked) == 2:
        if rng.random() < 0.4:
            return _compare_two(picture, rng, unseen)
        if rng.random() < 0.6:
            degree = pick(("larger", "bigger") if larger else ("smaller",), rng)
            text = phrase("comparative", rng, unseen=unseen, degree=degree)
            return Question("size", text, f"The {name} is {'larger' if larger else 'smaller'}.")
    degree = pick(("largest", "biggest") if larger else ("smallest",), rng)
    text = phrase("superlative", rng, unseen=unseen, degree=degree)
    return Question("size", text, f"The {name} is the {'largest' if larger else 'smallest'}.")


def _compare_two(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    first, second = _any_two(picture, rng)
    if max(first.radius, second.radius) < SIZE_RATIO * min(first.radius, second.radius):
        return None
    larger = rng.random() < 0.5
    winner = max(first, second, key=lambda o: o.radius if larger else -o.radius)
    degree = pick(("larger", "bigger") if larger else ("smaller",), rng)
    text = phrase(
        "comparative named",
        rng,
        unseen=unseen,
        degree=degree,
        first=_reference(picture, first, rng),
        second=_reference(picture, second, rng),
    )
    name = object_name(winner.shape, winner.colour)
    return Question("size", text, f"The {name} is {'larger' if larger else 'smaller'}.")


def _ask_position(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    if not picture.objects:
        return None
    if len(picture.objects) == 1:
        return _ask_where(picture, rng, unseen)
    askers = (_ask_where, _ask_extreme, _ask_beside, _ask_is_beside)
    return pick(askers, rng)(picture, rng, unseen)


def _ask_where(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    target = pick(picture.objects, rng)
    across, down = target.x - 0.5, target.y - 0.5
    if max(abs(across), abs(down)) < MIDDLE:
        place = "in the middle"
    elif min(abs(across), abs(down)) > POSITION_MARGIN:
        place = f"at the {'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"
    else:
        return None
    name = object_name(target.shape, target.colour)
    text = phrase("where", rng, unseen=unseen, ref=_reference(picture, target, rng))
    return Question("position", text, f"The {name} is {place}.")


def _ask_extreme(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    wording = pick(tuple(_EXTREMES), rng)
    axis, sign, place = _EXTREMES[wording]
    ranked = sorted(picture.objects, key=lambda o: -sign * float(getattr(o, axis)))
    winner, next_best = ranked[0], ranked[1]
    if abs(getattr(winner, axis) - getattr(next_best, axis)) < POSITION_MARGIN:
        return None
    name = object_name(winner.shape, winner.colour)
    return Question("position", phrase(wording, rng, unseen=unseen), f"The {name} is {place}.")


def _ask_beside(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    anchor = pick(picture.objects, rng)
    relation = pick(tuple(_OPPOSITE), rng)
    others = [o for o in picture.objects if o is not anchor]
    offsets = [_offset(o, anchor, relation) for o in others]
    if min(abs(offset) for offset in offsets) < POSITION_MARGIN:
        return None
    found = [o for o, offset in zip(others, offsets, strict=True) if offset > 0]
    if len(found) > 1:
        return None
    reference = object_name(anchor.shape, anchor.colour)
    subject = f"The {object_name(found[0].shape, found[0].colour)}" if found else "Nothing"
    text = phrase(
        "beside",
        rng,
        unseen=unseen,
        relation=pick(_RELATION_WORDINGS[relation], rng),
        ref=_reference(picture, anchor, rng),
    )
    return Question("position", text, f"{subject} is {relation} the {reference}.")


def _ask_is_beside(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question | None:
    first, second = _any_two(picture, rng)
    relation = pick(tuple(_OPPOSITE), rng)
    offset = _offset(first, second, relation)
    if abs(offset) < POSITION_MARGIN:
        return None
    names = [object_name(o.shape, o.colour) for o in (first, second)]
    true_relation = relation if offset > 0 else _OPPOSITE[relation]
    text = phrase(
        "is beside",
        rng,
        unseen=unseen,
        relation=pick(_RELATION_WORDINGS[relation], rng),
        first=_reference(picture, first, rng),
        second=_reference(picture, second, rng),
    )
    verdict = "Yes" if offset > 0 else "No"
    return Question("position", text, f"{verdict}, the {names[0]} is {true_relation} the {names[1]}.")


def _ask_exists(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    shape, colour = _any_target(picture, rng)
    if shape is None:
        word = pick(("shape", "object", "figure", "thing"), rng)
        target = f"anything {colour}" if rng.random() < 0.3 else indefinite(f"{colour} {word}")
    else:
        target = indefinite(object_name(shape, colour))
    text = phrase("exists", rng, unseen=unseen, target=target)
    return Question("exists", text, exists_answer(picture, shape, colour), "exists")


def _ask_describe(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    return Question("describe", phrase("describe", rng, unseen=unseen), describe_answer(picture))


def _ask_digit(picture: Picture, rng: np.random.Generator, unseen: bool) -> Question:
    if picture.digit is not None and rng.random() < 0.2:
        guess = picture.digit if rng.random() < 0.5 else int(rng.integers(10))
        text = phrase("is digit", rng, unseen=unseen, numeral=indefinite(str(guess)))
        verdict = "Yes" if guess == picture.digit else "No"
        return Question("digit", text, f"{verdict}, it is {indefinite(str(picture.digit))}.")
    return Question("digit", phrase("digit", rng, unseen=unseen), digit_answer(picture))


# Choosing what to ask about.


def _any_two(picture: Picture, rng: np.random.Generator) -> tuple[SceneObject, SceneObject]:
    first, second = rng.permutation(len(picture.objects))[:2]
    return picture.objects[first], picture.objects[second]


def _any_group(picture: Picture, rng: np.random.Generator) -> tuple[str | None, str | None]:
    """Choose a shape, a colour or both, mostly of objects in the picture."""
    draw = rng.random()
    source = pick(picture.objects, rng) if picture.objects and rng.random() < 0.75 else None
    shape = source.shape if source else pick(SHAPES, rng)
    colour = source.colour if source else pick(tuple(COLOURS), rng)
    if draw < 0.55:
        return shape, None
    return (None, colour) if draw < 0.85 else (shape, colour)


def _any_target(picture: Picture, rng: np.random.Generator) -> tuple[str | None, str | None]:
    """Choose something to look for: half of the time it is in the picture, else often in another colour or shape."""
    draw = rng.random()
    shape, colour = pick(SHAPES, rng), pick(tuple(COLOURS), rng)
    if picture.objects:
        source = pick(picture.objects, rng)
        nearly = rng.random()
        shape = source.shape if nearly < 0.75 else shape
        if nearly < 0.5:
            colour = source.colour
        elif nearly < 0.85:
            colour = pick(picture.objects, rng).colour
    if draw < 0.25:
        return shape, None
    return (None, colour) if draw < 0.45 else (shape, colour)


def _reference(picture: Picture, target: SceneObject, rng: np.random.Generator) -> str:
    """Refer to an object: "the circle" or "the red one" if that is unambiguous, else "the red circle"."""
    choices = [f"the {target.colour} {target.shape}"]
    if len(matching(picture, target.shape, None)) == 1:
        choices += [f"the {target.shape}"] * 2
    if len(matching(picture, None, target.colour)) == 1:
        choices.append(f"the {target.colour} {pick(('one', 'shape', 'object'), rng)}")
    return pick(choices, rng)


def _offset(first: SceneObject, second: SceneObject, relation: str) -> float:
    """Distance of `first` from `second` in the direction of `relation`, as a fraction of the picture's side."""
    return {
        "to the left of": second.x - first.x,
        "to the right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }[relation]
