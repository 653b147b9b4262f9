"""Fixtures for tests against real servers. A server starts once in a session, when a test first asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .tiny_llava import build_tiny_llava
from .vllm_process import EMBEDDINGS_ONLY, VllmForks, VllmServer, VllmServers, vllm_python


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need vLLM where there is none; with ``FS_REQUIRE_VLLM=1`` they fail."""
    if item.get_closest_marker("vllm") is not None:
        _vllm_python_or_skip()


def _vllm_python_or_skip() -> Path:
    try:
        return vllm_python()
    except FileNotFoundError as missing:
        if os.environ.get("FS_REQUIRE_VLLM") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def vllm_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmForks]:
    """Where real vLLM servers start quickly."""
    forks = VllmForks(_vllm_python_or_skip(), tmp_path_factory.mktemp("vllm"))
    yield forks
    forks.stop()


@pytest.fixture(scope="session")
def vllm_servers(vllm_forks: VllmForks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServers]:
    """Real vLLM servers, by checkpoint and arguments; the same one for the same question."""
    servers = VllmServers(vllm_forks, tmp_path_factory.mktemp("vllm-logs"))
    yield servers
    servers.stop()


class TinyLlavaServers(NamedTuple):
    """One model behind two vLLM servers: ``images`` has its vision tower, ``embeddings`` takes embeddings only."""

    images: VllmServer
    embeddings: VllmServer


@pytest.fixture(scope="session")
def tiny_llava_servers(
    vllm_servers: VllmServers, tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyLlavaServers:
    """The tiny LLaVA behind both kinds of server.

    The embeddings-only server gets a checkpoint without the weights of vision tower and projector. vLLM refuses to
    start on missing weights, so that it starts proves that it has no vision tower.
    """
    without_vision = build_tiny_llava(tmp_path_factory.mktemp("tiny-llava-language"), with_vision=False)
    servers = TinyLlavaServers(
        images=vllm_servers.start(tiny_llava, name="tiny-llava"),
        embeddings=vllm_servers.start(without_vision, *EMBEDDINGS_ONLY, name="tiny-llava"),
    )
    for server in servers:
        server.wait_until_ready()
    return servers
