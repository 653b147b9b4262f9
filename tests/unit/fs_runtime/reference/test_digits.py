"""Held-out scans are the same fifth every time, and none of them is ever drawn for training."""

import sys

import numpy as np
import pytest

from fs_runtime.reference.conversations import draw_picture
from fs_runtime.reference.digits import load_digit_scans, plain_digit, varied_digit


def test_split_is_disjoint_and_complete():
    train, held_out = load_digit_scans()
    assert not set(train.rows) & set(held_out.rows)
    assert sorted([*train.rows, *held_out.rows]) == list(range(1797))


def test_a_fifth_of_each_digit_is_held_out():
    train, held_out = load_digit_scans()
    share = np.bincount(held_out.labels) / (np.bincount(train.labels) + np.bincount(held_out.labels))
    assert share == pytest.approx(np.full(10, 0.2), abs=0.005)


def test_the_split_is_the_one_the_shipped_weights_were_trained_with():
    held_out = load_digit_scans()[1]
    assert len(held_out) == 359
    assert held_out.rows[:6].tolist() == [4, 7, 8, 10, 25, 30]


def test_labels_belong_to_the_scans():
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    for scans in load_digit_scans():
        assert np.array_equal(scans.labels, target[scans.rows])
        assert np.allclose(scans.ink.reshape(-1, 64) * 16, images[scans.rows])


def test_training_pictures_use_training_scans_only(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "fs_runtime.reference.conversations.varied_digit",
        lambda ink, rng, size: drawn.append(ink) or varied_digit(ink, rng, size),
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        draw_picture(rng)
    assert len(drawn) > 20
    train, held_out = load_digit_scans()
    known, unknown = ({ink.tobytes() for ink in scans.ink} for scans in (train, held_out))
    assert {ink.tobytes() for ink in drawn} <= known - unknown


def test_plain_digit_is_dark_ink_on_white_paper():
    scan = load_digit_scans()[1].ink[0]
    pixels = np.asarray(plain_digit(scan, 128), dtype=float) / 255
    assert pixels.shape == (128, 128, 3)
    cells = pixels.mean(axis=2).reshape(8, 16, 8, 16).mean(axis=(1, 3))
    assert np.corrcoef(cells.ravel(), 1 - scan.ravel())[0, 1] > 0.97


def test_varied_digits_vary_and_repeat_with_the_seed():
    ink = load_digit_scans()[0].ink[0]
    first, second = (np.asarray(varied_digit(ink, np.random.default_rng(seed))) for seed in (1, 2))
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, np.asarray(varied_digit(ink, np.random.default_rng(1))))


def test_ink_stands_out_from_its_paper():
    scans = load_digit_scans()[0]
    rng = np.random.default_rng(3)
    for ink in scans.ink[:40]:
        grey = np.asarray(varied_digit(ink, rng).convert("L"), dtype=float)
        assert np.ptp(grey) > 40


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    load_digit_scans.cache_clear()
    with pytest.raises(RuntimeError, match=r"pip install 'fs-serve\[train\]'"):
        load_digit_scans()
