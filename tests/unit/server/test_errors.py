"""Errors as plain values."""

import pickle

import pytest

from server.errors import ApiError
from server.images.faults import Fault, ImageFaultError


@pytest.mark.parametrize(
    "error",
    [
        ApiError(429, "busy", code="overloaded", headers={"retry-after": "1"}),
        ApiError(422, "low", code="certificate_below_minimum", param="robustness", extra={"robustness": {"a": [1]}}),
        ImageFaultError(Fault.TOO_SMALL, 3, 4),
        ImageFaultError(Fault.DAMAGED),
    ],
    ids=str,
)
def test_they_pickle(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert type(copy) is type(error)


def test_an_unpickled_error_is_the_same_answer() -> None:
    error = ApiError(503, "away", code="down", headers={"retry-after": "5"}, extra={"robustness": {}})
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.body(), copy.response().body, copy.headers) == (error.body(), error.response().body, error.headers)
