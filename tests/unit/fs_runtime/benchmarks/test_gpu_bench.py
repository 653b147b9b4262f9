"""Rates that any GPU must reach; docs/performance.md has a table for each measured GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def bench(shape: str, *options: str) -> Any:
    command = [str(Path(sys.executable).with_name("fs-serve")), "bench", "smoothing", "--shape", shape]
    command += ["--device", "cuda", "--samples", "512", "--rounds", "3", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return json.loads(done.stdout)


def test_every_way_of_computing_the_networks_works() -> None:
    """The command of the table in docs/performance.md, with small settings; a failed mode gives exit status 1."""
    options = ["--batch-sizes", "64", "--compile", "none,default,reduce-overhead", "--quantization", "none,fp8"]
    eager, *others = bench("clip-vit-l-14-336", *options)
    assert eager["way"] == "eager"
    assert {way["way"] for way in others} == {
        "compiled default",
        "compiled reduce-overhead",
        "fp8, eager",
        "fp8, compiled default",
        "fp8, compiled reduce-overhead",
    }
    assert max(way["found"]["smoothing"] for way in others) > eager["found"]["smoothing"]


def test_llavas_encoder_keeps_the_device_busy() -> None:
    found = bench("clip-vit-l-14-336")
    assert found["dtype"] == "bfloat16"
    assert found["over_plain_loop"] >= 8
    assert found["of_bare"] >= 0.93
    assert found["image_seconds"].keys() == {"256", "1000"}
    for count, seconds in found["image_seconds"].items():
        assert int(count) / seconds >= 0.8 * found["smoothing"]  # beginning and end of an image are a small part


def test_qwens_encoder_keeps_the_device_busy() -> None:
    found = bench("qwen2.5-vl-7b", "--side", "448", "--batch-sizes", "16,32,64", "--image-samples", "256")
    assert found["grid"] == [32, 32]
    assert found["over_plain_loop"] >= 4
    assert found["of_bare"] >= 0.93
