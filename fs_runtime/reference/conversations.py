"""Makes the training data: conversations with one or many turns about one or several pictures."""

from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .digits import DigitScans, load_digit_scans, varied_digit
from .phrases import IMAGE_WORDS, phrase, pick
from .questions import ORDINALS, Picture, Question, ask, describe_answer, follow_up
from .scenes import COLOURS, SHAPES, SMALLEST_RADIUS, Scene, render_with_masks, sample_scene
from .small_talk import SYSTEM_PROMPTS, missing_picture, small_talk

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
PATCHES = GRID * GRID

# Number of classes for each label of a patch in the dense loss. 0 is background; IGNORED patches have no loss.
PATCH_CLASSES = {
    "shape": 1 + len(SHAPES) + 10,  # background, shapes, digits
    "colour": 1 + len(COLOURS),
    "centre": 2,  # whether an object's centre is in the patch
    "size": 8,  # of the object, in steps of a sixth
}
IGNORED = -100

_KIND_WEIGHTS = {  # of the questions about a scene
    "colour": 1.5,
    "shape": 1.5,
    "count": 1.5,
    "size": 1.4,
    "position": 2.2,
    "exists": 1.2,
    "describe": 1.7,
    "digit": 0.2,
}
_DIGIT_KIND_WEIGHTS = {"digit": 5.0, "describe": 1.5, "colour": 0.2, "shape": 0.2, "count": 0.3, "exists": 0.3}


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPicture:
    """A picture with its pixels, shape (64, 64, 3), and what each of its 64 patches shows, row by row.

    patches: shape (4, 64), one class for each of `PATCH_CLASSES`.
    """

    picture: Picture
    pixels: NDArray[np.uint8]
    patches: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer, and the number of the conversation's pictures that are sent with it."""

    question: Question
    new_pictures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Pictures and turns. With `independent`, each turn is a separate conversation about the same pictures."""

    pictures: tuple[DrawnPicture, ...]
    turns: tuple[Turn, ...]
    independent: bool
    system: str = ""


def sample_conversation(rng: np.random.Generator, turns: int = 10) -> Conversation:
    """Sample pictures, and up to `turns` questions about them."""
    draw = rng.random()
    system = pick(SYSTEM_PROMPTS, rng) if rng.random() < 0.1 else ""
    if draw < 0.04:
        return Conversation((), _text_only_turns(rng, turns), rng.random() < 0.7, system)
    count = 1 if draw < 0.84 else 2 if draw < 0.96 else 3
    pictures = tuple(draw_picture(rng) for _ in range(count))
    shown = tuple(drawn.picture for drawn in pictures)
    if rng.random() < 0.6:
        asked = [_ask_any(shown, rng, fresh=1 if count == 1 else 0) for _ in range(turns)]
        return Conversation(pictures, tuple(Turn(question) for question in asked), True, system)
    return Conversation(pictures, _sequential_turns(shown, rng, turns), False, system)


def draw_picture(rng: np.random.Generator, scans: DigitScans | None = None) -> DrawnPicture:
    """Draw a training picture: a scene, or one time in five a handwritten digit from the training scans."""
    if rng.random() < 0.2:
        scans = scans or load_digit_scans()[0]
        row = int(rng.integers(len(scans)))
        return _drawn_digit(varied_digit(scans.ink[row], rng, IMAGE_SIZE), int(scans.labels[row]))
    scene = sample_scene(rng)
    # One in five is drawn larger and then resized, as the image processor does with a picture from a file.
    size = int(rng.integers(96, 200)) if rng.random() < 0.2 else IMAGE_SIZE
    image, masks = render_with_masks(scene, size)
    if size != IMAGE_SIZE:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        masks = np.stack(
            [np.asarray(Image.fromarray(mask).resize((GRID, GRID), Image.Resampling.BOX)) for mask in masks]
        )
    return DrawnPicture(Picture(scene=scene), np.asarray(image), _label_patches(scene, _cover(masks)))


def _label_patches(scene: Scene, coverage: NDArray[np.float64]) -> NDArray[np.int64]:
    """Label each patch with the object that covers most of it: coverage (objects, 64) to classes (4, 64)."""
    largest, covered = coverage.argmax(axis=0), coverage.max(axis=0)
    clear, empty = covered > 0.12, covered < 0.04
    background = np.where(empty, 0, IGNORED)
    shapes = np.array([1 + SHAPES.index(o.shape) for o in scene.objects])
    colours = np.array([1 + tuple(COLOURS).index(o.colour) for o in scene.objects])
    sizes = np.array([int(6 * log(o.radius / SMALLEST_RADIUS)) for o in scene.objects])
    centres = np.zeros(PATCHES, dtype=np.int64)
    centres[[int(o.y * GRID) * GRID + int(o.x * GRID) for o in scene.objects]] = 1
    return np.stack(
        (
            np.where(clear, shapes[largest], background),
            np.where(clear, colours[largest], background),
            centres,
            np.where(clear, sizes[largest], IGNORED),
        )
    )


def _cover(masks: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the fraction of each patch that each object covers: masks (objects, side, side) to (objects, 64)."""
    count, side, _ = masks.shape
    cell = side // GRID
    means: NDArray[np.float64] = masks.reshape(count, GRID, cell, GRID, cell).mean(axis=(2, 4)) / 255
    return means.reshape(count, PATCHES)


