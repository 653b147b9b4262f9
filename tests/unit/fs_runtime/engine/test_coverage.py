"""Coverage of certificates as users get them: from a picture through the engine, for encoders with a known truth."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.options import CertificateQuery, Granularity
from fs_runtime.robustness import Fingerprints, ImageRobustness, certify
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked
from tests.unit.fs_runtime.certificate.laws import allowed_failures

ALPHA, SIGMA, SAMPLES = 0.1, 0.25, 128
DIGESTS = Fingerprints("sha256:x", None, None)

RUNS = pytest.mark.parametrize("runs", [40, pytest.param(1000, marks=pytest.mark.slow)])


class PlanarEncoder(VisionEncoder):
    """One token per pixel; a token's feature is a vector of the plane, a known function of its pixel over σ."""

    def __init__(self, feature: Callable[[Tensor], Tensor]) -> None:
        self._feature = feature
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        pixels = torch.from_numpy(image[None, :, :, 0].astype(np.float32) / 255)
        return PreparedImage(pixels, 1.0, (1, image.shape[1]))

    def encode(self, x: Tensor) -> Tensor:
        return self._feature(x.flatten(1) / SIGMA)

    def project(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return features

    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": embeddings.double().numpy()}


Certify = Callable[..., tuple[SmoothingResult, ImageRobustness]]


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[Tensor], Tensor]], Certify]]:
    """Makes an engine for a feature, and gives what certifies a picture whose pixels all have one value."""
    engines: list[SmoothingEngine] = []

    def starter(feature: Callable[[Tensor], Tensor]) -> Certify:
        engine = SmoothingEngine(Smoother(PlanarEncoder(feature)), batch_size=SAMPLES)
        engines.append(engine)

        def certified(tokens: int, value: int, radius: float, seed: int, **options: object):  # type: ignore[no-untyped-def]
            picture = np.full((1, tokens, 3), value, np.uint8)
            request = asked(picture, SIGMA, SAMPLES, 1 - ALPHA, seed=seed, **options)
            result = engine.submit(*request).result()
            return result, certify(result, CertificateQuery(radius), DIGESTS)

        return certified

    yield starter
    for engine in engines:
        engine.close()


@RUNS
@pytest.mark.parametrize(("granularity", "tokens"), [("image", 1), ("token", 4)])
def test_hyperplanes_at_the_edge_of_what_is_certified(
    start: Callable[[Callable[[Tensor], Tensor]], Certify], granularity: Granularity, tokens: int, runs: int
) -> None:
    """f is u up to a threshold b and -u beyond, p = Φ(-b): at r just above b σ the feature turns around.

    Without a sample beyond the threshold, which happens with a probability of nearly α, the bound fails.
    """
    p = 1 - (0.9 * ALPHA / tokens) ** (1 / (SAMPLES - 1))
    threshold = float(-ndtri(p))

    def feature(z: Tensor) -> Tensor:
        return torch.stack([torch.where(z <= threshold, 1.0, -1.0), torch.zeros_like(z)], dim=-1)

    certified, wrong, wrong_map, guessed, wrong_fidelity = start(feature), 0, 0, 0, 0
    radius = threshold * SIGMA * (1 + 1e-6)
    for seed in range(runs):
        _, found = certified(tokens, 0, radius, seed, granularity=granularity, token_map=True)
        assert found.token_map is not None
        wrong += found.smoothed.best is not None
        wrong_map += bool(np.any(np.array(found.token_map.similarity) > 0))
        guessed += found.estimate.best is not None
        assert found.fidelity is not None
        wrong_fidelity += (found.fidelity.lower or 0) > 1 - 2 * p  # the mean that its bound is of
    limit = allowed_failures(ALPHA, runs)
    print(f"{granularity}: {runs} certificates, failures {wrong}, of the map {wrong_map}, of the estimate {guessed}")
    assert wrong <= limit
    assert 0 < wrong_map <= limit
    assert wrong_fidelity <= limit
    if tokens == 1:  # with more, the least of all estimates is rarely too high
        assert wrong > 0
        assert guessed > limit


