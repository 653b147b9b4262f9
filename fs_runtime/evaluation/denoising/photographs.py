"""Colour photographs from Python packages, for measurements without downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fs_runtime.preprocessing.pictures import read_picture
from fs_runtime.system.files import TrainingError
from fs_runtime.training.data import folder_pictures

_Picture = NDArray[np.uint8]


class PhotographsError(ValueError):
    """The photographs are not available; the message says what to install."""


def photographs() -> dict[str, _Picture]:
    """The colour photographs of scikit-image, scikit-learn and matplotlib, by name, as ``(H, W, 3)`` RGB.

    Stereo pairs give their left picture. Left out are scientific images (microscopy, the retina, telescopes), grey
    pictures, and those that their package would have to download.

    Raises:
        PhotographsError: A package that brings some is not installed.
    """
    try:
        import skimage.data as skimage
        from matplotlib import get_data_path
        from sklearn.datasets import load_sample_image
    except ModuleNotFoundError as error:
        raise PhotographsError(f"{error.name} is missing: pip install 'fs-serve[evaluate]'") from None
    sources: dict[str, Callable[[], _Picture]] = {
        "astronaut": skimage.astronaut,
        "chelsea": skimage.chelsea,
        "coffee": skimage.coffee,
        "rocket": skimage.rocket,
        "motorcycle": lambda: skimage.stereo_motorcycle()[0],  # type: ignore[no-untyped-call]
        "china": lambda: load_sample_image("china.jpg"),
        "flower": lambda: load_sample_image("flower.jpg"),
        "grace_hopper": lambda: read_picture(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"),
    }
    return {name: np.asarray(read(), dtype=np.uint8) for name, read in sources.items()}


def named_pictures(folder: Path) -> dict[str, _Picture]:
    """The pictures of a folder and its subfolders, by their path in it, such as ``holidays/beach.png``.

    Raises:
        PhotographsError: There is no readable picture.
    """
    try:
        found = folder_pictures(folder)
    except TrainingError as error:
        raise PhotographsError(str(error)) from None
    return {path.relative_to(folder).as_posix(): found[index] for index, path in enumerate(found.paths)}
