"""Several workers of pytest-xdist: each file stays on one of them, and those that need vLLM share two."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
# What takes longest begins first, or one worker would wait for it in the end.
FAMILIES = "tests/integration/test_families.py"
LONGEST = (
    FAMILIES,
    "tests/integration/test_image.py",
    "tests/unit/fs_runtime/training/test_psm.py",
    "tests/integration/test_cli.py",
    "tests/integration/test_models.py",
    "tests/unit/fs_runtime/smoothing/test_compilation.py",
    "tests/unit/fs_runtime/attacks/",
    "tests/unit/fs_runtime/certificate/",
    "tests/integration/",
)


@functools.cache
def needs_vllm(file: str) -> bool:
    """Whether tests of a file ask for a real vLLM, whose servers each session of tests starts anew."""
    return "mark.vllm" in (ROOT / file).read_text()


class ByFile(LoadScopeScheduling):
    """Hands files to workers."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        # Families have servers of their own; all others have some in common.
        return "vllm" if needs_vllm(file) and file != FAMILIES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Called in the process that hands out work."""
    config.option.loadscopereorder = False
    return ByFile(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what takes longest first, alike in all workers; one process alone keeps the order."""
    if not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        if needs_vllm(file) and file != FAMILIES:
            return -1
        return next((number for number, name in enumerate(LONGEST) if file.startswith(name)), len(LONGEST))

    items.sort(key=place)