def _drawn_digit(image: Image.Image, digit: int) -> DrawnPicture:
    """Label the middle patches with the digit, and ignore all other labels."""
    patches = np.full((len(PATCH_CLASSES), GRID, GRID), IGNORED)
    patches[0, 2:-2, 2:-2] = 1 + len(SHAPES) + digit
    return DrawnPicture(Picture(digit=digit), np.asarray(image), patches.reshape(-1, PATCHES))


def _text_only_turns(rng: np.random.Generator, turns: int) -> tuple[Turn, ...]:
    return tuple(Turn(missing_picture(rng) if rng.random() < 0.3 else small_talk(rng)) for _ in range(turns))


def _sequential_turns(shown: tuple[Picture, ...], rng: np.random.Generator, turns: int) -> tuple[Turn, ...]:
    """Sample the turns of one conversation. Several pictures are sent all at once, or one by one."""
    one_by_one = len(shown) > 1 and rng.random() < 0.5
    sent, made = 0, list[Turn]()
    while len(made) < turns:
        new = 0
        if sent == 0:
            new = 1 if one_by_one else len(shown)
        elif sent < len(shown) and rng.random() < 0.4:
            new = 1
        sent += new
        fresh = sent if one_by_one or len(shown) == 1 else 0
        previous = made[-1].question if made and new == 0 else None
        question = follow_up(shown[fresh - 1], previous, rng) if previous and fresh and rng.random() < 0.3 else None
        made.append(Turn(question or _ask_any(shown[:sent], rng, fresh=fresh), new))
    return tuple(made)


def _ask_any(shown: tuple[Picture, ...], rng: np.random.Generator, fresh: int) -> Question:
    """Ask about one of the pictures shown so far, or about all.

    `fresh` is the number, from 1, of the picture that "the picture" refers to; 0 if that is ambiguous, and
    then the question names the picture.
    """
    if rng.random() < 0.03:
        return small_talk(rng)
    if len(shown) > 1 and rng.random() < (0.25 if fresh == 0 else 0.1):
        return _ask_about_all(shown, rng)
    if fresh and (len(shown) == 1 or rng.random() < 0.7):
        question = ask_weighted(shown[fresh - 1], rng)
        return ask_in_image(question, fresh, len(shown), rng) if rng.random() < 0.03 else question
    number = int(rng.integers(len(shown))) + 1
    return ask_in_image(ask_weighted(shown[number - 1], rng), number, len(shown), rng)


def ask_weighted(picture: Picture, rng: np.random.Generator) -> Question:
    """Ask a question of a random kind that fits the picture; harder kinds are more frequent."""
    weights = _KIND_WEIGHTS if picture.scene else _DIGIT_KIND_WEIGHTS
    edges = np.cumsum(tuple(weights.values()))
    while True:
        kind = tuple(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
        question = ask(picture, kind, rng)
        if question:
            return question


def ask_in_image(question: Question, number: int, count: int, rng: np.random.Generator) -> Question:
    """Say which of several pictures a question is about: "In the second image, what colour is the circle?" """
    word = pick(IMAGE_WORDS[:3], rng)
    ordinal = "last" if number == count > 1 and rng.random() < 0.1 else ORDINALS[number - 1]
    text = question.text
    body, inner = text.rstrip("?.! "), text[0].lower() + text[1:]
    end = text[len(body) :].strip()
    wordings = (
        f"In the {ordinal} {word}, {inner}",
        f"In the {ordinal} {word}, {inner}",
        f"{body} in the {ordinal} {word}{end}",
        f"Look at the {ordinal} {word}. {text}",
        f"{word.capitalize()} {number}: {text}",
        f"In {word} {number}, {inner}",
        f"For the {ordinal} {word}: {inner}",
    )
    return replace(question, kind="images", text=pick(wordings, rng), topic="")


def _ask_about_all(shown: tuple[Picture, ...], rng: np.random.Generator) -> Question:
    digits = [picture.digit for picture in shown]
    if None not in digits and rng.random() < 0.7:
        names = [str(digit) for digit in digits]
        answer = f"The digits are {', '.join(names[:-1])} and {names[-1]}."
        return Question("images", phrase("digits", rng), answer)
    if len(shown) == 2:
        parts = [
            f"The {ordinal} image shows {_shown(picture)}." for ordinal, picture in zip(ORDINALS, shown, strict=False)
        ]
        return Question("images", phrase("describe all", rng), " ".join(parts))
    number = int(rng.integers(len(shown))) + 1
    return ask_in_image(ask_weighted(shown[number - 1], rng), number, len(shown), rng)


def _shown(picture: Picture) -> str:
    text = describe_answer(picture)
    return text[0].lower() + text[1:-1]