@RUNS
def test_turning_planes(start: Callable[[Callable[[Tensor], Tensor]], Certify], runs: int) -> None:
    """f_t = (cos s_t z_t, sin s_t z_t): ρ_t = exp(-s_t²/2), and g_t turns by s_t c when its pixel moves by c σ."""
    speed = torch.tensor([0.2, 0.3, 0.4, 0.5])
    moved = 8  # of 255, each pixel of the attacked picture
    ratio = moved / 255 / SIGMA
    radius = moved / 255 * np.sqrt(len(speed))
    squares = np.exp(-(speed.double().numpy() ** 2))
    turns = np.cos(speed.double().numpy() * ratio)
    by_image = float(squares @ turns / squares.sum())
    by_token = np.cos(speed.double().numpy() * radius / SIGMA)  # all of the attack on one pixel

    def feature(z: Tensor) -> Tensor:
        return torch.stack([torch.cos(speed * z), torch.sin(speed * z)], dim=-1)

    certified = start(feature)
    wrong, claimed = {"image": 0, "map": 0, "served": 0}, 0
    for seed in range(runs):
        _, image = certified(len(speed), 0, radius, 3 * seed, spectral=True, token_map=True)
        wrong["image"] += (image.smoothed.best or 0) > by_image
        assert image.token_map is not None
        wrong["map"] += bool(np.any(np.array(image.token_map.similarity) > by_token))
        here, tokens = certified(len(speed), 0, radius, 3 * seed + 1, granularity="token")
        there, _ = certified(len(speed), moved, radius, 3 * seed + 2, granularity="token")
        one, two = (result.payload["image_embeds"].astype(np.float64) for result in (here, there))
        cosine = np.sum(one * two, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        claimed += tokens.served.best is not None
        wrong["served"] += bool((tokens.served.best or 0) > cosine.min())
    print(f"turning planes: {runs} certificates, failures {wrong}, served claimed {claimed}")
    assert claimed == runs
    for name, failures in wrong.items():
        assert failures <= allowed_failures(2 * ALPHA if name == "served" else ALPHA, runs), name


@RUNS
def test_features_that_turn_away_from_the_clean_ones(
    start: Callable[[Callable[[Tensor], Tensor]], Certify], runs: int
) -> None:
    """f turns by s |z|, whichever way the pixel moves: the clean feature is (1, 0), and g points elsewhere."""
    speed, moved = 1.2, 16
    z, weights = np.polynomial.hermite_e.hermegauss(200)

    def mean(ratio: float) -> NDArray[np.float64]:
        angles = speed * np.abs(z + ratio)
        return np.array([np.cos(angles) @ weights, np.sin(angles) @ weights]) / weights.sum()

    def feature(z: Tensor) -> Tensor:
        return torch.stack([torch.cos(speed * z.abs()), torch.sin(speed * z.abs())], dim=-1)

    def cosine(vector: NDArray[np.float64]) -> float:
        return float(vector[0] / np.linalg.norm(vector))

    certified, radius = start(feature), moved / 255
    of_g, of_attacked = cosine(mean(0.0)), cosine(mean(radius / SIGMA))
    assert of_g < 0.9
    wrong, wrong_attacked, claimed = 0, 0, 0
    for seed in range(runs):
        result, found = certified(1, 0, radius, seed, token_map=True)
        assert found.fidelity is not None
        served = result.payload["image_embeds"][0].astype(np.float64)
        assert found.fidelity.served == pytest.approx(cosine(served), abs=1e-5)
        assert found.fidelity.tokens == [[pytest.approx(found.fidelity.served, abs=1e-6)]]
        assert found.fidelity.confidence == pytest.approx(1 - 2 * ALPHA)
        wrong += (found.fidelity.lower or 0) > of_g
        wrong_attacked += (found.fidelity.clean_to_attacked or -1) > of_attacked
        claimed += found.fidelity.clean_to_attacked is not None
    print(f"turned away: {runs} certificates, fidelity wrong {wrong}, of the attacked {wrong_attacked}")
    assert claimed == runs
    assert wrong <= allowed_failures(ALPHA, runs)
    assert wrong_attacked <= allowed_failures(2 * ALPHA, runs)
