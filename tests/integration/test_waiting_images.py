"""Pictures that wait to be smoothed take little memory, and their receipts are those of their pixels."""

import gc
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.preprocessing.pictures import digest
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.verify import verify
from fs_runtime.smoothing.smoother import Smoother

from .gateway import data_url, running_gateway

SIDE = 2000
PICTURES = [Image.new("RGB", (SIDE, SIDE), (20 * number, 40, 90)) for number in range(6)]


def test_decoded_pixels_are_let_go_while_images_wait(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    decoded = SIDE * SIDE * 3
    audit = tmp_path / "audit.jsonl"
    with (
        closing(SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)) as engine,
        running_gateway(tiny_llava, engine, audit_log=audit) as gateway,
        ThreadPoolExecutor(len(PICTURES)) as clients,
    ):
        step = engine.smoother.step
        monkeypatch.setattr(engine.smoother, "step", lambda parts: (go.wait(60), step(parts))[1])
        bodies = [
            {"image": data_url(image), "robustness": {"samples": 16, "sigma": 0.1, "receipt": True}}
            for image in PICTURES
        ]
        tracemalloc.start()
        try:
            answers = [clients.submit(gateway.post, "/v1/certify", body) for body in bodies]
            end = time.monotonic() + 60
            while engine.queued_images < len(PICTURES):
                assert time.monotonic() < end, "the images did not come to wait"
                time.sleep(0.01)
            end = time.monotonic() + 10  # the last one's thread may still be about to let go
            while tracemalloc.get_traced_memory()[0] >= decoded and time.monotonic() < end:
                gc.collect()
                time.sleep(0.01)
            held, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            go.set()
        images = [answer.result().json()["robustness"]["images"][0] for answer in answers]
    assert most > decoded  # numpy's memory is counted
    assert held < decoded
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    audited = {record["images"][0]["digest"] for record in records if record["event"] == "decision"}
    assert audited == {digest(np.asarray(image)) for image in PICTURES}
    for image, found in zip(PICTURES, images, strict=True):
        receipt = parse_receipt(json.dumps(found["receipt"]).encode())
        assert (receipt.image.height, receipt.image.width) == (SIDE, SIDE)
        verification = verify(receipt, np.asarray(image), lambda: engine.smoother)
        assert verification.verdict == "reproduced", verification.problems
