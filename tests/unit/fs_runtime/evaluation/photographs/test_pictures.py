from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fs_runtime.evaluation.denoising.photographs import PhotographsError
from fs_runtime.evaluation.photographs.pictures import (
    chosen,
    classes_of,
    folder_photographs,
    packaged_photographs,
)

NAMES = ("000_tench.png", "deep/015_robin.png", "7.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_classes_are_the_digits_that_names_begin_with(folder: Path) -> None:
    found = folder_photographs(folder)
    assert [(one.name, one.label) for one in found] == [("000_tench.png", 0), ("7.png", 7), ("deep/015_robin.png", 15)]
    assert found[0].read().shape == (20, 24, 3)
    assert len({one.digest for one in found}) == 3
    assert classes_of(found, 1000) == [0, 7, 15]
    assert classes_of(found, 15) is None
    assert classes_of(found, None) is None
    Image.new("RGB", (20, 20)).save(folder / "holiday.png")
    assert classes_of(folder_photographs(folder), 1000) is None


@pytest.mark.parametrize("heading", ["", "file,label\n"])
def test_classes_from_a_file(folder: Path, tmp_path: Path, heading: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(heading + "7.png,3\n\ndeep/015_robin.png, 1\n000_tench.png,2\n")
    assert classes_of(folder_photographs(folder, labels), 4) == [2, 3, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7.png,3\n", "has no line for '000_tench.png' and 1 more"),
        ("7.png,3\n7.png,3\n", "line 2: '7.png' is there twice"),
        ("7.png,cat\n", "line 1: give a file and a class number"),
        ("7.png\n", "line 1: give a file and a class number"),
    ],
)
def test_mistakes_in_such_a_file_are_explained(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(PhotographsError, match=words):
        folder_photographs(folder, labels)
    with pytest.raises(PhotographsError, match="cannot be read"):
        folder_photographs(folder, tmp_path / "none.csv")


def test_a_smaller_limit_takes_the_first_of_a_larger_one(folder: Path) -> None:
    found = folder_photographs(folder)
    assert chosen(found, 2, seed=4) == chosen(found, 3, seed=4)[:2]
    assert {one.name for one in chosen(found, None, seed=4)} == set(NAMES)
    assert len({tuple(one.name for one in chosen(found, 3, seed)) for seed in range(20)}) > 1


def test_photographs_of_packages_have_no_classes() -> None:
    pytest.importorskip("skimage")
    found = packaged_photographs()
    assert {one.label for one in found} == {None}
    assert "chelsea" in [one.name for one in found]
