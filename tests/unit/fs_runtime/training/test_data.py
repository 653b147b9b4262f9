from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.system.files import TrainingError, write_file
from fs_runtime.training.data import PreparedPictures, batches, digest, folder_pictures, reference_pictures, split
from tests.integration.families import CASES, FamilyCase


def write_picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_folder_is_searched_and_bad_files_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "b.png", 1)
    write_picture(tmp_path / "deep" / "a.JPG", 2)
    write_picture(tmp_path / "tiny.png", 3, (40, 9))
    (tmp_path / "text.png").write_text("not a picture")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("no picture, and does not look like one")
    found = folder_pictures(tmp_path)
    assert [path.name for path in found.paths] == ["b.png", "a.JPG"]
    assert found[0].shape == (30, 40, 3)
    reasons = {skipped.path.name: skipped.reason for skipped in found.skipped}
    assert reasons.keys() == {"tiny.png", "text.png", "half.png"}
    assert reasons["tiny.png"] == "too small (40 x 9; at least 16 pixels a side)"
    assert "cannot be read" in reasons["text.png"]
    assert "cannot be read" in reasons["half.png"]


def test_the_digest_follows_contents_and_order(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_picture(tmp_path / "one" / f"{name}.png", seed)
        write_picture(tmp_path / "same" / f"{name}.png", seed)
        write_picture(tmp_path / "turned" / f"{name}.png", 3 - seed)
    one, same, turned = (folder_pictures(tmp_path / name) for name in ("one", "same", "turned"))
    assert digest(one) == digest(same) != digest(turned)
    a, b = one[0], one[1]
    assert digest([a, b]) == digest([a.copy(), np.asfortranarray(b)]) != digest([b, a])
    assert digest([a]) != digest([a.reshape(40, 30, 3)])


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not a folder"):
        folder_pictures(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="no file that looks like one"):
        folder_pictures(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(TrainingError, match=r"all 1 were left out \(text.png: cannot be read"):
        folder_pictures(tmp_path)


def test_too_few_pictures_are_refused() -> None:
    assert len(split(36, 32).training) == 33
    with pytest.raises(TrainingError, match=r"34 pictures are too few: .* take 35"):
        split(34, 32)


def test_held_out_pictures_are_never_trained_on() -> None:
    parts = split(1000, 32)
    assert len(parts.held_out) == 64
    assert sorted([*parts.held_out, *parts.training]) == list(range(1000))


def test_each_epoch_shows_every_picture_in_another_order() -> None:
    training = np.arange(100, 112)
    seen = list(batches(training, 4, (1, 2), 0, 6))
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(training)
    assert list(first) != list(second)


@pytest.mark.parametrize("start", [0, 2, 3, 4, 7])
def test_batches_from_the_middle_are_those_of_the_whole(start: int) -> None:
    training = np.arange(13)
    assert list(batches(training, 4, (1, 2), start, 8)) == list(batches(training, 4, (1, 2), 0, 8))[start:]


def test_reference_pictures_are_the_same_for_the_same_seed() -> None:
    a, b, c = reference_pictures(20, 1), reference_pictures(20, 1), reference_pictures(20, 2)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))
    assert a[0].shape == (64, 64, 3)


def test_a_full_disk_is_explained_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_file(path, b"old")
    (tmp_path / "checkpoint.pt.part").symlink_to("/dev/full")  # a real device without room
    with pytest.raises(TrainingError, match=r"no space left .* the same command again"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        write_file(tmp_path / "file" / "card.json", b"")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_pictures_of_any_size_share_a_batch(case: FamilyCase, tmp_path: Path) -> None:
    case.build(tmp_path / "model")
    encoder = load_encoder(str(tmp_path / "model"))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(40, 90), (90, 40), (64, 64)]]
    prepared = PreparedPictures(pictures, encoder)
    batch = torch.stack([prepared[index] for index in range(3)])
    count, tokens, _ = encoder.encode(batch).shape
    assert count == 3
    # Llama's tiles have a class token each.
    assert tokens == prepared.grid[0] * prepared.grid[1] + (4 if case.model_type == "mllama" else 0)
