"""The Dockerfile, built for real on a Debian base made here, and a server started from the result.

It takes minutes, so it runs only with FS_TEST_IMAGE=1 (or ``-m image`` and that).
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from fs_runtime.reference import example_images
from tests.system_packages import need

ROOT = Path(__file__).resolve().parents[2]
PORT = 18431
CERTIFICATES = Path("/etc/ssl/certs")
pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(os.environ.get("FS_TEST_IMAGE") != "1", reason="takes minutes; set FS_TEST_IMAGE=1"),
]


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["buildah", *self.store, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()


def pip_mounts(folder: Path) -> list[str]:
    """Volumes that give pip inside the build the configuration that it has here, and the folders that this names."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = dict(line.partition("=")[::2] for line in listed.splitlines())
    lines = {name.rpartition(".")[2]: value.strip("'") for name, value in options.items()}
    wanted = {name: lines[name] for name in ("cert", "find-links", "index-url", "extra-index-url") if name in lines}
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in wanted.items()))
    volumes = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro"]
    places = [CERTIFICATES, *(Path(word.removeprefix("file://")) for word in wanted.get("find-links", "").split())]
    volumes += [f"{place}:{place}:ro" for place in places if place.is_absolute() and place.is_dir()]
    return [argument for volume in volumes for argument in ("--volume", volume)]


def cpu_torch() -> str:
    """The CPU build of the torch that is tested, where an index has it, as the Makefile does."""
    (locked,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    found = subprocess.run([*command, f"{locked}+cpu"], capture_output=True, check=False).returncode == 0
    return f"{locked}+cpu" if found else locked


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    need("buildah", "debootstrap")
    folder = tmp_path_factory.mktemp("image")
    buildah = Buildah(folder)
    root = folder / "base"
    packages = "--include=python3,python3-venv,ca-certificates"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    base = buildah("from", "scratch")
    buildah("add", base, str(root), "/")
    buildah("commit", "--rm", base, "localhost/base")
    subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=True)
    try:
        yield buildah
    finally:
        with suppress(AssertionError):
            buildah("rm", "--all")
        with suppress(AssertionError):
            buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    buildah(
        "bud",
        *("--isolation", "chroot", "--format", "docker", "--pull-never"),
        *("--build-arg", "BASE_IMAGE=localhost/base"),
        *("--build-arg", f"TORCH={cpu_torch()}"),
        *("--build-arg", "EXTRAS=[redis,tracing]"),
        *pip_mounts(tmp_path_factory.mktemp("pip")),
        *("--tag", "localhost/fs-serve"),
        ".",
    )
    return "localhost/fs-serve"


def test_the_image_says_how_it_runs(buildah: Buildah, image: str) -> None:
    config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["fs-serve"]
    assert config["Cmd"] == ["serve"]
    assert "/livez" in " ".join(config["Healthcheck"]["Test"])
    assert list(config["ExposedPorts"]) == ["8000/tcp"]


def test_a_server_from_the_image_answers_and_writes_nothing(buildah: Buildah, image: str, tmp_path: Path) -> None:
    config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    container = buildah("from", "--pull-never", image)
    url = f"http://127.0.0.1:{PORT}"
    picture = base64.b64encode(example_images()["red-circle"].read_bytes()).decode()
    log = (tmp_path / "log").open("w")
    settings = ["--env", "FS_HOST=127.0.0.1", "--env", f"FS_PORT={PORT}", "--env", "FS_SAMPLES=16"]
    command = ["run", "--isolation", "chroot", *settings, container, "--", *config["Entrypoint"], *config["Cmd"]]
    mounted = Path(buildah("mount", container))
    before = files(mounted)
    process = subprocess.Popen(
        ["buildah", *buildah.store, *command], stdout=log, stderr=log, start_new_session=True, cwd=ROOT
    )
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).is_success:
                    break
            time.sleep(0.5)
        content = [
            {"type": "text", "text": "Describe the image."},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        ]
        body = {"model": "fs-reference", "temperature": 0, "messages": [{"role": "user", "content": content}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        assert "circle" in answer["choices"][0]["message"]["content"]
        # The health check of the image, as Docker would run it.
        check = config["Healthcheck"]["Test"][1:]
        buildah("run", "--isolation", "chroot", "--env", f"FS_PORT={PORT}", container, "--", *check)
        below = psutil.Process(process.pid).children(recursive=True)
        users = {child.uids().effective for child in below if child.cmdline()[0].endswith("/python3")}
        assert users == {10001}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()
    # It would also run with a read-only root file system, /tmp and the cache of weights apart.
    apart = ("tmp/", "run/", "dev/", "proc/", "sys/")
    written = {name for name in files(mounted) - before if not name.startswith(apart)}
    assert written == set()


def files(root: Path) -> set[str]:
    """All files below a folder that is a mount point, with their times."""
    command = ["find", ".", "-xdev", "-type", "f", "-printf", "%P %T@\\n"]
    return set(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines())
