"""Which f is smoothed: the projector's features, centred features, and the statistics that centring needs."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.evaluation.features import measure_feature_statistics
from fs_runtime.loading.engine import load_smoother, load_statistics
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.feature_statistics import FILE_NAME, FeatureStatistics, Floor, StatisticsError
from fs_runtime.smoothing.noise import NoiseStream
from fs_runtime.smoothing.smoother import Smoother


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(6)]


@pytest.fixture(scope="module")
def statistics(encoder: VisionEncoder, pictures: list[NDArray[np.uint8]]) -> FeatureStatistics:
    return measure_feature_statistics(Smoother(encoder), pictures, sigma=0.1, samples=4)


@pytest.mark.parametrize("stage", ["encoder", "projector"])
@pytest.mark.parametrize("centred", [False, True])
def test_the_pass_is_the_definition_of_every_feature_map(
    encoder: VisionEncoder, picture: NDArray[np.uint8], statistics: FeatureStatistics, stage: str, centred: bool
) -> None:
    feature_map = FeatureMap("projector" if stage == "projector" else "encoder", centred)
    image = encoder.prepare(picture)
    noise, outputs = NoiseStream(4, torch.device("cpu")), []
    with torch.inference_mode():
        for _ in range(6):
            delta = torch.empty(1, *image.pixels.shape)
            noise.draw(delta)
            z = encoder.encode(image.pixels[None] + 0.2 * delta)
            outputs.append(encoder.project(z, image.grid) if stage == "projector" else z)
        values = torch.cat(outputs).double()
        centre = statistics.centre(feature_map.stage, image.grid, torch.device("cpu")).double() if centred else 0.0
        lengths = (values - centre).norm(dim=-1)
        mean = ((values - centre) / lengths[..., None]).mean(0)
        handed_on = mean / mean.norm(dim=-1, keepdim=True) * lengths.mean(0)[:, None] + centre
        embeddings = handed_on.float() if stage == "projector" else encoder.project(handed_on.float(), image.grid)
    smoother = Smoother(encoder, statistics=statistics)
    state = smoother.start(image, 0.2, 4, feature_map)
    smoother.step([(state, 4)])
    smoother.step([(state, 2)])
    assert state.feature_sum is not None
    torch.testing.assert_close(state.feature_sum.double() / 6, mean, atol=2e-5, rtol=0)
    torch.testing.assert_close(smoother.finish(state).embeddings, embeddings, atol=1e-3, rtol=1e-3)


def test_sketch_sees_the_deviations_from_the_mean_before(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    smoother = Smoother(encoder)
    image = encoder.prepare(picture)
    state = smoother.start(image, 0.3, 5, spectral=True)
    sums = [torch.zeros(())]
    for _ in range(20):
        smoother.step([(state, 1)])
        assert state.feature_sum is not None
        sums.append(state.feature_sum.clone())
    f = torch.stack([(new - old).flatten() / 16**0.5 for old, new in pairwise(sums)]).double()
    before = f.cumsum(0)[:-1] / torch.arange(1, 20)[:, None]
    exact = float(torch.linalg.matrix_norm(f[1:] - before, 2) ** 2 / 19)
    in_blocks = smoother.start(image, 0.3, 5, spectral=True)
    for block in (1, 3, 16):
        smoother.step([(in_blocks, block)])
    for sketch in (state.sketch, in_blocks.sketch):
        assert sketch is not None
        assert sketch.count == 19
        assert sketch.largest == pytest.approx(exact, rel=1e-3)


def test_centring_lowers_the_floor(statistics: FeatureStatistics) -> None:
    for stage in ("encoder", "projector"):
        plain, centred = (statistics.floor(FeatureMap(stage, on)) for on in (False, True))
        assert isinstance(plain, Floor)
        assert -1 <= centred.mean < 0.3 < plain.mean <= plain.high <= 1


def test_floor_is_the_cosine_of_different_images(
    encoder: VisionEncoder, pictures: list[NDArray[np.uint8]], statistics: FeatureStatistics
) -> None:
    smoother, means = Smoother(encoder), []
    for number, picture in enumerate(pictures):
        state = smoother.start(encoder.prepare(picture), 0.1, number)
        smoother.step([(state, 4)])
        assert state.feature_sum is not None
        means.append(state.feature_sum.flatten().numpy())
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(means) for b in means[i + 1 :]
    ]
    assert statistics.floor(FeatureMap()).mean == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_grid_that_was_never_seen_gets_the_mean_over_all(statistics: FeatureStatistics) -> None:
    known, other = (statistics.centre("encoder", grid, torch.device("cpu")) for grid in ((4, 4), (9, 2)))
    assert known.shape == (16, other.shape[1])
    torch.testing.assert_close(known.mean(0, keepdim=True), other, atol=1e-5, rtol=1e-4)


def test_a_floor_is_of_one_noise_level(statistics: FeatureStatistics) -> None:
    assert statistics.floor_at(FeatureMap(), 0.1) == statistics.floor(FeatureMap())
    assert statistics.floor_at(FeatureMap(), 0.2) is None


def test_survives_the_file(tmp_path: Path, statistics: FeatureStatistics) -> None:
    path = tmp_path / FILE_NAME
    statistics.save(path)
    again = FeatureStatistics.load(path)
    assert again.card == statistics.card
    assert again.fingerprint == statistics.fingerprint
    assert again.floor(FeatureMap("projector", True)) == statistics.floor(FeatureMap("projector", True))
    path.write_bytes(b"no")
    with pytest.raises(StatisticsError, match="holds no feature statistics"):
        FeatureStatistics.load(path)


def test_statistics_of_other_weights_are_refused(
    tmp_path: Path, tiny_llava: Path, statistics: FeatureStatistics
) -> None:
    assert load_smoother(str(tiny_llava), device="cpu").statistics is None
    path = tmp_path / FILE_NAME
    assert load_statistics(path, Smoother(load_smoother(str(tiny_llava), device="cpu").encoder)) is None
    statistics.save(path)
    reference = load_smoother("fs_runtime/reference/weights", psm="none", device="cpu")
    with pytest.raises(CheckpointError, match="another encoder"):
        load_statistics(path, reference)
    with pytest.raises(CheckpointError, match=r"there is no file .*nowhere"):
        load_smoother(str(tiny_llava), device="cpu", feature_statistics=tmp_path / "nowhere")


def test_centring_without_statistics_says_so(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="feature statistics"):
        Smoother(encoder).start(encoder.prepare(picture), 0.1, 1, FeatureMap(centred=True))


def test_a_floor_needs_two_images(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="between images"):
        measure_feature_statistics(Smoother(encoder), [picture], 0.1, 2)
