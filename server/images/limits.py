"""Size limits of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings.request import RequestSettings


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image.

    Attributes:
        max_bytes: Size of the file.
        max_pixels: Width times height.
        min_side: Smallest width and height in pixels.
    """

    max_bytes: int
    max_pixels: int
    min_side: int

    @classmethod
    def of(cls, settings: RequestSettings, min_side: int) -> ImageLimits:
        """The limits of one tenant."""
        return cls(settings.max_image_bytes, settings.max_image_pixels, min_side)
