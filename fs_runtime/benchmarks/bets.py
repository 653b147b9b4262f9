"""Gap between ρ and its lower bound for each betting scheme, on laws with a known mean and on a model's features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs_runtime.benchmarks import other_bets as bets
from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.smoothing.smoother import Smoother

Array = NDArray[np.float64]

DEFAULT = "leader and reserve (default)"
_CANDIDATES = 48
# Each scheme, and the numbers that it stores per stream; some store numbers for each candidate of m.
SCHEMES: Mapping[str, tuple[bets.Scheme, int]] = {
    "offset mixture": (bets.offset_mixture, 7),
    "all in": (bets.all_in, 1),
    "all in + portfolio": (bets.all_in_and_portfolio, 1 + 16 * _CANDIDATES),
    "all in + aGRAPA": (bets.all_in_and_growth_rate_optimal, 3 + _CANDIDATES),
    "universal portfolio": (bets.universal_portfolio, 16 * _CANDIDATES),
    "hedged grid": (bets.hedged_grid, 10 * _CANDIDATES),
    "aGRAPA, β ≤ 1": (bets.bold_growth_rate_optimal, 2 + _CANDIDATES),
    "aGRAPA, β ≤ 1/2": (bets.growth_rate_optimal, 2 + _CANDIDATES),
    "online Newton": (bets.online_newton, 3 * _CANDIDATES),
    "plug-in bets": (bets.plug_in, 2 + _CANDIDATES),
    "empirical Bernstein": (bets.empirical_bernstein, 5),
}

_SMALLEST_DEFICIT = 2e-4
_TOKENS = 4  # of each image, evenly spaced
_BATCH = 64
_TIMED_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Law:
    """Inner products whose mean is known, or nearly so.

    Attributes:
        name: Shown to people.
        samples: ``(n, streams)`` X_i.
        norm: ``(streams,)`` ρ; for features its plug-in estimate from all samples.
    """

    name: str
    samples: Array
    norm: Array


@dataclass(frozen=True, slots=True)
class Deficit:
    """ρ - ρ_t of one scheme, on average over a law's streams."""

    law: str
    scheme: str
    alpha: float
    samples: int
    deficit: float


@dataclass(frozen=True, slots=True)
class SchemeCost:
    """Time and memory of a scheme.

    Attributes:
        scheme: Its name.
        streams: Number of parallel sequences.
        seconds: Processor time of one update with 256 samples: the median of five.
        state_bytes: Memory per stream between samples; with a grid over m, that of its 48 candidates.
    """

    scheme: str
    streams: int
    seconds: float
    state_bytes: int


def synthetic_laws(samples: int, streams: int, seed: int = 0) -> Iterator[Law]:
    """Laws with small spread, large spread and rare failures; inner products are drawn directly, without features."""
    rng = np.random.default_rng(seed)
    shape = (samples, streams)

    def law(name: str, values: Array, mean: float) -> Law:
        return Law(name, np.clip(values, -1, 1), np.full(streams, mean))

    yield law("normal 0.99 ± 0.005", rng.normal(0.99, 0.005, shape), 0.99)
    yield law("normal 0.9 ± 0.03", rng.normal(0.9, 0.03, shape), 0.9)
    yield law("normal 0.6 ± 0.2", 0.6 + 0.2 * rng.standard_normal(shape).clip(-2, 2), 0.6)
    yield law("2 Beta(9, 0.3) - 1", 2 * rng.beta(9, 0.3, shape) - 1, 8.7 / 9.3)
    yield law("2 Beta(2, 0.5) - 1", 2 * rng.beta(2, 0.5, shape) - 1, 0.6)
    for rate in (0.002, 0.01, 0.1):
        yield law(f"1, but -1 at {rate:g}", np.where(rng.random(shape) < rate, -1.0, 1.0), 1 - 2 * rate)


