"""The shipped files: weights that answer, and example images with the named contents; and a quick import."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.reference.digits import load_digit_scans
from fs_runtime.reference.evaluate import answer_all, held_out_items, load_model, user_message
from fs_runtime.reference.example_pictures import draw_examples

WEIGHT_LIMIT = 25_000_000


@pytest.fixture(scope="module")
def shipped():
    return load_model(reference_model_path())


@pytest.fixture(scope="module")
def ask(shipped):
    def ask(text, *names):
        images = [Image.open(example_images()[name]) for name in names]
        return answer_all(*shipped, [[user_message(text, *images)]])[0]

    return ask


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fs_runtime.reference; print({'torch', 'sklearn', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_weights_are_small():
    assert sum(path.stat().st_size for path in reference_model_path().iterdir()) < WEIGHT_LIMIT


def test_missing_weights_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr("fs_runtime.reference.files", lambda name: tmp_path)
    with pytest.raises(FileNotFoundError, match="fs-serve train reference"):
        reference_model_path()


def test_transformers_loads_the_shipped_weights_in_full():
    _, info = AutoModelForImageTextToText.from_pretrained(reference_model_path(), output_loading_info=True)
    assert not any(info.values()), info


def test_nine_in_ten_held_out_questions_are_answered(shipped):
    items = held_out_items(16, seed=77)[: 7 * 16 + 40]  # every kind about scenes, and forty digits
    given = answer_all(*shipped, [item.messages for item in items])
    right = sum(text == item.answer for text, item in zip(given, items, strict=True))
    assert right / len(items) >= 0.9


def test_example_images_are_large_enough_to_look_at():
    images = example_images()
    assert set(images) == {"red-circle", "handwritten-4", "two-shapes"}
    for path in images.values():
        with Image.open(path) as image:
            assert min(image.size) >= 256
            assert image.mode == "RGB"


def test_example_images_are_drawn_by_the_project():
    drawn = draw_examples()
    for name, path in example_images().items():
        with Image.open(path) as image:
            difference = np.asarray(image, dtype=float) - np.asarray(drawn[name], dtype=float)
        assert np.abs(difference).mean() < 1  # another version of Pillow may round otherwise


def test_digit_example_is_a_held_out_scan_of_a_four():
    assert load_digit_scans()[1].labels[0] == 4


@pytest.mark.parametrize("question", ["What colour is the circle?", "What color is the circle?"])
def test_both_spellings(ask, question):
    assert ask(question, "red-circle") == "The circle is red."


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("handwritten-4", "Which digit is this?", "The digit is 4."),
        ("two-shapes", "How many shapes are there?", "There are two shapes."),
        ("handwritten-4", "Describe the image.", "A handwritten 4."),
    ],
)
def test_examples_are_answered(ask, name, question, answer):
    assert ask(question, name) == answer


def test_a_greeting_gets_an_answer(ask):
    assert ask("Hello!") == "Hello! I answer questions about pictures of coloured shapes and handwritten digits."


def test_two_images_in_one_message(ask):
    names = ("red-circle", "handwritten-4")
    assert ask("Which digit is in the second image?", *names) == "The digit is 4."
    assert ask("What colour is the circle in the first image?", *names) == "The circle is red."


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_commands_have_help(command):
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", command, "reference", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--questions" in done.stdout
