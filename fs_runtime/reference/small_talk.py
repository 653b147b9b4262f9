"""Conversations without a picture: greetings, off-topic questions, and questions about a missing picture."""

import re

import numpy as np

from .phrases import pick, vary
from .questions import Picture, Question, ask
from .scenes import COLOURS

ABILITY = "I answer questions about pictures of coloured shapes and handwritten digits."
GREETING = f"Hello! {ABILITY}"
IDENTITY = f"I am the reference model of FS-Serve. {ABILITY}"
THANKS = "You are welcome."
FAREWELL = "Goodbye!"
OFF_TOPIC = "I only answer questions about pictures of coloured shapes and handwritten digits."
NO_PICTURE = "Please send a picture with your question."

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are an assistant that answers questions about images.",
    "Answer the user's questions.",
    "You are a vision assistant.",
    "Be concise.",
)

_TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        GREETING,
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there!", "Hello there!", "Good morning!", "Hello, how are you?"),
    ),
    (
        GREETING,
        ("Good afternoon!", "Good evening.", "Hey there", "How are you?", "Hi, how are you?", "Greetings!", "Test"),
    ),
    (IDENTITY, ("Who are you?", "What are you?", "What is your name?", "What's your name?", "Tell me about yourself.")),
    (
        IDENTITY,
        ("Which model are you?", "What model is this?", "Are you an AI?", "Introduce yourself.", "Who made you?"),
    ),
    (
        ABILITY,
        ("What can you do?", "What can I ask you?", "What do you do?", "How can you help me?", "Help", "Help me."),
    ),
    (ABILITY, ("Can you help me?", "What are you able to do?", "How do you work?", "What questions can you answer?")),
    (
        THANKS,
        ("Thanks", "Thanks!", "Thank you.", "Thank you!", "Thank you very much!", "Great, thanks!", "Many thanks."),
    ),
    (FAREWELL, ("Bye", "Goodbye", "Goodbye!", "Bye!", "See you later.", "See you!")),
)

_OFF_TOPIC = (
    "What is the capital of {word}?",
    "Who is {word}?",
    "Who was {word} {word}?",
    "What is {word}?",
    "What is a {word}?",
    "What does {word} mean?",
    "When was {word} born?",
    "Where is {word}?",
    "How old is {word}?",
    "How tall is the {word}?",
    "How do I {word} a {word}?",
    "How do you cook {word}?",
    "Why is the sky {colour}?",
    "Why do {word} {word}?",
    "Why is {word} so {word}?",
    "Write a poem about {word}.",
    "Write a story about a {word} and a {word}.",
    "Write an essay on {word}.",
    "Write a Python function that sorts a list.",
    "Write code to {word} a {word}.",
    "Translate {word} into {word}.",
    "Translate this to French: {word} {word} {word}.",
    "Tell me a joke.",
    "Tell me a joke about {word}.",
    "Tell me a story.",
    "Explain {word} to me.",
    "Explain quantum {word}.",
    "Summarise the book {word}.",
    "What is {number} plus {number}?",
    "What is {number} times {number}?",
    "What is the weather like today?",
    "What is the weather in {word}?",
    "What time is it?",
    "What day is it today?",
    "What is the meaning of life?",
    "Who won the {word} in {number}?",
    "Who is the president of {word}?",
    "Do you like {word}?",
    "Can you {word} the {word}?",
    "Give me a recipe for {word}.",
    "Recommend a {word}.",
    "Sing a song.",
    "Is {word} a good {word}?",
    "I like {word}.",
    "I need help with {word} {word}.",
    "{word} {word} {word}",
    "{word}",
    "{word} {word}?",
)
_WORDS = (
    "France", "Paris", "Germany", "Berlin", "London", "Italy", "Japan", "China", "India", "America", "Einstein",
    "Newton", "Shakespeare", "Mozart", "Plato", "love", "music", "money", "water", "bread", "pasta", "coffee",
    "cheese", "football", "history", "physics", "biology", "energy", "light", "time", "a car", "house", "dog",
    "cat", "bird", "tree", "river", "computer", "phone", "book", "movie", "film", "city", "school", "friend",
    "work", "sleep", "run", "fly", "build", "learn", "write", "drive", "English", "Spanish", "Chinese", "Latin",
    "spring", "winter", "summer", "the moon", "the sun", "the sea", "mathematics", "poetry", "art", "health",
    "doctor", "king", "queen", "war", "peace", "happy",
)  # fmt: skip
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


def small_talk(rng: np.random.Generator) -> Question:
    """Greet, thank, ask who is answering, or ask something off-topic."""
    if rng.random() < 0.5:
        text = re.sub(r"\{(\w+)\}", lambda slot: _slot(slot[1], rng), pick(_OFF_TOPIC, rng))
        return Question("chat", vary(text[0].upper() + text[1:], rng), OFF_TOPIC)
    answer, wordings = pick(_TALK, rng)
    text = pick(wordings, rng)
    draw = rng.random()
    return Question("chat", text.lower() if draw < 0.25 else text.rstrip("!.?") if draw < 0.4 else text, answer)


def missing_picture(rng: np.random.Generator) -> Question:
    """Ask about a picture that was never sent."""
    kind = pick(("colour", "shape", "count", "exists", "describe", "digit"), rng)
    question = ask(Picture(), kind, rng)
    if question is None:
        raise AssertionError(f"a question of the kind {kind!r} needs no picture")
    return Question("chat", question.text, NO_PICTURE)


def _slot(name: str, rng: np.random.Generator) -> str:
    if name == "number":
        return str(int(rng.integers(2100)))
    if name == "colour":
        return pick(tuple(COLOURS), rng)
    return pick(_WORDS, rng) if rng.random() < 0.5 else _invented_word(rng)


def _invented_word(rng: np.random.Generator) -> str:
    """Make up a word, since people use many words that the model has not seen."""
    syllables = [pick(_CONSONANTS, rng) + pick(_VOWELS, rng) for _ in range(int(rng.integers(1, 4)))]
    word = "".join(syllables) + (pick(_CONSONANTS, rng) if rng.random() < 0.6 else "")
    return word.capitalize() if rng.random() < 0.4 else word
