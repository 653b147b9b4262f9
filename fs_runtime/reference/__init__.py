"""The small reference MLLM that ships with the project: weights, example images, and the code that makes them."""

from importlib.resources import files
from pathlib import Path

__all__ = ["example_images", "reference_model_path", "reference_psm_path", "reference_robust_encoder_path"]


def reference_model_path() -> Path:
    """Return the folder with the shipped weights, in the Hugging Face format.

    Raises:
        FileNotFoundError: if the installation lacks the weights.
    """
    folder = Path(str(files(__name__))) / "weights"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no reference model in {folder}: reinstall fs-serve, or train one with `fs-serve train reference`"
        )
    return folder


def reference_psm_path() -> Path:
    """Return the folder with the shipped purifier and mapper of the reference model.

    Raises:
        FileNotFoundError: if the installation lacks them.
    """
    folder = Path(str(files(__name__))) / "psm"
    if not (folder / "card.json").is_file():
        raise FileNotFoundError(
            f"no purifier and mapper in {folder}: reinstall fs-serve, or train them with `fs-serve train psm`"
        )
    return folder


def reference_robust_encoder_path() -> Path | None:
    """Return the folder with the adversarially trained vision tower of the reference model; None if none ships."""
    folder = Path(str(files(__name__))) / "robust_encoder"
    return folder if (folder / "card.json").is_file() else None


def example_images() -> dict[str, Path]:
    """Return the shipped example images by name, such as "red-circle"."""
    folder = Path(str(files(__name__))) / "examples"
    return {path.stem: path for path in sorted(folder.glob("*.png"))}
