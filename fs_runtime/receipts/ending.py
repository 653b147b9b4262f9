"""Whether the stated reason for the end of sampling fits a receipt's numbers.

It is not replayed: where sampling looked at what it had depended on the batches, which other requests shared.
"""

from __future__ import annotations

import numpy as np

from fs_runtime.certificate import Spread
from fs_runtime.certificate.bounds import bounds_at
from fs_runtime.options import CertificateQuery
from fs_runtime.receipts.document import Receipt, ReceiptUntil

# The rule compares ρ with one that is up to 1e-9 above the smallest that does; and other versions of the mathematical
# library may compute the bound otherwise in the last digits.
_NORM_SLACK = 2e-9
_SIMILARITY_SLACK = 1e-9


def impossible_ending(receipt: Receipt) -> list[str]:
    """What the counts of samples already rule out, and in receipts without ``until`` the missing minimum."""
    ended = receipt.certificate.get("ended")
    satisfied = receipt.certificate.get("satisfied")
    draws = receipt.draws
    all_drawn = draws.samples == draws.max_samples
    if draws.until is not None:
        fits = {"samples": all_drawn, "reached": True, "out_of_reach": not all_drawn, "votes": False}
    else:  # nothing could end it early, or it was made before receipts had the field: only the query is known of then
        fits = {
            "samples": all_drawn,
            "reached": satisfied is True,
            "out_of_reach": satisfied is not None,
            "votes": not all_drawn,  # a vote on the answer was settled; the bounds hold at every number of samples
        }
    if not isinstance(ended, str) or ended not in fits:
        return [f"certificate.ended is {ended!r}; it is samples, reached, out_of_reach or votes"]
    if not fits[ended]:
        return [
            f"certificate.ended is {ended!r}, which contradicts {draws.samples} of {draws.max_samples} samples and "
            f"certificate.satisfied {satisfied!r}"
        ]
    return []


def unsupported_ending(receipt: Receipt) -> list[str]:
    """What is wrong unless ``until`` is certified by the recorded bounds if, and only if, it was ``reached``.

    That it would not have been certified by ``max_samples`` either is a forecast from the last batch, and not checked.

    Args:
        receipt: Its certificate was reproduced, so that ``norm`` and ``spread`` are what they should be.
    """
    until = receipt.draws.until
    if until is None:
        return []
    ended = receipt.certificate["ended"]
    slack = 1 if ended == "reached" else -1  # in favour of what is claimed
    certified = _certified(receipt, until, slack * _NORM_SLACK) >= until.min_similarity - slack * _SIMILARITY_SLACK
    if certified == (ended == "reached"):
        return []
    return [
        f"certificate.ended is {ended!r}, which contradicts the similarity {_certified(receipt, until):.6f} that is "
        f"certified at {until.space} radius {until.radius:g}, where draws.until asks for {until.min_similarity:g}"
    ]


def _certified(receipt: Receipt, until: ReceiptUntil, more: float = 0.0) -> float:
    """What the recorded bounds certify at the radius of ``until``, were ρ larger by ``more``; 0 for nothing."""
    norm, spread = receipt.certificate["norm"]["lower"], receipt.certificate["spread"]
    radius = CertificateQuery(until.radius, until.space).radii(receipt.preprocessing.spectral_norm).model
    bounds = bounds_at(
        _within(norm + more, 1.0),
        None if spread is None else Spread(_within(spread["across"], 1.0), _within(spread["along"], 4.0)),
        np.array([radius]),
        receipt.draws.sigma,
    )
    return float(bounds.best[0])


def _within(value: float, most: float) -> float:
    """A recorded number may lie outside of its range by the tolerance of the draws."""
    return min(max(value, 0.0), most)
