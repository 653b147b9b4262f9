"""Coverage of every statement that is served, at several numbers of samples at once, against laws with a known truth.

Each test counts certificates that claim too much, and has a control: the same count with what is *not* proven
(plug-in values, an α that is not split, a bound of g read as one of sampled means), which must exceed the limit.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from fs_runtime.certificate import (
    NormConfidenceSequence,
    Spread,
    SpreadConfidenceSequence,
    served_similarity,
    spectral_similarity,
    tight_similarity,
)
from tests.unit.fs_runtime.certificate.laws import (
    Array,
    Law,
    allowed_failures,
    cloud,
    half_space,
    rare_turns,
    rotations,
    signs,
    worst_case,
)

Failures = NDArray[np.bool_]

ALPHA = 0.05
SIZES = np.array([0.02, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0])  # c = r / σ of the attacks, and each law's hardest
SERVED_SIZE = 0.02  # where the means' own deviations weigh most
TOLERANCE = 1e-9  # of the truth
CHUNK_VALUES = 1 << 21

FAST, SLOW = 1, 32  # times the runs of a case


@dataclass(frozen=True)
class Case:
    """A law, samples of each certificate, and certificates in the fast version."""

    law: Law
    samples: int
    runs: int


def unseen(alpha: float, samples: int) -> float:
    """The probability of an event that stays unseen in so many samples with probability alpha."""
    return float(1 - alpha ** (1 / samples))


def spread_unseen(count: int) -> float:
    """The bound of the spread across where none was observed."""
    sequence = SpreadConfidenceSequence(1 - ALPHA / 2)
    sequence.observe(0.0, count)
    return sequence.bound().across


SPEEDS = np.random.default_rng(0).uniform(0.2, 0.7, 2048)
CASES = [
    Case(rotations(np.array([0.1])), 256, 20),
    Case(rotations(np.array([0.8])), 256, 20),
    Case(rotations(np.array([1.6])), 128, 20),  # a heavy spread: ρ = 0.28
    Case(rotations(SPEEDS[:4]), 256, 20),
    Case(rotations(SPEEDS[:64]), 1024, 4),
    Case(rotations(SPEEDS), 48, 2),  # dimension 4096
    Case(signs(256, 0.9), 512, 4),
    Case(signs(4096, 0.8), 48, 2),
    # p such that a run without a failure is a failure of the norm's bound with half of α, or with all of it
    Case(half_space(float(-ndtri(unseen(0.9 * ALPHA / 2, 200)))), 200, 24),
    Case(half_space(float(-ndtri(unseen(0.9 * ALPHA, 200)))), 200, 24),
    Case(half_space(0.7), 200, 16),
    # p such that a run without a turn is a failure of the spread's bound
    Case(rare_turns(float(-ndtri(0.51 * spread_unseen(199)))), 200, 60),
    Case(rare_turns(2.0), 200, 16),
    Case(worst_case(0.95, 1.0), 256, 20),
    Case(worst_case(0.6, 0.5), 256, 20),
    Case(worst_case(0.99, 2.5), 256, 20),
    Case(cloud(2, 0.5), 200, 16),
    Case(cloud(16, 60.0), 200, 16),
    Case(cloud(1024, 8000.0), 48, 4),
]


def predictable(features: Array) -> tuple[Array, Array]:
    """⟨û, f_i⟩ ``(n - 1, runs)`` and f_i less the mean of the samples before, ``(runs, n - 1, D)``."""
    before = np.cumsum(features, axis=1)[:, :-1]
    products = np.einsum("rnd,rnd->nr", features[:, 1:], before) / np.linalg.norm(before, axis=2).T.clip(1e-12)
    before /= np.arange(1, features.shape[1])[:, None]
    return products, features[:, 1:] - before


def largest_eigenvalue(deviations: Array) -> Array:
    """Of the mean of d dᵀ, ``(runs,)``."""
    transposed = deviations.swapaxes(1, 2)
    count, dimension = deviations.shape[1:]
    gram = transposed @ deviations if dimension <= count else deviations @ transposed
    return np.asarray(np.linalg.eigvalsh(gram)[:, -1] / count).clip(0)


def too_high(bound: Array | float, truth: Array | float) -> Failures:
    """Whether a bound claims something, and too much; 0 claims nothing."""
    return np.asarray((np.asarray(bound) > 0) & (np.asarray(bound) > np.asarray(truth) + TOLERANCE))


def sampled_cosine(here: Array, there: Array) -> Array:
    """Of the means of features ``(runs, n, D)``."""
    a, b = here.mean(axis=1), there.mean(axis=1)
    return np.asarray(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1).clip(1e-12))


def failures(law: Law, rng: np.random.Generator, runs: int, samples: int) -> dict[str, Failures]:
    """``(runs,)`` per statement: whether it was wrong at half or at all of the samples.

    ``plug-in …`` is the same statement from estimates instead of bounds.
    """
    features = law.sample(rng, (runs, samples), 0.0)
    moved = law.sample(rng, (runs, samples), SERVED_SIZE)
    products, deviations = predictable(features)
    sizes = np.append(SIZES, law.hardest)
    truth = np.array([law.cosine(float(size)) for size in sizes])
    wrong: dict[str, Failures] = {}

    def note(name: str, failed: Failures) -> None:
        wrong[name] = wrong.get(name, np.zeros(runs, dtype=np.bool_)) | failed

    alone = NormConfidenceSequence(1 - ALPHA, shape=(runs,))  # tight: all of α
    half = NormConfidenceSequence(1 - ALPHA / 2, shape=(runs,))  # spectral: half of it, the spread has the other
    sequences = [SpreadConfidenceSequence(1 - ALPHA / 2) for _ in range(runs)]
    for count in (samples // 2, samples):
        for sequence in (alone, half):
            sequence.update(products[sequence.count : count - 1])
        estimate = np.linalg.norm(features[:, :count].mean(axis=1), axis=1).clip(0, 1)
        observed = largest_eigenvalue(deviations[:, : count - 1])
        note("norm", too_high(alone.lower, law.norm))
        note("plug-in norm", too_high(estimate, law.norm))
        lower = np.asarray(alone.lower)[:, None]
        note("tight", too_high(tight_similarity(lower, sizes, 1.0), truth).any(axis=1))
        note("plug-in tight", too_high(tight_similarity(estimate[:, None], sizes, 1.0), truth).any(axis=1))
        of_means = sampled_cosine(features[:, :count], moved[:, :count])
        for run, (sequence, rho) in enumerate(zip(sequences, np.asarray(half.lower), strict=True)):
            sequence.observe(float(observed[run]), count - 1)
            spread = sequence.bound()
            here = np.arange(runs) == run
            note("spread", here & (spread.across < law.across - TOLERANCE or spread.along < law.along - TOLERANCE))
            note("plug-in spread", here & (observed[run] < law.across - TOLERANCE))
            best = np.asarray(spectral_similarity(float(rho), spread, sizes, 1.0))
            note("best", here & too_high(best, truth).any())
            note("spectral above tight", here & bool(np.any(best > tight_similarity(float(rho), sizes, 1.0))))
            if count == samples:
                seen = Spread(min(float(observed[run]), 1.0), min(float(observed[run]), 4.0))
                guess = np.asarray(spectral_similarity(float(estimate[run]), seen, sizes, 1.0))
                note("plug-in best", here & too_high(guess, truth).any())
            smoothed = float(best[sizes == SERVED_SIZE][0])
            note("smoothed as served", here & too_high(smoothed, of_means[run]))
            served = served_similarity(float(rho), SERVED_SIZE, 1.0, count, 1 - ALPHA, samples, smoothed)
            note("served", here & too_high(served, of_means[run]))
            note("served claims something", here & (served > 0))
    return wrong


@cache
def counted(number: int, times: int) -> dict[str, int]:
    """Failures per statement of one case, and its certificates under ``runs``."""
    case, rng = CASES[number], np.random.default_rng([times, number])
    chunk = max(1, CHUNK_VALUES // (case.samples * len(case.law.mean(0.0))))
    found = {"runs": case.runs * times}
    left = found["runs"]
    while left:
        runs = min(left, chunk)
        for name, wrong in failures(case.law, rng, runs, case.samples).items():
            found[name] = found.get(name, 0) + int(wrong.sum())
        left -= runs
    return found


def all_counted(times: int) -> list[dict[str, int]]:
    return [counted(number, times) for number in range(len(CASES))]


VERSIONS = pytest.mark.parametrize("times", [FAST, pytest.param(SLOW, marks=[pytest.mark.slow])])
STATEMENTS = {"norm": ALPHA, "spread": ALPHA / 2, "tight": ALPHA, "best": ALPHA, "served": 2 * ALPHA}


@VERSIONS
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.law.name for case in CASES])
def test_no_statement_fails_more_often_than_it_may(number: int, times: int) -> None:
    found = counted(number, times)
    for statement, alpha in STATEMENTS.items():
        limit = allowed_failures(alpha, found["runs"])
        print(f"{statement} {found[statement]} of {limit} allowed, ", end="")
        assert found[statement] <= limit, statement
    print(f"{found['runs']} certificates: {CASES[number].law.name}")


@VERSIONS
@pytest.mark.parametrize(
    ("control", "statement"),
    [
        ("plug-in norm", "norm"),
        ("plug-in spread", "spread"),
        ("plug-in tight", "tight"),
        ("plug-in best", "best"),
        ("smoothed as served", "served"),
    ],
)
def test_what_is_not_proven_is_found_out(control: str, statement: str, times: int) -> None:
    exposed = [f[control] > allowed_failures(STATEMENTS[statement], f["runs"]) for f in all_counted(times)]
    assert sum(exposed) >= 2


@VERSIONS
def test_there_are_enough_certificates_and_they_claim_something(times: int) -> None:
    found = all_counted(times)
    total = sum(f["runs"] for f in found)
    assert total >= (10_000 if times == SLOW else 300)
    assert sum(f["served claims something"] for f in found) > 0.2 * total
    assert any(f["spectral above tight"] == f["runs"] for f in found)


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["norm", "spread", "tight", "best"])
def test_the_bounds_do_fail_where_the_laws_are_hardest(statement: str) -> None:
    assert sum(f[statement] for f in all_counted(SLOW)) > 0


TOKENS = 16


@pytest.mark.parametrize("runs", [200, pytest.param(4000, marks=pytest.mark.slow)])
def test_all_tokens_at_once(runs: int) -> None:
    """The α of an image split over its tokens, each with a hyperplane of its own: ρ and the token map."""
    samples, chunk, rng = 120, 200, np.random.default_rng(4)
    wrong = {"split": 0, "split, map": 0, "not split": 0, "not split, map": 0}
    for _ in range(runs // chunk):
        for name, alpha in (("split", ALPHA / TOKENS), ("not split", ALPHA)):
            law = half_space(float(-ndtri(unseen(0.9 * alpha, samples - 1))))
            sizes = np.append(SIZES, law.hardest)
            sequence = NormConfidenceSequence(1 - alpha, shape=(chunk, TOKENS))
            along = law.sample(rng, (chunk * TOKENS, samples), 0.0)[..., 0]
            direction = np.sign(along.cumsum(axis=1)[:, :-1])  # f = ±u, so this is that of the mean before
            sequence.update((along[:, 1:] * direction).T.reshape(samples - 1, chunk, TOKENS))
            lower = np.asarray(sequence.lower)
            wrong[name] += int(too_high(lower, law.norm).any(axis=1).sum())
            truth = np.array([law.cosine(float(size)) for size in sizes])
            token_map = tight_similarity(lower[..., None], sizes, 1.0)
            wrong[f"{name}, map"] += int(too_high(token_map, truth).any(axis=(1, 2)).sum())
    print(f"{runs} certificates of {TOKENS} tokens, failures: {wrong}")
    limit = allowed_failures(ALPHA, runs)
    for name in ("", ", map"):
        assert 0 < wrong[f"split{name}"] <= limit  # the law is hard, and the bound holds all the same
        assert wrong[f"not split{name}"] > limit
