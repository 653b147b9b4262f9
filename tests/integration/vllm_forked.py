"""vLLM's server in a fork of a process that has imported vLLM: run by ``tests/forks.py``.

A server imports vLLM twice, in its own process and in its engine's, which it spawns. Here the engine comes from a
second fork, by multiprocessing's fork server, made while there is one thread.
"""

import importlib
import itertools
import os
import runpy
from collections.abc import Sequence
from multiprocessing import forkserver, get_context, util


def fork_engines() -> None:
    """Let vLLM fork its engine from a copy of this process as it is now."""
    spawn = util.spawnv_passfds
    util.spawnv_passfds = _fork_and_run
    forkserver.ensure_running()
    util.spawnv_passfds = spawn
    engines = importlib.import_module("vllm.v1.engine.utils")
    engines.get_mp_context = lambda: get_context("forkserver")


def _fork_and_run(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Do in a fork what a new Python would be started for: the program in its last argument."""
    if pid := os.fork():
        return pid
    try:
        for first, last in itertools.pairwise([2, *sorted(passed), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(first + 1, last)
        exec(arguments[-1])
    finally:
        os._exit(0)


if __name__ == "__main__":
    fork_engines()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
