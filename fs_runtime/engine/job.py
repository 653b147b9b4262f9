"""One image in flight: its draws, and the requests that wait for them."""

from __future__ import annotations

import time
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import StoppingRule
from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.stored import Mean, StoredImage
from fs_runtime.engine.copies import Copies
from fs_runtime.engine.draws import Draws
from fs_runtime.engine.request import CacheOutcome, Ending, MeasuredFidelity, Origin, SmoothingRequest, SmoothingResult
from fs_runtime.engine.terms import CertificateTerms
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import InnerProducts, SmoothingState


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One request on its way through the engine.

    Attributes:
        request: What is asked, without what is left out for this image.
        future: Gets the result. Cancelling it ends the work, unless others wait for the same draws.
        received: When the engine took it, on the monotonic clock.
        cache: What the cache did for it.
        had: Samples that existed, or that other requests had asked for, when the engine took it.
        rule: Ends the sampling early; None if nothing does.
        ended: Why no more samples are needed; None as long as they are.
        look_at: Number of samples at which the rule looks next.
        copies: Whoever asks about each sample by itself; None if nobody does.
    """

    request: SmoothingRequest
    future: Future[SmoothingResult] = field(default_factory=Future)
    received: float = field(default_factory=time.monotonic)
    cache: CacheOutcome | None = None
    had: int = 0
    rule: StoppingRule | None = None
    ended: Ending | None = None
    look_at: int = 0
    copies: Copies | None = None

    @property
    def deadline(self) -> float:
        """When the result is of no use any more, on the monotonic clock."""
        timeout = self.request.timeout
        return float("inf") if timeout is None else self.received + timeout

    def open(self, spectral_norm: float, capacity: int) -> None:
        """Makes the rule that ends the sampling, once it is known how the image was made.

        Args:
            spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
            capacity: Samples of a full batch.
        """
        until, request = self.request.until, self.request
        if self.rule is None and until is not None and until.min_similarity and request.terms.sigma > 0:
            radius = until.radii(spectral_norm).model
            further = request.samples - 1  # the first sample has no inner product
            self.rule = StoppingRule(until.min_similarity, radius, request.terms.sigma, further)
            empty = Draws(None)
            sequence, spread = empty.norm_sequence(request.terms), empty.spread_sequence(request.terms)
            self.look_at = 1 + self.rule.earliest(sequence, spread, least_block(capacity))

    def observe(self, draws: Draws, capacity: int) -> None:
        """Ends the sampling where that is due.

        Where it looks, and what it makes of it, depends on the past only, so that the bounds stay valid (stopping.py).

        Args:
            draws: The samples so far.
            capacity: Samples of a full batch.
        """
        terms, samples, count = self.request.terms, self.request.samples, draws.count
        latest = draws.latest(terms)
        if self.copies is not None and self.copies.stopped and count < samples:
            self.ended = "votes"
            return
        if self.rule is not None and len(latest) and (count >= self.look_at or count >= samples):
            sequence, spread = draws.norm_sequence(terms), draws.spread_sequence(terms)
            decision = self.rule.decide(sequence, latest, spread)
            if decision == "reached" or (decision == "out_of_reach" and count < samples):
                self.ended = decision
                return
            if count < samples:
                least = least_block(capacity)
                self.look_at = count + self.rule.next_block(sequence, latest, spread, least, capacity)
        if count >= samples:
            self.ended = "samples"

    def wanted(self, count: int) -> int:
        """Further samples that are of use before it looks again; ``count`` there are."""
        left = self.request.samples - count
        if self.copies is not None and not self.copies.is_let_go:
            left = min(left, self.copies.room)
        return left if self.rule is None else min(left, max(1, self.look_at - count))

    def result(self, image: StoredImage | Job, mean: Mean, started: float | None) -> SmoothingResult:
        """The result from the draws as they are.

        Args:
            image: Whose draws they are.
            mean: Of all samples so far.
            started: When drawing began; None if all was there.
        """
        assert self.ended is not None  # noqa: S101 (why we are here)
        request, terms, draws = self.request, self.request.terms, image.draws
        by_token = terms.granularity == "token"
        estimate: float | NDArray[np.float64] | None = mean.norm_estimate
        if by_token and mean.token_norm_estimates is not None:
            estimate = mean.token_norm_estimates
        tokens, spread = draws.token_sequence, draws.spread_sequence(terms)
        return SmoothingResult(
            payload=mean.payload,
            terms=terms,
            samples=draws.count,
            max_samples=max(request.samples, draws.count),
            planned=image.origin.planned,
            ended=self.ended,
            norm_lower=draws.norm_sequence(terms).lower,
            norm_estimate=estimate,
            token_norm_lower=np.asarray(tokens.lower) if terms.token_map and tokens is not None else None,
            fidelity=_fidelity(draws, mean, terms),
            spread=spread.bound() if spread else None,
            spread_estimate=spread.observed if spread and spread.count else None,
            spread_samples=spread.count if spread else 0,
            spectral_norm=image.spectral_norm,
            token_grids=image.token_grids,
            seed=image.origin.seed,
            queue_seconds=0.0 if started is None else max(0.0, started - self.received),
            smoothing_seconds=0.0 if started is None else time.monotonic() - max(started, self.received),
            cache=self.cache,
            drawn=max(0, draws.count - self.had),
            until=None if self.rule is None else request.until,
        )


@dataclass(eq=False, slots=True)
class Job:
    """The draws of one image, shared by all requests that ask for the same; an item of the fair queue.

    Attributes:
        first: The request that began it; all others agree with it in what the draws depend on.
        image: As the encoder reads it.
        origin: Of the draws.
        token_grids: Rows and columns of the rectangles that the tokens fill, one after another.
        key: What the cache knows it by; None if it goes past the cache.
        stored: What the cache had to begin with.
        waiting: Requests that wait for the draws.
        draws: What is known of the samples.
        state: The sums, on the device; None before the first sample.
        started: When the first sample was drawn.
        unseen: Whether there are requests that have not looked at the draws yet.
        answered: Whether a request has got a result from these draws.
        copies: Whoever asks about each sample by itself; no other request joins then. None if nobody does.
    """

    first: SmoothingRequest
    image: PreparedImage
    origin: Origin
    token_grids: tuple[tuple[int, int], ...]
    key: CacheKey | None = None
    stored: StoredImage | None = None
    waiting: list[PendingRequest] = field(default_factory=list)
    draws: Draws = field(init=False)
    state: SmoothingState | None = None
    started: float | None = None
    unseen: bool = False
    answered: bool = False
    copies: Copies | None = None
    _mean: tuple[int, Mean] | None = None

    def __post_init__(self) -> None:
        self.draws = self.stored.draws.snapshot() if self.stored else Draws(self.first.terms.token_confidence)
        if self.stored is not None:
            self._mean = self.draws.count, self.stored.mean

    @property
    def tenant(self) -> str:
        """The tenant of the request that began it."""
        return self.first.tenant

    @property
    def bucket(self) -> Hashable:
        """Jobs of one bucket may share a batch."""
        terms = self.first.terms
        return tuple(self.image.pixels.shape), self.image.grid, terms.feature_map, terms.sigma == 0

    @property
    def due(self) -> bool:
        """Whether there is something to answer without a further sample."""
        return self.unseen or (self.copies is not None and self.copies.stopped and self.draws.count > 0)

    @property
    def cost(self) -> int:
        """Tokens of one sample."""
        return cost_of(self.image)

    @property
    def spectral_norm(self) -> float:
        """‖A‖₂ from the client's pixels to the encoder's."""
        return self.image.spectral_norm

    @property
    def remaining(self) -> int:
        """Samples that are still to be drawn, at most."""
        most = max((pending.request.samples for pending in self.waiting if pending.ended is None), default=0)
        return max(0, most - self.draws.count)

    @property
    def wanted(self) -> int:
        """Samples of the next batch that are of use: up to where some request's rule should look again."""
        count = self.draws.count
        return max(0, max((pending.wanted(count) for pending in self.waiting if pending.ended is None), default=0))

    def begin(self, smoother: Smoother) -> SmoothingState:
        """The state on the device, made at the first call."""
        if self.state is None:
            terms = self.first.terms
            if self.stored is not None:
                self.state = self.stored.start(smoother, self.image, terms)
            else:
                self.state = smoother.start(
                    self.image, terms.sigma, self.origin.seed, terms.feature_map, spectral=terms.bounds_spread
                )
            self.state.keeps_copies = self.copies is not None
            self.started = time.monotonic()
        return self.state

    def add(self, products: InnerProducts, encoder: VisionEncoder) -> None:
        """Takes note of samples that were added to the state, and hands on the copies that somebody asks about."""
        assert self.state is not None  # noqa: S101 (begun)
        copies, self.state.copies = self.state.copies, None
        self.draws.sketch = self.state.sketch
        self.draws.add(products, self.state.count)
        if self.copies is not None and self.copies.is_let_go:
            self.state.keeps_copies = False
        elif self.copies is not None and copies is not None:
            self.copies.put([encoder.payload(copy, self.image) for copy in copies.cpu()])

    def mean(self, smoother: Smoother) -> Mean:
        """The smoothed image as of now. Raises as :meth:`Mean.of`."""
        if self._mean is None or self._mean[0] != self.draws.count:
            assert self.state is not None  # noqa: S101 (something was drawn)
            self._mean = self.draws.count, Mean.of(smoother, self.state)
        return self._mean[1]


def _fidelity(draws: Draws, mean: Mean, terms: CertificateTerms) -> MeasuredFidelity | None:
    sequence = draws.fidelity_sequence(terms)
    if sequence is None or mean.fidelity is None or mean.token_fidelity is None:
        return None
    return MeasuredFidelity(mean.fidelity, float(sequence.lower), mean.token_fidelity)


def cost_of(image: PreparedImage) -> int:
    """What one sample of an image costs, in tokens of the encoder, all tiles together."""
    tiles = image.pixels.shape[0] if image.pixels.dim() == 4 else 1
    return max(1, tiles * image.grid[0] * image.grid[1])


def least_block(capacity: int) -> int:
    """Samples below which a batch is not worth its while: a quarter of a full one."""
    return max(1, capacity // 4)
