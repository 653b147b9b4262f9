"""``certify --receipt``, ``verify`` and ``keygen`` on the tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from fs_runtime.cli.certify import certify
from fs_runtime.cli.keygen import keygen
from fs_runtime.cli.verify import verify
from tests.integration.families import QWEN2_VL

app = typer.Typer()
for command in (certify, verify, keygen):
    app.command()(command)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def files(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, a key, its public part, and a receipt that it signed."""
    folder = tmp_path_factory.mktemp("receipts")
    colours = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "picture.png")
    made = run("keygen", folder / "key.pem")
    assert made.exit_code == 0, made.output
    (folder / "public.pem").write_text(made.stdout)
    arguments = ["--samples", 16, "--receipt", folder / "receipt.json", "--key", folder / "key.pem"]
    certified = run("certify", folder / "picture.png", "--model", tiny_llava, *arguments)
    assert certified.exit_code == 0, certified.output
    return folder


def unsigned(files: Path, folder: Path, **changes: Any) -> Path:
    document = json.loads((files / "receipt.json").read_text())
    document.update(signer=None, signature=None, **changes)
    (folder / "unsigned.json").write_text(json.dumps(document))
    return folder / "unsigned.json"


def test_the_outcome_for_programs(files: Path, tiny_llava: Path) -> None:
    trusted = ["--public-key", files / "public.pem", "--json"]
    done = run("verify", files / "receipt.json", files / "picture.png", "--model", tiny_llava, *trusted)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["verdict"], found["signature"], found["problems"]) == ("reproduced", "trusted", [])
    assert found["tolerance"] > 0


def test_a_capped_resolution_is_replayed(files: Path, tmp_path: Path) -> None:
    QWEN2_VL.build(tmp_path / "model")
    model, picture, receipt = ["--model", tmp_path / "model"], files / "picture.png", tmp_path / "receipt.json"
    certified = run("certify", picture, *model, "--max-pixels", 4000, "--samples", 16, "--receipt", receipt)
    assert certified.exit_code == 0, certified.output
    document = json.loads(receipt.read_text())
    assert document["preprocessing"]["steps"]["max_pixels"] == 4000
    done = run("verify", receipt, picture, *model)
    assert done.exit_code == 0, done.output
    for other in (5000, 10**7, -1, "4000"):
        document["preprocessing"]["steps"]["max_pixels"] = other
        receipt.write_text(json.dumps(document))
        done = run("verify", receipt, picture, *model)
        assert done.exit_code == 1, done.output


def test_a_wider_tolerance_for_another_precision(files: Path, tiny_llava: Path) -> None:
    options = ["--model", tiny_llava, "--dtype", "bfloat16", "--json"]
    done = run("verify", files / "receipt.json", files / "picture.png", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tolerance"] == 5e-3 + 1e-5


def test_another_image_another_model_another_number(files: Path, tiny_llava: Path, tmp_path: Path) -> None:
    with Image.open(files / "picture.png") as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "changed.png")
    done = run("verify", files / "receipt.json", tmp_path / "changed.png", "--model", tiny_llava)
    assert done.exit_code == 1
    assert "the image is another one" in done.stdout
    done = run("verify", files / "receipt.json", files / "picture.png", "--model", "reference")
    assert done.exit_code == 1
    assert "the model is another one" in done.stdout
    certificate = json.loads((files / "receipt.json").read_text())["certificate"]
    certificate["norm"]["estimate"] += 0.001
    changed = unsigned(files, tmp_path, certificate=certificate)
    done = run("verify", changed, files / "picture.png", "--model", tiny_llava)
    assert done.exit_code == 1
    assert "NOT REPRODUCED" in done.stdout
    assert "certificate.norm.estimate is" in done.stdout
    assert "the receipt is unsigned" in done.stdout


def test_unsigned_is_said_and_is_a_failure_where_a_key_is_trusted(
    files: Path, tiny_llava: Path, tmp_path: Path
) -> None:
    receipt = unsigned(files, tmp_path)
    done = run("verify", receipt, files / "picture.png", "--model", tiny_llava)
    assert done.exit_code == 0, done.output
    assert "none: the receipt is unsigned" in done.stdout
    done = run("verify", receipt, files / "picture.png", "--public-key", files / "public.pem")
    assert done.exit_code == 1
    assert "is wanted" in done.stdout


def test_what_cannot_be_checked(files: Path, tiny_llava: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("not a receipt")
    done = run("verify", tmp_path / "text.json", files / "picture.png", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["verdict"] == "cannot_be_checked"
    arithmetic = {"device": "cuda", "device_name": "x", "dtype": "float32", "batch_size": 8}
    receipt = unsigned(files, tmp_path, arithmetic=arithmetic)
    done = run("verify", receipt, files / "picture.png", "--model", tiny_llava, "--device", "cpu")
    assert done.exit_code == 2
    assert "CANNOT BE CHECKED" in done.stdout
    assert "different noise" in done.stdout


def test_mistakes_are_explained(files: Path) -> None:
    receipt, image, key = files / "receipt.json", files / "picture.png", files / "key.pem"
    for arguments, word in (
        (["certify", image, "--key", key], "--receipt"),
        (["certify", image, "--receipt", files / "new.json", "--key", image], "no unencrypted private key"),
        (["certify", image, "--receipt", "/no/such/receipt.json"], "does not exist"),
        (["verify", receipt, "/no/such/file.png"], "does not exist"),
        (["verify", receipt, receipt], "not a picture"),
        (["verify", receipt, image, "--public-key", key], "no public key"),
        (["verify", receipt, image, "--dtype", "int8"], "bfloat16"),
        (["keygen", key], "exists already"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert word in done.stderr
    assert not (files / "new.json").exists()
