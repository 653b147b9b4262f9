"""A finished image as the cache keeps it: on the host, ready to answer from and to go on with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.encoders import PreparedImage
from fs_runtime.engine.draws import Draws
from fs_runtime.engine.request import Origin
from fs_runtime.engine.terms import CertificateTerms
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.spread_sketch import SpreadSketch
from fs_runtime.smoothing.sums import SmoothingState


@dataclass(frozen=True, slots=True)
class Mean:
    """The smoothed image, on the host.

    Attributes:
        payload: Arrays for the language model.
        norm_estimate: Plug-in estimate of ρ; None for fewer than two samples.
        token_norm_estimates: ``(T,)`` the same for each token; None likewise.
        fidelity: Cosine of the sample mean with the clean features; None without noise.
        token_fidelity: ``(T,)`` the same for each token; None likewise.
    """

    payload: dict[str, NDArray[np.generic]]
    norm_estimate: float | None
    token_norm_estimates: NDArray[np.float64] | None
    fidelity: float | None
    token_fidelity: NDArray[np.float64] | None

    @classmethod
    def of(cls, smoother: Smoother, state: SmoothingState) -> Mean:
        """Finishes the sums as they are; more samples may follow.

        Raises:
            ValueError: The encoder returned values that are not finite, or that the language model must not get.
        """
        smoothed = smoother.finish(state)
        norms, fidelities = (
            None if tokens is None else tokens.double().cpu().numpy()
            for tokens in (smoothed.token_norm_estimates, smoothed.token_fidelity)
        )
        payload = smoother.encoder.payload(smoothed.embeddings, state.image)
        return cls(payload, smoothed.norm_estimate, norms, smoothed.fidelity, fidelities)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = *self.payload.values(), self.token_norm_estimates, self.token_fidelity
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums of an image (:class:`SmoothingState`), on the host.

    Attributes:
        feature_sum: ``(T, D)``.
        token_squares: ``(T,)``.
        length_sum: ``(T,)``.
        count: Samples in them.
        position: Of the image's noise, behind the last sample.
        sketch: Of the spread; None if it is not bounded.
    """

    feature_sum: Tensor
    token_squares: Tensor
    length_sum: Tensor
    count: int
    position: Tensor
    sketch: SpreadSketch | None

    @classmethod
    def of(cls, state: SmoothingState) -> Sums:
        """Copies the sums of an image to the host.

        Raises:
            ValueError: No sample was drawn yet.
        """
        if state.feature_sum is None or state.token_squares is None or state.length_sum is None:
            raise ValueError("no sample was drawn yet")
        return cls(
            state.feature_sum.cpu().clone(),
            state.token_squares.cpu().clone(),
            state.length_sum.cpu().clone(),
            state.count,
            state.noise.position().clone(),
            None if state.sketch is None else state.sketch.to("cpu"),
        )

    def put_into(self, state: SmoothingState) -> None:
        """Gives a fresh state of the same image and seed these sums, copied, and the place in its noise."""
        device = state.x.device
        state.feature_sum = self.feature_sum.to(device, copy=True)
        state.token_squares = self.token_squares.to(device, copy=True)
        state.length_sum = self.length_sum.to(device, copy=True)
        state.count = self.count
        state.noise.rewind(self.position.clone())
        state.sketch = None if self.sketch is None else self.sketch.to(device)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        tensors = self.feature_sum, self.token_squares, self.length_sum, self.position
        return sum(tensor.nbytes for tensor in tensors) + (self.sketch.nbytes if self.sketch else 0)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What the cache keeps of one image. Nothing of it changes.

    Attributes:
        origin: Of the draws.
        draws: What certificates are computed from.
        mean: What the language model gets.
        sums: What further samples are added to; None if there was no room for them.
        spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
        token_grids: Rows and columns of the rectangles that the tokens fill, one after another.
        cost: Of one sample, in tokens.
    """

    origin: Origin
    draws: Draws
    mean: Mean
    sums: Sums | None
    spectral_norm: float
    token_grids: tuple[tuple[int, int], ...]
    cost: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return self.draws.nbytes + self.mean.nbytes + (self.sums.nbytes if self.sums else 0) + 4096

    def is_better_than(self, other: StoredImage | None) -> bool:
        """Whether it can answer more than another one of the same draws; always, if that is of other draws or None."""
        if other is None or other.origin != self.origin:
            return True
        mine, theirs = ((image.draws.count, image.sums is not None) for image in (self, other))
        return mine > theirs

    def start(self, smoother: Smoother, image: PreparedImage, terms: CertificateTerms) -> SmoothingState:
        """The state to go on with, on the device; this one stays as it is."""
        state = smoother.start(image, terms.sigma, self.origin.seed, terms.feature_map, spectral=terms.bounds_spread)
        if self.sums is not None:
            self.sums.put_into(state)
        return state


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What replicas know of an image together.

    Attributes:
        origin: Of the draws that all of them make or have.
        image: What was drawn; None if nothing is finished yet.
    """

    origin: Origin
    image: StoredImage | None
