"""Measures the accuracy of the reference model's answers, compared word for word, on held-out pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .conversations import ask_in_image
from .digits import load_digit_scans, plain_digit
from .phrases import phrase
from .questions import SCENE_KINDS, Picture, Question, ask, digit_answer, follow_up
from .scenes import render, sample_scene
from .small_talk import missing_picture, small_talk

EVALUATION_SEED = 9_000_001
MESSAGES = list[dict[str, Any]]

# Accuracy that the shipped model must reach, by kind of question. Other kinds are measured but not required.
REQUIRED = {"questions": 0.98, "describe": 0.90, "digit": 0.95}
QUESTION_KINDS = tuple(kind for kind in SCENE_KINDS if kind != "describe")


@dataclass(frozen=True, slots=True)
class AskedItem:
    """Messages in OpenAI's format, with PIL images, and the right answer."""

    kind: str
    messages: MESSAGES
    answer: str


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """How many answers of a kind were right."""

    kind: str
    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% confidence interval of the accuracy."""
        return wilson_interval(self.right, self.total)


@dataclass(frozen=True, slots=True)
class Mistake:
    """An answer that was not the right one."""

    kind: str
    question: str
    expected: str
    given: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores by kind, and the mistakes behind them."""

    scores: tuple[AnswerScore, ...]
    mistakes: tuple[Mistake, ...]

    def score(self, *kinds: str) -> AnswerScore:
        """Sum the scores of some kinds; the score is named after the only kind, or "questions"."""
        chosen = [score for score in self.scores if score.kind in kinds]
        name = kinds[0] if len(kinds) == 1 else "questions"
        return AnswerScore(name, sum(score.right for score in chosen), sum(score.total for score in chosen))

    @property
    def required(self) -> tuple[AnswerScore, ...]:
        """The scores that `REQUIRED` names."""
        return self.score(*QUESTION_KINDS), self.score("describe"), self.score("digit")

    @property
    def passed(self) -> bool:
        """Whether every required score is reached."""
        return all(score.accuracy >= REQUIRED[score.kind] for score in self.required)

    def markdown(self) -> str:
        """Write the scores as a Markdown table."""
        rows = ["| kind | right | of | accuracy | 95% interval |", "|---|---:|---:|---:|---|"]
        total = self.score(*QUESTION_KINDS)
        named = [(score.kind, score) for score in self.scores] + [("all scene questions but describe", total)]
        for name, score in named:
            low, high = score.interval
            rows.append(f"| {name} | {score.right} | {score.total} | {score.accuracy:.1%} | {low:.1%} to {high:.1%} |")
        return "\n".join(rows)


