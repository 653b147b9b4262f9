"""Start vLLM's OpenAI server on CPU: ``python serve.py --model FOLDER …``, with vLLM's own arguments.

Run it with the Python of the environment that ``setup.sh`` made. The process becomes the server (exec), so its
process id and its signals are the server's. Variables that are already set win over the defaults here.
"""

import os
import sys
from pathlib import Path

DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own default is a share of the machine's memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinned, several servers on one machine would share the same cores
    "VLLM_HOST_IP": "127.0.0.1",  # between vLLM's own processes; --host says where it serves
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # models are local folders
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONSAFEPATH": "1",  # do not import modules from the working directory
}


def server_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return ``environment`` with the defaults, and with this folder's ``sitecustomize`` first on the path."""
    paths = [str(Path(__file__).resolve().parent), environment.get("PYTHONPATH", "")]
    return DEFAULTS | environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> None:
    """Replace this process by the server."""
    # The command line tool `vllm` asks for a distribution of that name, and the CPU build's is "vllm-cpu".
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[1:]]
    os.execve(sys.executable, command, server_environment(dict(os.environ)))  # noqa: S606


if __name__ == "__main__":
    main()
