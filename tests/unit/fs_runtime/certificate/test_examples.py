"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import numpy as np

from fs_runtime import certificate


def test_examples() -> None:
    attempted = 0
    for module in pkgutil.iter_modules(certificate.__path__, certificate.__name__ + "."):
        results = doctest.testmod(importlib.import_module(module.name), extraglobs={"np": np})
        assert results.failed == 0
        attempted += results.attempted
    assert attempted >= 5
