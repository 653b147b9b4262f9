"""What an l2 radius is on a picture: never more than it."""

import math
import re

import pytest

from fs_runtime.cli.change_in_words import change_in_words


@pytest.mark.parametrize("radius", [0.007, 0.05, 0.125, 0.3, 1.0, 2.3466, 20.0])
@pytest.mark.parametrize("pixels", [56 * 56, 384 * 384])
def test_every_change_that_is_named_is_within_the_radius(radius: float, pixels: int) -> None:
    text = change_in_words(radius, pixels)
    named = re.findall(r"(\d+)/255[^\d]*?of ([\d,]+)", text)
    assert 1 <= len(named) <= 2
    for step, count in named:
        changed = int(count.replace(",", ""))
        assert changed <= pixels
        assert math.sqrt(3 * changed) * int(step) / 255 <= radius
        assert changed == pixels or math.sqrt(3 * (changed + 1)) * int(step) / 255 > radius * (1 - 1e-9)


def test_a_radius_that_is_exactly_a_change_reaches_it() -> None:
    assert change_in_words(math.sqrt(3) * 64 / 255 * (1 + 1e-9), 100).endswith("64/255 of 1")
    assert change_in_words(math.sqrt(3) / 255 * (1 + 1e-9), 100) == "1/255 in each colour of 1 pixel"


def test_less_than_a_pixel_and_more_than_a_picture() -> None:
    assert change_in_words(0.0, 100) == "less than 1/255 in each colour of one pixel"
    assert change_in_words(1e3, 100) == "any change of the picture"
