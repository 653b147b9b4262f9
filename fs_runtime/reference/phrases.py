"""Wordings of the questions: those that the reference model learns, and others held out from training.

Templates have slots in braces. `{image}` and `{thing}`/`{things}` stand for any word for a picture and for
an object; the other slots are filled by the question (see `questions.py`).
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

IMAGE_WORDS = ("image", "picture", "photo", "drawing", "scene")
THING_WORDS = (("shape", "shapes"), ("object", "objects"), ("figure", "figures"), ("item", "items"))

LEARNED: dict[str, tuple[str, ...]] = {
    "colour of": (
        "What colour is {ref}?",
        "What colour is {ref} in the {image}?",
        "Which colour is {ref}?",
        "What is the colour of {ref}?",
        "What's the colour of {ref}?",
        "What colour does {ref} have?",
        "Which colour does {ref} have?",
        "{ref} is what colour?",
        "Tell me the colour of {ref}.",
        "Name the colour of {ref}.",
        "What colour would you say {ref} is?",
        "Colour of {ref}?",
        "I would like to know the colour of {ref}.",
        "Do you know what colour {ref} is?",
        "Can you tell me what colour {ref} is?",
        "Can you tell me the colour of {ref}?",
    ),
    "shape of": (
        "What shape is {ref}?",
        "Which shape is {ref}?",
        "What shape does {ref} have?",
        "What is the shape of {ref}?",
        "What's the shape of {ref}?",
        "What kind of shape is {ref}?",
        "What type of shape is {ref}?",
        "Tell me the shape of {ref}.",
        "Name the shape of {ref}.",
        "Can you tell me what shape {ref} is?",
        "{ref} has what shape?",
    ),
    "shape in colour": (
        "Which shape is {colour}?",
        "What shape is {colour}?",
        "Which {thing} is {colour}?",
        "What is {colour} in the {image}?",
        "What is {colour}?",
        "What {thing} is {colour}?",
        "What is the {colour} {thing}?",
        "Which shape is drawn in {colour}?",
        "Which shape has the colour {colour}?",
    ),
    "count all": (
        "How many {things} are there?",
        "How many {things} are in the {image}?",
        "How many {things} are there in the {image}?",
        "How many {things} are there in total?",
        "How many {things} can you see?",
        "How many {things} do you see?",
        "How many {things} does the {image} show?",
        "How many {things} are shown?",
        "What is the number of {things}?",
        "What is the total number of {things}?",
        "Count the {things}.",
        "Count the {things} in the {image}.",
        "Number of {things}?",
        "Tell me how many {things} there are.",
        "Can you count the {things}?",
    ),
    "count some": (
        "How many {group} are there?",
        "How many {group} are in the {image}?",
        "How many {group} are there in the {image}?",
        "How many {group} can you see?",
        "How many {group} do you see?",
        "How many {group} does the {image} show?",
        "What is the number of {group}?",
        "Count the {group}.",
        "Count the {group} in the {image}.",
        "Number of {group}?",
        "Tell me how many {group} there are.",
        "Can you count the {group}?",
    ),
    "comparative": (
        "Which {thing} is {degree}?",
        "Which is {degree}?",
        "Which one is {degree}?",
        "What is {degree}?",
        "Which of the two is {degree}?",
        "Which of the two {things} is {degree}?",
        "Which of them is {degree}?",
        "Which {thing} in the {image} is {degree}?",
        "Tell me which {thing} is {degree}.",
    ),
    "comparative named": (
        "Which is {degree}, {first} or {second}?",
        "Which {thing} is {degree}, {first} or {second}?",
        "Which one is {degree}, {first} or {second}?",
        "What is {degree}: {first} or {second}?",
        "Is {first} or {second} {degree}?",
        "Which is {degree}: {first} or {second}?",
    ),
    "superlative": (
        "Which {thing} is the {degree}?",
        "Which is the {degree} {thing}?",
        "What is the {degree} {thing}?",
        "What is the {degree} {thing} in the {image}?",
        "Which one is the {degree}?",
        "Which {thing} is {degree}?",
        "Which {thing} in the {image} is the {degree}?",
        "Name the {degree} {thing}.",
        "Tell me which {thing} is the {degree}.",
        "Can you tell me which {thing} is the {degree}?",
        "What's the {degree} {thing}?",
    ),
    "leftmost": (
        "What is on the left?",
        "Which {thing} is on the left?",
        "Which {thing} is on the left side?",
        "What is on the left side of the {image}?",
        "Which {thing} is furthest left?",
        "Which is the leftmost {thing}?",
        "What is the leftmost {thing}?",
        "Which {thing} is on the far left?",
    ),
    "rightmost": (
        "What is on the right?",
        "Which {thing} is on the right?",
        "Which {thing} is on the right side?",
        "What is on the right side of the {image}?",
        "Which {thing} is furthest right?",
        "Which is the rightmost {thing}?",
        "What is the rightmost {thing}?",
        "Which {thing} is on the far right?",
    ),
    "topmost": (
        "What is at the top?",
        "Which {thing} is at the top?",
        "What is at the top of the {image}?",
        "Which {thing} is highest?",
        "Which {thing} is the highest?",
        "Which is the topmost {thing}?",
        "What is the topmost {thing}?",
    ),
    "bottommost": (
        "What is at the bottom?",
        "Which {thing} is at the bottom?",
        "What is at the bottom of the {image}?",
        "Which {thing} is lowest?",
        "Which {thing} is the lowest?",
        "Which is the lowest {thing}?",
        "What is the lowest {thing}?",
    ),
    "beside": (
        "What is {relation} {ref}?",
        "What's {relation} {ref}?",
        "Which {thing} is {relation} {ref}?",
        "What do you see {relation} {ref}?",
        "What can you see {relation} {ref}?",
        "Tell me what is {relation} {ref}.",
    ),
    "is beside": (
        "Is {first} {relation} {second}?",
        "Is {first} located {relation} {second}?",
        "Would you say {first} is {relation} {second}?",
    ),
    "where": (
        "Where is {ref}?",
        "Where is {ref} in the {image}?",
        "Where is {ref} located?",
        "Where can I find {ref}?",
        "Where do you see {ref}?",
        "In which corner is {ref}?",
        "What is the position of {ref}?",
        "Tell me where {ref} is.",
    ),
    "exists": (
        "Is there {target}?",
        "Is there {target} in the {image}?",
        "Do you see {target}?",
        "Can you see {target}?",
        "Do you see {target} in the {image}?",
        "Does the {image} contain {target}?",
        "Does the {image} show {target}?",
        "Does the {image} have {target}?",
        "Is {target} in the {image}?",
        "Is {target} shown?",
    ),
    "describe": (
        "Describe the {image}.",
        "Describe this {image}.",
        "Describe the {image} briefly.",
        "Describe what you see.",
        "Describe it.",
        "Please describe the {image}.",
        "Please describe this {image}.",
        "Can you describe the {image}?",
        "Can you describe this {image}?",
        "Could you describe the {image}?",
        "Give me a description of the {image}.",
        "Give a short description of the {image}.",
        "What is in the {image}?",
        "What's in the {image}?",
        "What is in this {image}?",
        "What's in this {image}?",
        "What is this?",
        "What is shown in the {image}?",
        "What is shown?",
        "What is shown here?",
        "What do you see?",
        "What do you see in the {image}?",
        "What can you see?",
        "What can you see in this {image}?",
        "What does the {image} show?",
        "What does this {image} show?",
        "What does the {image} contain?",
        "What {things} are in the {image}?",
        "What {things} are there?",
        "Which {things} are there?",
        "Which {things} are in the {image}?",
        "Which {things} do you see?",
        "List the {things}.",
        "List the {things} in the {image}.",
        "Name the {things} in the {image}.",
        "Tell me what is in the {image}.",
        "Tell me what you see.",
        "Write a caption for the {image}.",
        "Caption this {image}.",
    ),
    "digit": (
        "Which digit is this?",
        "What digit is this?",
        "Which number is this?",
        "What number is this?",
        "Which digit is shown?",
        "What digit is shown?",
        "Which digit is in the {image}?",
        "What digit is in the {image}?",
        "What number is in the {image}?",
        "Which digit does the {image} show?",
        "Which number does the {image} show?",
        "What is the digit?",
        "What is this digit?",
        "What is this number?",
        "What is the number?",
        "What is the number in the {image}?",
        "Which digit do you see?",
        "Which number do you see?",
        "What digit do you see?",
        "What number do you see?",
        "What digit can you see?",
        "Which digit is it?",
        "Which number is it?",
        "Which digit is written here?",
        "What number is written here?",
        "What handwritten digit is this?",
        "Read the digit.",
        "Read the number.",
        "Recognise the digit.",
        "Name the digit.",
        "Tell me which digit this is.",
        "Can you read the digit?",
        "Can you tell me which digit this is?",
    ),
    "is digit": (
        "Is this {numeral}?",
        "Is it {numeral}?",
        "Is the digit {numeral}?",
        "Does the {image} show {numeral}?",
        "Do you see {numeral}?",
        "Is there {numeral} in the {image}?",
    ),
    "digits": (
        "Which digits are these?",
        "What digits are these?",
        "Which digits are shown?",
        "Which numbers are these?",
        "What numbers are these?",
        "Which digits do the images show?",
        "Which digits do you see?",
        "Read the digits.",
        "Read both digits.",
    ),
    "describe all": (
        "Describe the images.",
        "Describe both images.",
        "Describe both pictures.",
        "Describe the pictures.",
        "What is in the images?",
        "What do the images show?",
        "What do the two images show?",
        "What is in each image?",
        "Describe each image.",
    ),
    "follow up": ("And {topic}?", "What about {topic}?", "How about {topic}?", "And what about {topic}?"),
}

UNSEEN: dict[str, tuple[str, ...]] = {
    "colour of": ("In the {image}, what colour is {ref}?", "Say which colour {ref} is.", "{ref}: what colour?"),
    "shape of": ("In the {image}, what shape is {ref}?", "Say what shape {ref} is."),
    "shape in colour": ("In the {image}, which shape is {colour}?", "Name the shape that is {colour}."),
    "count all": ("In the {image}, how many {things} are there?", "How many {things} have been drawn?"),
    "count some": ("In the {image}, how many {group} are there?", "Say how many {group} you can see."),
    "comparative": ("In the {image}, which {thing} is {degree}?", "Say which one is {degree}."),
    "comparative named": ("Of {first} and {second}, which is {degree}?",),
    "superlative": ("In the {image}, which {thing} is the {degree}?", "Say which {thing} is the {degree}."),
    "leftmost": ("In the {image}, what is on the left?", "Name the {thing} on the left."),
    "rightmost": ("In the {image}, what is on the right?", "Name the {thing} on the right."),
    "topmost": ("In the {image}, what is at the top?", "Name the {thing} at the top."),
    "bottommost": ("In the {image}, what is at the bottom?", "Name the {thing} at the bottom."),
    "beside": ("In the {image}, what is {relation} {ref}?", "Name the {thing} {relation} {ref}."),
    "is beside": ("In the {image}, is {first} {relation} {second}?",),
    "where": ("In the {image}, where is {ref}?", "Say where {ref} is."),
    "exists": ("In the {image}, is there {target}?", "Are you able to see {target}?"),
    "describe": ("Say what you see.", "Please tell me what the {image} shows.", "Describe the content."),
    "digit": ("In the {image}, which digit is shown?", "Say which digit this is.", "Which numeral is this?"),
    "is digit": ("Would you say this is {numeral}?", "Is the number {numeral}?"),
}

_OPENINGS = (
    "Please tell me: ",
    "Tell me: ",
    "Question: ",
    "Look at the {image}. ",
    "Look at this {image}. ",
    "Here is {article} {image}. ",
    "Hello! ",
    "Hi, ",
    "Okay, ",
    "Please: ",
)
_CLOSINGS = (" Thanks!", " Thank you.", " Please.", " Please answer briefly.", " Be brief.", " Answer in one sentence.")


def phrase(name: str, rng: np.random.Generator, *, unseen: bool = False, **slots: str) -> str:
    """Return a random wording of the question `name`, with its slots filled.

    Learned wordings also vary in spelling (colour, color), case, punctuation and politeness. Unseen ones do
    not, so that only the wording is new.
    """
    table = UNSEEN if unseen else LEARNED
    text = fill(pick(table[name], rng), rng, **slots)
    return text if unseen else vary(text, rng)


def fill(template: str, rng: np.random.Generator, **slots: str) -> str:
    """Fill a template's slots, and capitalise its first letter."""
    image = pick(IMAGE_WORDS, rng)
    thing, things = pick(THING_WORDS, rng)
    article = "an" if image == "image" else "a"
    text = template.format(image=image, thing=thing, things=things, article=article, **slots)
    return text[0].upper() + text[1:]


def vary(text: str, rng: np.random.Generator) -> str:
    """Vary a question as people do: American spelling, an opening or a closing, careless case and punctuation."""
    if rng.random() < 0.5:
        text = american(text)
    draw = rng.random()
    if draw < 0.06:
        opening = fill(pick(_OPENINGS, rng), rng)
        text = opening + (text if opening.endswith((". ", "! ")) else text[0].lower() + text[1:])
    elif draw < 0.12:
        text += pick(_CLOSINGS, rng)
    elif draw < 0.27:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.rstrip("?.!")
    return text


def american(text: str) -> str:
    """Spell a question the American way."""
    return re.sub(r"\b([Cc])olour", r"\1olor", text).replace("ecognise", "ecognize")


def pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    """Choose one of several, with equal probability."""
    return choices[int(rng.integers(len(choices)))]
