"""What the host knows of one image's draws: everything that certificates are computed from.

The inner products X_i do not depend on α, on the radius or on a wanted similarity. So they are kept, four bytes each,
and any number of requests can be answered from them: a confidence that was not asked for before gets a sequence of its
own, to which all X_i are shown again. The inner products of T tokens are too many to keep; their sequence is kept
instead, and with it the one confidence that it was made for.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.certificate import NormConfidenceSequence, SpreadConfidenceSequence
from fs_runtime.engine.terms import CertificateTerms
from fs_runtime.rounding import alpha_of, confidence_of
from fs_runtime.smoothing.spread_sketch import SpreadSketch
from fs_runtime.smoothing.sums import InnerProducts

Array = NDArray[np.float64]
_MOST_SEQUENCES = 8


class Draws:
    """Inner products, bounds and spread of the samples that were drawn so far.

    Reading may happen on any thread; only the engine's own adds, and only while the draws belong to an image in flight.

    Args:
        token_confidence: 1 - α of the bounds of all tokens at once; None for none.
    """

    def __init__(self, token_confidence: float | None) -> None:
        self.count = 0
        self.sketch: SpreadSketch | None = None
        self.token_sequence: NormConfidenceSequence | None = None
        self._token_confidence = token_confidence
        self._blocks: list[NDArray[np.float32]] = []
        self._latest_tokens: NDArray[np.float32] | None = None
        self._spread: tuple[float, int] | None = None
        self._clean: list[NDArray[np.float32]] = []
        self._sequences: dict[tuple[str, float], NormConfidenceSequence] = {}
        self._lock = threading.Lock()

    def add(self, products: InnerProducts, count: int) -> None:
        """Takes in the inner products of new samples.

        Args:
            products: Of the new samples; on the device.
            count: Samples so far, the new ones included.

        Raises:
            ValueError: Some are not finite; none is taken in then.
        """
        block = _finite(products.image)
        clean = None if products.clean is None else _finite(products.clean)
        if self._token_confidence is not None:
            latest = _finite(products.tokens)
            tokens = latest.shape[-1]
            if self.token_sequence is None:
                confidence = _token_confidence(self._token_confidence, tokens)
                self.token_sequence = NormConfidenceSequence(confidence, shape=(tokens,))
            self.token_sequence.update(latest.astype(np.float64))
            self._latest_tokens = latest if len(latest) else self._latest_tokens
        if len(block):
            self._blocks.append(block)
        if clean is not None:
            self._clean.append(clean)
        self.count = count

    def norm_sequence(self, terms: CertificateTerms) -> NormConfidenceSequence:
        """The confidence sequence of ρ that the terms ask for, with all samples in it."""
        if terms.granularity == "token":
            return self.token_sequence or NormConfidenceSequence(terms.confidence)
        return self._sequence("norm", confidence_of(terms.alphas.norm), _joined(self._blocks))

    def fidelity_sequence(self, terms: CertificateTerms) -> NormConfidenceSequence | None:
        """The confidence sequence of ⟨g, f₀⟩, with an α of its own; None where no sample was compared with f₀."""
        clean = _joined(self._clean)
        return self._sequence("clean", terms.confidence, clean) if len(clean) else None

    def _sequence(self, kind: str, confidence: float, values: NDArray[np.float32]) -> NormConfidenceSequence:
        """The sequence of one kind and confidence, after it was shown all values."""
        with self._lock:
            sequence = self._sequences.get((kind, confidence))
            if sequence is None:
                if len(self._sequences) >= _MOST_SEQUENCES:
                    self._sequences.pop(next(iter(self._sequences)))
                sequence = self._sequences[kind, confidence] = NormConfidenceSequence(confidence)
            if sequence.count < len(values):
                sequence.update(values[sequence.count :].astype(np.float64))
            return sequence

    def latest(self, terms: CertificateTerms) -> Array:
        """The inner products of the latest block: ``(n,)``, or ``(n, T)`` with token granularity."""
        if terms.granularity == "token":
            return (self._latest_tokens if self._latest_tokens is not None else np.zeros((0, 1))).astype(np.float64)
        return (self._blocks[-1] if self._blocks else np.zeros(0)).astype(np.float64)

    def spread_sequence(self, terms: CertificateTerms) -> SpreadConfidenceSequence | None:
        """The confidence sequence of the spread that the terms ask for; None if they ask for none."""
        if not terms.bounds_spread:
            return None
        sequence = SpreadConfidenceSequence(confidence_of(terms.alphas.spread))
        if self.sketch is not None and (self._spread is None or self._spread[1] < self.sketch.count):
            self._spread = self.sketch.largest, self.sketch.count  # reading it costs more than keeping it
        if self._spread is not None:
            sequence.observe(*self._spread)
        return sequence

    def snapshot(self) -> Draws:
        """A copy that stays as it is while this one goes on; without the sketch, of which it knows what was read."""
        other = Draws(self._token_confidence)
        other.count = self.count
        other.token_sequence = copy.deepcopy(self.token_sequence)
        other._blocks = [_joined(self._blocks)] if self._blocks else []
        other._clean = [_joined(self._clean)] if self._clean else []
        other._latest_tokens = self._latest_tokens
        other._spread = self._spread
        return other

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
        """Numbers and arrays that make it up, but for the sketch."""
        arrays: dict[str, NDArray[np.generic]] = {"products": _joined(self._blocks), "clean": _joined(self._clean)}
        if self._latest_tokens is not None:
            arrays["latest_tokens"] = self._latest_tokens
        if self.token_sequence is not None:
            arrays |= {f"tokens.{name}": array for name, array in self.token_sequence.state().items()}
        return {"count": self.count, "token_confidence": self._token_confidence, "spread": self._spread}, arrays

    @classmethod
    def restored(cls, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Draws:
        """The draws whose :meth:`state` it was.

        Raises:
            KeyError, TypeError, ValueError: It is not such a state.
        """
        draws = cls(numbers["token_confidence"])
        draws.count = int(numbers["count"])
        if len(arrays["products"]):
            draws._blocks = [arrays["products"].astype(np.float32)]
        if len(arrays["clean"]):
            draws._clean = [arrays["clean"].astype(np.float32)]
        if numbers["spread"] is not None:
            draws._spread = float(numbers["spread"][0]), int(numbers["spread"][1])
        draws._latest_tokens = arrays.get("latest_tokens")
        tokens = {name.removeprefix("tokens."): array for name, array in arrays.items() if name.startswith("tokens.")}
        if tokens and draws._token_confidence is not None:
            shape = tokens["lower"].shape
            draws.token_sequence = NormConfidenceSequence.restored(
                _token_confidence(draws._token_confidence, shape[0]), shape, tokens
            )
        return draws

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about; with room for the sequences."""
        tokens = 0 if self._latest_tokens is None else self._latest_tokens.nbytes + 256 * self._latest_tokens.shape[-1]
        return tokens + sum(block.nbytes for block in (*self._blocks, *self._clean)) + 4096 * _MOST_SEQUENCES


def _finite(products: Tensor) -> NDArray[np.float32]:
    """Inner products on the host.

    Raises:
        ValueError: Some are not finite.
    """
    values: NDArray[np.float32] = products.float().cpu().numpy()
    if not np.all(np.isfinite(values)):
        raise ValueError("the vision encoder returned values that are not finite for this image")
    return values


def _joined(blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """All inner products, ``(n,)``."""
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _token_confidence(confidence: float, tokens: int) -> float:
    """Of each token by itself, so that all hold together with ``confidence`` (Bonferroni)."""
    return confidence_of(math.nextafter(alpha_of(confidence) / tokens, 0))
