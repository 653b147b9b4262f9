"""Measures how well denoisers remove Gaussian noise from pictures, and stores the scores."""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fs_runtime.evaluation.denoising.denoisers import FloatImage, NamedDenoiser
from fs_runtime.preprocessing.pictures import digest
from fs_runtime.preprocessing.resize import ResizeCrop

SCORES = "scores.jsonl"
SMALLEST_SIDE = 11  # pixels: the window of the SSIM
_OUTPUTS = "outputs"


@dataclass(frozen=True, slots=True)
class Case:
    """One noisy picture.

    Attributes:
        picture: Its name.
        digest: Of its pixels before resize and crop.
        side: Pixels a side after resize and crop.
        sigma: σ of the noise in pixels of [0, 1].
        draw: Number of the draw; at every σ the same draw is scaled.
    """

    picture: str
    digest: str
    side: int
    sigma: float
    draw: int


@dataclass(frozen=True, slots=True)
class DenoisingScore:
    """Score of one denoiser on one noisy picture, with its output clipped to [0, 1].

    Attributes:
        case: The noisy picture.
        denoiser: Its name.
        version: Its version.
        psnr: Peak signal-to-noise ratio in dB, of values in [0, 1], over all pixels and channels.
        ssim: Structural similarity (Wang et al. 2004: Gaussian window of σ = 1.5), mean over the channels.
        seconds: For this image by itself.
    """

    case: Case
    denoiser: str
    version: str
    psnr: float
    ssim: float
    seconds: float


class ScoreFile:
    """Scores on disk, one JSON line each; an incomplete last line is dropped.

    Args:
        folder: Of the evaluation; created if it is missing. It also has the outputs for the first draw, as pictures.

    Raises:
        ValueError: The file holds a line that is not a score.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / SCORES
        self._scores: dict[tuple[Case, str, str], DenoisingScore] = {}
        folder.mkdir(parents=True, exist_ok=True)
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        try:
            for line in complete.splitlines():
                fields = json.loads(line)
                self._remember(DenoisingScore(**(fields | {"case": Case(**fields["case"])})))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} does not hold scores ({error}): move it away") from None
        if complete != text:
            self._path.write_text(complete, encoding="utf-8")

    def find(self, case: Case, denoiser: NamedDenoiser) -> DenoisingScore | None:
        """The stored score of a denoiser of this version; None if there is none."""
        score = self._scores.get((case, denoiser.name, denoiser.version))
        return score if score is None or case.draw or self.output(score).exists() else None

    def add(self, score: DenoisingScore, output: FloatImage) -> None:
        """Stores a score, and for the first draw the ``(H, W, 3)`` output in [0, 1]."""
        if not score.case.draw:
            path = self.output(score)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(255 * output).astype(np.uint8)).save(path)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(score)) + "\n")
        self._remember(score)

    def output(self, score: DenoisingScore) -> Path:
        """Path of the output for a first draw."""
        case = score.case
        mark = f"{zlib.crc32(score.version.encode()):08x}"
        folder = f"{score.denoiser.replace(' ', '-')}-{mark}"
        return self._folder / _OUTPUTS / folder / f"{case.picture}-{case.side}-{case.sigma:g}.png"

    def _remember(self, score: DenoisingScore) -> None:
        self._scores[score.case, score.denoiser, score.version] = score


def cases(
    pictures: Mapping[str, NDArray[np.uint8]], sides: Sequence[int], sigmas: Sequence[float], draws: int
) -> list[Case]:
    """All noisy pictures to measure."""
    digests = {name: digest(pixels) for name, pixels in pictures.items()}
    return [
        Case(name, digests[name], side, sigma, draw)
        for draw in range(draws)
        for sigma in sigmas
        for side in sides
        for name in pictures
    ]


def clean_image(picture: NDArray[np.uint8], side: int) -> FloatImage:
    """The ``(side, side, 3)`` image in [0, 1] that a CLIP-like encoder reads: antialiased bicubic, middle square."""
    pixels = ResizeCrop(side, (side, side), "bicubic")(picture).pixels
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def noisy_image(clean: FloatImage, case: Case) -> FloatImage:
    """The image with noise, not clipped. The noise depends on the picture's name, the side and the draw's number."""
    rng = np.random.default_rng((zlib.crc32(case.picture.encode()), case.side, case.draw))
    return clean + np.float32(case.sigma) * rng.standard_normal(clean.shape, dtype=np.float32)


def measure(
    pictures: Mapping[str, NDArray[np.uint8]],
    wanted: Sequence[Case],
    denoisers: Sequence[NamedDenoiser],
    file: ScoreFile,
    advance: Callable[[str], None] = lambda _: None,
) -> list[DenoisingScore]:
    """Measures the scores that ``file`` does not have yet.

    Args:
        pictures: ``(H, W, 3)`` RGB by name.
        wanted: From :func:`cases`.
        denoisers: All see the same noisy images.
        file: Stores the scores.
        advance: Called with a description before each case and denoiser.

    Returns:
        The scores of all cases and denoisers.
    """
    return list(_scores(pictures, wanted, denoisers, file, advance))


def _scores(
    pictures: Mapping[str, NDArray[np.uint8]],
    wanted: Sequence[Case],
    denoisers: Sequence[NamedDenoiser],
    file: ScoreFile,
    advance: Callable[[str], None],
) -> Iterator[DenoisingScore]:
    for case in wanted:
        for denoiser in denoisers:
            advance(f"{denoiser.name}, σ = {case.sigma:g}, {case.side} x {case.side}, {case.picture}")
            score = file.find(case, denoiser)
            if score is None:
                clean = clean_image(pictures[case.picture], case.side)
                score, output = _score(clean, case, denoiser)
                file.add(score, output)
            yield score


def _score(clean: FloatImage, case: Case, denoiser: NamedDenoiser) -> tuple[DenoisingScore, FloatImage]:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    noisy = noisy_image(clean, case)
    began = time.perf_counter()
    found = denoiser.run(noisy, case.sigma)
    seconds = time.perf_counter() - began
    output = np.clip(found, 0.0, 1.0).astype(np.float32)
    exact, truth = output.astype(np.float64), clean.astype(np.float64)
    psnr = peak_signal_noise_ratio(truth, exact, data_range=1.0)  # type: ignore[no-untyped-call]
    ssim = structural_similarity(  # type: ignore[no-untyped-call]
        truth, exact, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return DenoisingScore(case, denoiser.name, denoiser.version, float(psnr), float(ssim), seconds), output
