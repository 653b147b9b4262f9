"""Programs of the operating system that some tests need. Tests install nothing."""

import os
import shutil

import pytest


def need(*programs: str) -> None:
    """Skips the test where a program is missing; with ``FS_REQUIRE_SYSTEM=1`` it fails instead."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    message = f"needs {', '.join(missing)} (Debian: apt-get install prometheus buildah debootstrap redis-server)"
    if os.environ.get("FS_REQUIRE_SYSTEM") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