def feature_laws(
    smoother: Smoother, images: Mapping[str, NDArray[np.uint8]], sigma: float, samples: int
) -> tuple[Law, Law]:
    """Inner products as in the engine: of whole images, and of some of their tokens.

    Args:
        smoother: The model, with purifier and mapper if it has them.
        images: ``(H, W, 3)`` RGB pictures by name.
        sigma: σ of the noise.
        samples: Inner products of each stream; one more noise sample is drawn.
    """
    by_image, by_token, image_norms, token_norms = [], [], [], []
    for seed, pixels in enumerate(images.values()):
        state = smoother.start(smoother.encoder.prepare(pixels), sigma, seed)
        image_parts, token_parts = [], []
        while state.count <= samples:
            (products,) = smoother.step([(state, min(_BATCH, samples + 1 - state.count))])
            image_parts.append(products.image.double().cpu().numpy())
            token_parts.append(products.tokens.double().cpu().numpy())
        found = smoother.finish(state)
        assert found.norm_estimate is not None  # noqa: S101 (at least two samples were drawn)
        assert found.token_norm_estimates is not None  # noqa: S101
        tokens = np.concatenate(token_parts)
        chosen = np.linspace(0, tokens.shape[1] - 1, min(_TOKENS, tokens.shape[1])).astype(int)
        by_image.append(np.concatenate(image_parts)[:, None])
        by_token.append(tokens[:, chosen])
        image_norms.append([found.norm_estimate])
        token_norms.append(found.token_norm_estimates.double().cpu().numpy()[chosen])
    return (
        Law(f"features, σ = {sigma:g}, image", np.hstack(by_image), np.concatenate(image_norms)),
        Law(f"features, σ = {sigma:g}, token", np.hstack(by_token), np.concatenate(token_norms)),
    )


def measure_deficits(
    law: Law, alphas: Sequence[float], counts: Sequence[int], progress: Callable[[str], None]
) -> list[Deficit]:
    """Runs every scheme on a law.

    The default scheme is the class that certifies. The others are evaluated at candidates of m that approach ρ from
    below, with linear interpolation of the capital's logarithm.

    Args:
        law: Samples and ρ.
        alphas: Values of α.
        counts: Numbers of samples to report at, at most those of the law.
        progress: Called with a description of each measurement.
    """
    found = []
    for alpha in alphas:
        progress(f"{law.name}, {DEFAULT}")
        sequence = NormConfidenceSequence(1 - alpha, shape=law.norm.shape)
        for count in sorted(counts):
            sequence.update(law.samples[sequence.count : count])
            found.append(Deficit(law.name, DEFAULT, alpha, count, float(np.mean(law.norm - sequence.lower))))
    deficits = np.geomspace(law.norm, _SMALLEST_DEFICIT, _CANDIDATES, axis=-1)  # (streams, candidates)
    for name, (scheme, _) in SCHEMES.items():
        progress(f"{law.name}, {name}")
        highest: Array | None = None
        for alpha in alphas:
            if highest is None or scheme in bets.DEPENDENT_ON_ALPHA:
                highest = np.maximum.accumulate(scheme(law.samples, law.norm[:, None] - deficits, alpha), axis=0)
            for count in sorted(counts):
                reached = _deficit_reached(highest[count - 1], deficits, -np.log(alpha))
                found.append(Deficit(law.name, name, alpha, count, float(np.mean(reached))))
    return found


def _deficit_reached(highest: Array, deficits: Array, threshold: float) -> Array:
    """``(streams,)`` ρ minus the largest m below which all are rejected; arrays ``(streams, candidates)``, m rising."""
    result = deficits[:, 0].copy()  # m = 0: nothing is rejected
    for stream, (capital, deficit) in enumerate(zip(highest, deficits, strict=True)):
        standing = np.flatnonzero(capital < threshold)
        if not len(standing):
            result[stream] = deficit[-1]
        elif k := standing[0]:
            part = (capital[k - 1] - threshold) / (capital[k - 1] - capital[k])  # 0 where the next capital is 0
            result[stream] = deficit[k - 1] + part * (deficit[k] - deficit[k - 1])
    return result


def measure_costs() -> list[SchemeCost]:
    """Time and memory of 256 samples: the default for 1, 64 and 576 streams, the others for one."""
    rng = np.random.default_rng(0)
    costs = []
    for streams in (1, 64, 576):
        samples = rng.normal(0.9, 0.05, (_TIMED_SAMPLES, streams)).clip(-1, 1)
        sequence = NormConfidenceSequence(0.999, shape=(streams,))
        seconds = _median_seconds(lambda s=samples, n=streams: NormConfidenceSequence(0.999, (n,)).update(s))  # type: ignore[misc]
        state = sum(kept.nbytes for kept in vars(sequence).values() if isinstance(kept, np.ndarray))
        costs.append(SchemeCost(DEFAULT, streams, seconds, state // streams))
    samples = rng.normal(0.9, 0.05, (_TIMED_SAMPLES, 1)).clip(-1, 1)
    means = np.linspace(0, 0.89, _CANDIDATES)[None]
    for name, (scheme, numbers) in SCHEMES.items():
        seconds = _median_seconds(lambda run=scheme: run(samples, means, 0.001))  # type: ignore[misc]
        costs.append(SchemeCost(name, 1, seconds, 8 * numbers))
    return costs


def _median_seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return float(np.median(times))