def evaluate_reference(
    folder: Path,
    questions: int = 400,
    seed: int = EVALUATION_SEED,
    device: str = "cpu",
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask the model in `folder` held-out questions, and compare its greedy answers word for word.

    Args:
        folder: a reference model, shipped or just trained.
        questions: number of questions of each kind about scenes; the other kinds scale with it, but the digits
            are always all held-out scans.
        seed: of the scenes and the wordings. The default is the seed of the recorded figures.
        device: where the model runs.
        batch_size: questions answered at once.
        report: called with the number of questions answered and their total.
    """
    items = held_out_items(questions, seed)
    model, processor = load_model(folder, device)
    given = answer_all(model, processor, [item.messages for item in items], batch_size, report)
    counts: dict[str, list[int]] = {}
    mistakes = []
    for item, text in zip(items, given, strict=True):
        count = counts.setdefault(item.kind, [0, 0])
        count[0] += text == item.answer
        count[1] += 1
        if text != item.answer:
            mistakes.append(Mistake(item.kind, _last_text(item.messages), item.answer, text))
    scores = tuple(AnswerScore(kind, right, total) for kind, (right, total) in counts.items())
    return Evaluation(scores, tuple(mistakes))


def load_model(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    """Load a reference model and its processor with transformers."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return model.to(device).eval(), processor


@torch.inference_mode()
def answer_all(
    model: Any,
    processor: Any,
    conversations: Sequence[MESSAGES],
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answer conversations greedily, in batches of similar length; the answers come in the order given."""
    prompts = [processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
    images = [[part["image"] for part in _parts(c) if part["type"] == "image"] for c in conversations]
    order = sorted(range(len(prompts)), key=lambda i: (len(images[i]), len(prompts[i])))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        pictures = [image for index in chosen for image in images[index]]
        inputs = processor(
            images=pictures or None,
            text=[prompts[index] for index in chosen],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=64)
        texts = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
        if report:
            report(start + len(chosen), len(order))
    return answers


def held_out_items(questions: int, seed: int = EVALUATION_SEED) -> list[AskedItem]:
    """Make the held-out questions: about new scenes, and about all held-out scans."""
    rng = np.random.default_rng((seed, 0))
    items = [_about_scene(kind, rng) for kind in SCENE_KINDS for _ in range(questions)]
    items += _about_digits(rng)
    items += [_about_one_of_two(rng) for _ in range(questions // 2)]
    items += [_in_conversation(rng) for _ in range(questions // 2)]
    items += [_without_picture(rng) for _ in range(questions // 4)]
    items += [_unseen_wording(rng) for _ in range(questions // 2)]
    return items


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), by default at 95%.

    Raises:
        ValueError: if there are no trials.
    """
    if total < 1:
        raise ValueError("an interval needs at least one trial")
    share = right / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def user_message(text: str, *images: Image.Image) -> dict[str, Any]:
    """Make a user message in OpenAI's format."""
    pictures: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def assistant_message(text: str) -> dict[str, Any]:
    """Make an assistant message in OpenAI's format."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _about_scene(kind: str, rng: np.random.Generator, *, unseen: bool = False) -> AskedItem:
    while True:
        scene = sample_scene(rng)
        question = ask(Picture(scene=scene), kind, rng, unseen=unseen)
        if question:
            return AskedItem(kind, [user_message(question.text, render(scene))], question.answer)


def _about_digits(rng: np.random.Generator) -> list[AskedItem]:
    scans = load_digit_scans()[1]
    return [
        AskedItem(
            "digit",
            [user_message(phrase("digit", rng), plain_digit(ink))],
            digit_answer(Picture(digit=int(label))),
        )
        for ink, label in zip(scans.ink, scans.labels, strict=True)
    ]


def _about_one_of_two(rng: np.random.Generator) -> AskedItem:
    shown = [_any_picture(rng) for _ in range(2)]
    number = int(rng.integers(2)) + 1
    question = ask_in_image(_any_question(shown[number - 1][0], rng), number, 2, rng)
    return AskedItem("several images", [user_message(question.text, *(image for _, image in shown))], question.answer)


def _in_conversation(rng: np.random.Generator) -> AskedItem:
    """Ask after three earlier turns, one of which may have sent the picture that the question is about."""
    messages: MESSAGES = []
    previous: Question | None = None
    picture = Picture()
    for turn in range(4):
        images = []
        if turn == 0 or (turn == 2 and rng.random() < 0.3):
            picture, image = _any_picture(rng)
            images, previous = [image], None
        question = follow_up(picture, previous, rng) if previous and rng.random() < 0.3 else None
        question = question or _any_question(picture, rng)
        messages.append(user_message(question.text, *images))
        if turn == 3:
            return AskedItem("conversation", messages, question.answer)
        messages.append(assistant_message(question.answer))
        previous = question
    raise AssertionError("the last turn returns")


def _without_picture(rng: np.random.Generator) -> AskedItem:
    question = missing_picture(rng) if rng.random() < 0.3 else small_talk(rng)
    return AskedItem("text only", [user_message(question.text)], question.answer)


def _unseen_wording(rng: np.random.Generator) -> AskedItem:
    kind = SCENE_KINDS[int(rng.integers(len(SCENE_KINDS)))]
    item = _about_scene(kind, rng, unseen=True)
    return AskedItem("unseen wording", item.messages, item.answer)


def _any_picture(rng: np.random.Generator) -> tuple[Picture, Image.Image]:
    if rng.random() < 0.25:
        scans = load_digit_scans()[1]
        row = int(rng.integers(len(scans)))
        return Picture(digit=int(scans.labels[row])), plain_digit(scans.ink[row])
    scene = sample_scene(rng)
    return Picture(scene=scene), render(scene)


def _any_question(picture: Picture, rng: np.random.Generator) -> Question:
    while True:
        kinds = ("digit", "describe") if picture.digit is not None else SCENE_KINDS
        question = ask(picture, kinds[int(rng.integers(len(kinds)))], rng)
        if question:
            return question


def _parts(messages: MESSAGES) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"]]


def _last_text(messages: MESSAGES) -> str:
    return str(messages[-1]["content"][-1]["text"])
