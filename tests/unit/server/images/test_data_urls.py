import base64

import pytest

from server.errors import ApiError
from server.images.data_urls import decode_data_url
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000, min_side=4)
PARAM = "messages.0.content.0.image_url.url"


@pytest.mark.parametrize("start", ["data:image/png;base64,", "DATA:text/plain;charset=x;base64,"])
def test_the_bytes_count_and_not_the_media_type(start: str) -> None:
    assert decode_data_url(start + base64.b64encode(b"abc").decode(), LIMITS, PARAM) == b"abc"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png,abc", "invalid_data_url"),
        ("data:image/png;base64", "invalid_data_url"),
        ("data:image/png;base64,@@@@", "invalid_base64"),
        ("data:image/png;base64,abc", "invalid_base64"),
        ("data:image/png;base64,YW Jj", "invalid_base64"),
        ("data:image/png;base64,YWJj\n", "invalid_base64"),
        ("data:image/png;base64,ÿÿÿÿ", "invalid_base64"),
    ],
)
def test_bad_data_urls(url: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_data_url(url, LIMITS, PARAM)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, PARAM)


def test_length_is_checked_before_base64_is_decoded() -> None:
    with pytest.raises(ImageFaultError) as caught:
        decode_data_url("data:image/png;base64," + "*" * 2_000_000, LIMITS, PARAM)
    assert caught.value.fault == Fault.TOO_MANY_BYTES
