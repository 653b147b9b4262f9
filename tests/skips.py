"""The last lines of a run: what was skipped for want of something, and the command that brings it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest

# Words of a reason, and what to do about it; others are for this machine as they should be.
REMEDIES = (
    ("apt-get", "as root: make system-packages"),
    ("no vLLM", "make vllm"),
    ("FS_TEST_IMAGE", "FS_TEST_IMAGE=1 make test"),
    ("CUDA", "a machine with an NVIDIA GPU"),
    ("deepinv", "pip install 'fs-serve[deepinv]'"),
    ("licence", "pip install 'fs-serve[bm3d]'"),
    ("extra 'photographs'", "pip install 'fs-serve[photographs]'"),
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """After everything else that is printed."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    counts: Counter[str] = Counter()
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        counts[next((remedy for word, remedy in REMEDIES if word in reason), "see above")] += 1
    for remedy, count in counts.most_common():
        reporter.write_line(f"{count} skipped; what they need: {remedy}")
