"""Draws the samples of a receipt again and certifies them, with the tolerance that the arithmetic needs.

Every number of a certificate that depends on the draws rises with the bound and the estimate of ρ and falls with those
of the spread. So the tolerance τ is one of ρ, the spread's is a multiple of it, and the numbers may lie between those
of certificates at ρ - τ and at ρ + τ (and τ beyond).
A tolerance of the similarities themselves would not do: their slope in ρ has no limit where they fall to nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import Spread, SpreadConfidenceSequence
from fs_runtime.engine import CertificateTerms, MeasuredFidelity, SmoothingEngine, SmoothingRequest, SmoothingResult
from fs_runtime.options import CertificateQuery
from fs_runtime.receipts.document import Receipt
from fs_runtime.robustness import Fingerprints, certify
from fs_runtime.rounding import confidence_of
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.smoother import Smoother

# By how much ρ may move, by device and precision, when other batches, or another device of the same kind, sum in
# another order: docs/receipts.md has the measurements behind them.
_TOLERANCE = {
    ("cpu", "float32"): 1e-5,
    ("cuda", "float32"): 5e-4,  # convolutions there may round to TF32, which has the digits of float16
    ("cpu", "float16"): 5e-4,
    ("cuda", "float16"): 5e-4,
    ("cpu", "bfloat16"): 5e-3,
    ("cuda", "bfloat16"): 5e-3,
}


# In float8 one rounding that falls the other way moves a value by an eighth.
_TOLERANCE_FLOAT8 = 5e-3

# The bound of the spread moves by this multiple at most: it rises by up to ten times as much as what was seen.
_SPREAD_TOLERANCE = 10.0


def tolerance(device: str, recorded: str, replayed: str, *, float8: bool = False) -> float:
    """τ for a kind of device and two precisions: where they differ, the sum of what each needs.

    Args:
        device: ``cpu`` or ``cuda``.
        recorded: Precision of the receipt.
        replayed: That of the replay.
        float8: Whether the encoder's linear layers compute in float8.
    """
    one, other = _TOLERANCE[device, recorded], _TOLERANCE[device, replayed]
    together = one if recorded == replayed else one + other
    return max(together, _TOLERANCE_FLOAT8) if float8 else together


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """The replayed certificate as JSON values: at ρ - τ, as replayed, at ρ + τ.

    Attributes:
        certificates: The three.
        spectral_norm: ‖A‖₂ of the preprocessing.
    """

    certificates: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    spectral_norm: float


def replay(receipt: Receipt, image: NDArray[np.uint8], smoother: Smoother, tau: float) -> Replay:
    """Draws exactly as many samples as the receipt says, from its seed, whatever ended the sampling then.

    Where it ended early, that depended on the batches, which other requests shared; it is not decided again.

    Args:
        receipt: Its device must be of the smoother's kind, and its version of the noise known here.
        image: ``(H, W, 3)`` uint8 RGB.
        smoother: With the receipt's weights.
        tau: Tolerance of ρ.

    Raises:
        SmoothingError: The pass failed.
    """
    draws = receipt.draws
    terms = CertificateTerms(
        draws.sigma,
        draws.confidence,
        draws.granularity,
        FeatureMap(draws.stage, draws.centred),
        spectral=draws.spectral,
        token_map=draws.token_map,
    )
    request = SmoothingRequest(terms, draws.samples, seed=int(draws.seed))
    engine = SmoothingEngine(smoother.with_noise(draws.noise_version or 1), batch_size=receipt.arithmetic.batch_size)
    try:
        result = engine.submit(request, image).result()
        if draws.spread_samples is not None:
            result = _with_spread_of(result, draws.spread_samples, request, image, engine)
    finally:
        engine.close()
    # The receipt's own reason for the end, which a replay cannot find again; verify() checks that it is consistent.
    ended = receipt.certificate.get("ended", "samples")
    result = dataclasses.replace(result, ended=ended, max_samples=draws.max_samples, planned=draws.planned)
    asked = receipt.query
    query = CertificateQuery(asked.radius, asked.space, asked.min_similarity, asked.curve)
    fingerprints = Fingerprints.of(smoother, terms.feature_map)
    floor = smoother.statistics.floor_at(terms.feature_map, terms.sigma) if smoother.statistics else None
    low, middle, high = (
        dataclasses.asdict(certify(_shifted(result, by), query, fingerprints, floor)) for by in (-tau, 0.0, tau)
    )
    return Replay((low, middle, high), result.spectral_norm)


def _with_spread_of(
    result: SmoothingResult, seen: int, request: SmoothingRequest, image: NDArray[np.uint8], engine: SmoothingEngine
) -> SmoothingResult:
    """The result, had the spread of ``seen`` samples alone been looked at: the same draws, fewer of them."""
    if not seen:
        nothing = SpreadConfidenceSequence(confidence_of(request.terms.alphas.spread)).bound()
        return dataclasses.replace(result, spread=nothing, spread_estimate=None)
    fewer = engine.submit(dataclasses.replace(request, samples=seen + 1), image).result()
    return dataclasses.replace(result, spread=fewer.spread, spread_estimate=fewer.spread_estimate)


def _shifted(result: SmoothingResult, by: float) -> SmoothingResult:
    """The result, had the samples given a ρ that is larger by ``by``; the place of every statistic of the samples.

    No more than half of what there is to 1, or of a variance, is allowed for: at ρ = 1 every similarity is certified at
    every radius, so a tolerance that reached it would let any certificate pass.
    """
    spread, seen = result.spread, result.spread_estimate
    return dataclasses.replace(
        result,
        norm_lower=_moved(result.norm_lower, by),
        norm_estimate=_moved(result.norm_estimate, by),
        token_norm_lower=_moved(result.token_norm_lower, by),
        fidelity=_shifted_fidelity(result.fidelity, by),
        spread=None if spread is None else Spread(_less(spread.across, by, 1.0), _less(spread.along, by, 4.0)),
        spread_estimate=None if seen is None else _less(seen, by, 4.0),
    )


def _shifted_fidelity(fidelity: MeasuredFidelity | None, by: float) -> MeasuredFidelity | None:
    """A cosine with unit features moves by no more than the features do, and towards 1 by no more than half of what
    there is to it."""
    if fidelity is None:
        return None
    values = np.array([fidelity.served, fidelity.lower, *fidelity.tokens])
    served, lower, *tokens = np.clip(values + by, -1.0, (1 + values) / 2).tolist()
    return MeasuredFidelity(served, lower, np.array(tokens))


@overload
def _moved(norm: float, by: float) -> float: ...
@overload
def _moved(norm: NDArray[np.float64], by: float) -> NDArray[np.float64]: ...
@overload
def _moved(norm: None, by: float) -> None: ...
def _moved(norm: float | NDArray[np.float64] | None, by: float) -> float | NDArray[np.float64] | None:
    if isinstance(norm, np.ndarray):
        return np.clip(norm + by, 0.0, (1 + norm) / 2)
    return None if norm is None else min(max(norm + by, 0.0), (1 + norm) / 2)


def _less(variance: float, by: float, most: float) -> float:
    return min(max(variance - _SPREAD_TOLERANCE * by, variance / 2), most)
