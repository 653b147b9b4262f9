"""The shipped purifiers: for photographs and any encoder, trained on synthetic pictures alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT = "small"


def shipped_purifiers() -> dict[str, Path]:
    """Folders of the shipped purifiers by name."""
    folder = Path(str(files(__name__)))
    return {card.parent.name: card.parent for card in sorted(folder.glob("*/card.json"))}
