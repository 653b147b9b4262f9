"""Pictures to train a PSM on: a folder, or the scenes and digits of the reference model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from fs_runtime.encoders import VisionEncoder
from fs_runtime.preprocessing.pictures import read_picture
from fs_runtime.system.files import TrainingError

REFERENCE = "reference"
REFERENCE_COUNT = 8000
SMALLEST_SIDE = 16  # pixels; smaller pictures are useless for training
SQUARE = 448  # pixels a side, for encoders of any resolution
_SUFFIXES = frozenset(Image.registered_extensions())
_DIGIT_SHARE = 0.25
_SEED = 4_000_037


class Pictures(Protocol):
    """Decoded pictures by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """``(H, W, 3)`` RGB."""
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class FolderPictures:
    """The readable pictures of a folder.

    Attributes:
        paths: Their files, in order of name.
        digests: SHA-256 of each file.
        skipped: Files that look like pictures and were left out.
    """

    paths: tuple[Path, ...]
    digests: tuple[bytes, ...]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Reads a picture."""
        return read_picture(self.paths[index])


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of other pictures.

    Attributes:
        pictures: All of them.
        numbers: Which ones.
    """

    pictures: Pictures
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Reads a picture."""
        return self.pictures[int(self.numbers[index])]


def find_pictures(source: str) -> tuple[Pictures, tuple[Skipped, ...]]:
    """Finds the pictures that ``--images`` selects.

    Args:
        source: A folder, which is searched with all its subfolders, or ``reference``.

    Raises:
        TrainingError: The folder does not exist or has no usable picture.
    """
    if source == REFERENCE:
        return reference_pictures(REFERENCE_COUNT), ()
    folder = folder_pictures(Path(source))
    return folder, folder.skipped


def folder_pictures(folder: Path) -> FolderPictures:
    """Finds all pictures of a folder and decodes each once, so that training meets no damaged one.

    Raises:
        TrainingError: The folder does not exist or has no usable picture.
    """
    if not folder.is_dir():
        raise TrainingError(f"--images {folder} is not a folder; give one with pictures, or 'reference'")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    with ThreadPoolExecutor() as pool:
        checked = list(zip(paths, pool.map(_digest_or_fault, paths), strict=True))
    usable = {path: found for path, found in checked if isinstance(found, bytes)}
    skipped = tuple(Skipped(path, found) for path, found in checked if isinstance(found, str))
    if not usable:
        listed = "; ".join(f"{fault.path.name}: {fault.reason}" for fault in skipped[:3])
        why = f"all {len(skipped)} were left out ({listed})" if skipped else "it has no file that looks like one"
        raise TrainingError(f"--images {folder} holds no picture that can be used: {why}")
    return FolderPictures(tuple(usable), tuple(usable.values()), skipped)


def digest(pictures: Pictures) -> str:
    """SHA-256, in hex, over pictures in order: over the files of a folder, otherwise over the pixels."""
    if isinstance(pictures, FolderPictures):
        return hashlib.sha256(b"".join(pictures.digests)).hexdigest()
    whole = hashlib.sha256()
    for index in range(len(pictures)):
        picture = pictures[index]
        whole.update(repr(picture.shape).encode())
        whole.update(np.ascontiguousarray(picture).data)
    return whole.hexdigest()


def reference_pictures(count: int, seed: int = _SEED) -> list[NDArray[np.uint8]]:
    """Draws scenes and handwritten digits of the reference model; the same seed gives the same pictures.

    Raises:
        TrainingError: scikit-learn, which brings the digits, is not installed.
    """
    from fs_runtime.reference.digits import load_digit_scans, plain_digit, varied_digit
    from fs_runtime.reference.scenes import render, sample_scene

    try:
        scans, _ = load_digit_scans()
    except RuntimeError as error:
        raise TrainingError(str(error)) from error
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        if rng.random() < _DIGIT_SHARE:
            ink = scans.ink[int(rng.integers(len(scans)))]
            drawn = plain_digit(ink) if rng.random() < 0.5 else varied_digit(ink, rng)
        else:
            drawn = render(sample_scene(rng))
        pictures.append(np.asarray(drawn, dtype=np.uint8))
    return pictures


class PreparedPictures(Dataset[Tensor]):
    """Pictures as the encoder reads them: ``(C, H, W)`` float32 in [0, 1].

    If a picture is cut into tiles, one tile is used, since purifier and mapper process tiles separately. For an encoder
    of variable resolution, pictures are cropped to their middle square and resized to one size, so that a batch shares
    a grid.

    Attributes:
        grid: Rows and columns of the token grid of each.
    """

    def __init__(self, pictures: Pictures, encoder: VisionEncoder) -> None:
        self._pictures = pictures
        self._encoder = encoder
        square, wide = (encoder.prepare(np.zeros((side, 128, 3), np.uint8)).pixels for side in (128, 64))
        self._dynamic = square.dim() == 3 and square.shape != wide.shape
        rows, columns, *_ = encoder.prepare(self._picture(0)).grid
        self.grid = (rows, columns)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        """Reads and prepares a picture."""
        pixels = self._encoder.prepare(self._picture(index)).pixels
        return pixels if pixels.dim() == 3 else pixels[index % len(pixels)]

    def _picture(self, index: int) -> NDArray[np.uint8]:
        picture = self._pictures[index]
        if not self._dynamic:
            return picture
        square = ImageOps.fit(Image.fromarray(picture), (SQUARE, SQUARE), Image.Resampling.BICUBIC)
        return np.asarray(square, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the pictures to train on, and of the held-out ones."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split(count: int, batch_size: int) -> Split:
    """Holds out a tenth of the pictures, at most 64; the same ones in every run.

    Raises:
        TrainingError: Too few are left for one batch.
    """
    order = np.random.default_rng(_SEED).permutation(count)
    kept_out = min(64, max(1, count // 10))
    if count - kept_out < batch_size:
        raise TrainingError(
            f"{count} pictures are too few: a batch of {batch_size} and {kept_out} held-out ones take "
            f"{batch_size + kept_out}; add pictures or choose a smaller --batch-size"
        )
    return Split(order[kept_out:], order[:kept_out])


def batches(
    training: NDArray[np.int64], batch_size: int, stream: Sequence[int], start: int, stop: int
) -> Iterator[list[int]]:
    """Picture indices of the batches ``start`` to ``stop`` of an endless shuffled stream.

    The order of an epoch depends on ``stream`` and the epoch's number alone, so a resumed run gets the same batches as
    an uninterrupted one.
    """
    per_epoch = len(training) // batch_size
    epoch, order = -1, training
    for step in range(start, stop):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng((*stream, epoch)).permutation(training)
        first = (step % per_epoch) * batch_size
        yield [int(number) for number in order[first : first + batch_size]]


def _digest_or_fault(path: Path) -> bytes | str:
    """SHA-256 of a picture's file, or the reason why it cannot be used."""
    try:
        height, width = read_picture(path).shape[:2]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
    except Exception as error:  # decoders may raise anything
        return f"cannot be read ({type(error).__name__})"
    if min(height, width) < SMALLEST_SIDE:
        return f"too small ({width} x {height}; at least {SMALLEST_SIDE} pixels a side)"
    return found
