"""A sketch of the features' deviations that bounds their largest eigenvalue in constant memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_ROWS = 32
# Share of the trace that is added to the bound; rounding of the deviations and in double precision errs by less.
_MARGIN = 1e-5
# Vectors are kept in single precision. Rounding B to it makes ‖B v‖ smaller by at most 2⁻²⁴ ‖B‖ (Frobenius), and
# ‖B v‖² by at most this share of the trace of BᵀB, each time that the sketch shrinks.
_ROUNDED = 2.0**-23
_COLUMNS = 2**16  # converted to double precision at once


class SpreadSketch:
    """Bounds the largest eigenvalue of (1/m) Σ d dᵀ in one pass over the deviations d.

    At most ``2 rows`` vectors B are kept. Whenever ``rows`` new ones have come, all squared singular values shrink by
    the first one that is dropped, δ, so that Σ d dᵀ ≤ BᵀB + Σδ · I always holds: the bound is exact as long as nothing
    was dropped, and otherwise too large by at most the trace divided by ``rows``. How the deviations are split over
    calls makes no difference.

    Source: Liberty, "Simple and deterministic matrix sketching", KDD 2013 (Frequent Directions).

    Args:
        rows: Vectors kept when the sketch shrinks.
    """

    def __init__(self, rows: int = _ROWS) -> None:
        self.count = 0
        self._rows = rows
        self._stack: list[Tensor] = []
        self._new = 0
        self._shrunk = 0.0
        self._trace = 0.0

    @property
    def largest(self) -> float:
        """Upper bound of the largest eigenvalue of the mean of d dᵀ; 0.0 before the first deviation."""
        if not self.count:
            return 0.0
        values, _, _ = self._eigen()
        return (float(values[-1]) + self._shrunk + _MARGIN * (self._trace + float(values.sum()))) / self.count

    def update(self, deviations: Tensor) -> None:
        """Adds further deviations, ``(n, N)`` float32."""
        while deviations.shape[0]:
            room = self._rows - self._new
            part, deviations = deviations[:room], deviations[room:]
            self._stack.append(part.clone())  # a view would keep the whole batch in memory
            self._new += len(part)
            self.count += len(part)
            if self._new == self._rows:
                self._shrink()

    def to(self, device: torch.device | str) -> SpreadSketch:
        """An independent copy on a device."""
        other = SpreadSketch(self._rows)
        other.count, other._new, other._shrunk, other._trace = self.count, self._new, self._shrunk, self._trace
        other._stack = [part.to(device, copy=True) for part in self._stack]
        return other

    def state(self) -> tuple[dict[str, float], Tensor]:
        """Numbers and vectors ``(n, N)``, float32 on the host, from which :meth:`restored` makes the sketch again."""
        numbers = {"count": self.count, "rows": self._rows, "new": self._new}
        stack = torch.cat(self._stack).cpu() if self._stack else torch.zeros((0, 0))
        return {**numbers, "shrunk": self._shrunk, "trace": self._trace}, stack

    @classmethod
    def restored(cls, numbers: Mapping[str, float], stack: Tensor) -> SpreadSketch:
        """The sketch with this :meth:`state`, on the host."""
        sketch = cls(int(numbers["rows"]))
        sketch.count, sketch._new = int(numbers["count"]), int(numbers["new"])
        sketch._shrunk, sketch._trace = float(numbers["shrunk"]), float(numbers["trace"])
        sketch._stack = [stack] if len(stack) else []
        return sketch

    @staticmethod
    def most_bytes(width: int) -> int:
        """Most memory that the vectors take, for deviations ``(width,)``; twice that while they are concatenated."""
        return 2 * _ROWS * width * torch.float32.itemsize

    @property
    def nbytes(self) -> int:
        """Memory that the vectors take."""
        return sum(part.nbytes for part in self._stack)

    def _shrink(self) -> None:
        new, self._new = self._new, 0
        values, vectors, squares = self._eigen()
        stack = self._joined()
        self._trace += float(squares[-new:].sum())
        dropped = len(stack) - self._rows
        if dropped <= 0:
            return
        threshold = values[dropped - 1]
        kept = (values[dropped:] - threshold).clamp_min(0)
        scale = (kept / values[dropped:].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        rotation = (vectors[:, dropped:] * scale).mT.to(stack.device)
        self._stack = [torch.cat([(rotation @ part.double()).float() for part in _pieces(stack)], dim=1)]
        self._shrunk += float(threshold) + _ROUNDED * float(kept.sum())

    def _joined(self) -> Tensor:
        """B as one tensor, which replaces its parts."""
        if len(self._stack) > 1:
            self._stack = [torch.cat(self._stack)]
        return self._stack[0]

    def _eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of B Bᵀ the eigenvalues, ascending, the eigenvectors and the diagonal, on the host: quicker for few rows."""
        stack = self._joined()
        gram = stack.new_zeros((len(stack), len(stack)), dtype=torch.float64)
        for part in _pieces(stack):
            double = part.double()
            gram.addmm_(double, double.mT)
        gram = torch.nan_to_num(gram.cpu(), posinf=0.0, neginf=0.0)  # NaN is reported by Smoother.finish
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp_min(0), vectors, gram.diagonal()


def _pieces(stack: Tensor) -> tuple[Tensor, ...]:
    """Splits the columns into parts that are small enough to convert to double precision."""
    return torch.tensor_split(stack, max(1, -(-stack.shape[1] // _COLUMNS)), dim=1)
