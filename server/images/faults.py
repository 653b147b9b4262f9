"""Reasons why an image was refused, as numbers, since text from the decoder process is not trusted."""

from __future__ import annotations

import enum


class Fault(enum.IntEnum):
    """Why an image was not decoded. The values are sent between processes; 0 stands for success."""

    TOO_MANY_BYTES = 1
    NOT_AN_IMAGE = 2
    TOO_MANY_PIXELS = 3
    TOO_SMALL = 4
    ANIMATED = 5
    DAMAGED = 6
    TOO_COMPRESSED = 7
    TOO_COMPLEX = 8
    TOO_SLOW = 9


class ImageFaultError(Exception):
    """An image cannot be decoded.

    Args:
        fault: The reason.
        width: Width in pixels, 0 if unknown.
        height: Height in pixels, 0 if unknown.
    """

    def __init__(self, fault: Fault, width: int = 0, height: int = 0) -> None:
        super().__init__(fault, width, height)
        self.fault = fault
        self.width = width
        self.height = height

    def __str__(self) -> str:
        return self.fault.name.lower()
