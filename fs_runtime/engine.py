"""The scheduler: samples of every request in flight share the batches of one device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fs_runtime.certificate import NormConfidenceSequence, Spread, SpreadConfidenceSequence, StoppingRule
from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.encoders.base import Grid
from fs_runtime.noise import fresh_seed
from fs_runtime.query import CertificateQuery
from fs_runtime.smoothing import ENCODER_FEATURES, FeatureMap, InnerProducts, Smoother, SmoothingState

Granularity = Literal["image", "token"]
Ending = Literal["samples", "reached", "out_of_reach"]

_HEARTBEAT_SECONDS = 1.0
MAX_CONFIDENCE = 1 - 1e-9  # beyond it 1 - α, divided over tokens, is no longer exact in double precision


@dataclass(frozen=True, slots=True)
class ConfidenceSplit:
    """How α is split over the statements that a certificate rests on.

    Attributes:
        norm: Share of the lower bound of ρ; with token granularity of all tokens together.
        spread: Share of the upper bounds of the spread; 0 if they are not used.
    """

    norm: float
    spread: float


@dataclass(frozen=True, slots=True)
class SmoothingRequest:
    """What is asked for one image.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        sigma: Standard deviation σ of the noise, in pixels of [0, 1]; 0 turns smoothing off.
        samples: Noise samples to draw, at most.
        confidence: 1 - α of the certificate, over the server's own draws.
        granularity: Whether one certificate speaks of all tokens together or one of each.
        seed: Of the draws; None takes a fresh one from the operating system.
        feature_map: Which f is certified.
        spectral: Whether to bound the features' spread too, which takes half of α; ``image`` granularity only.
        token_map: Whether to bound ρ of every token too, with an α of its own.
        until: Similarity and radius whose certificate ends the sampling early, as does the insight that it will not be
            reached; None draws all samples.
    """

    image: NDArray[np.uint8]
    sigma: float
    samples: int
    confidence: float
    granularity: Granularity = "image"
    seed: int | None = None
    feature_map: FeatureMap = ENCODER_FEATURES
    spectral: bool = False
    token_map: bool = False
    until: CertificateQuery | None = None

    @property
    def alphas(self) -> ConfidenceSplit:
        """How α = 1 - confidence is split over the statements."""
        alpha = 1 - self.confidence
        spectral = self.spectral and self.granularity == "image" and self.sigma > 0
        return ConfidenceSplit(alpha / 2, alpha / 2) if spectral else ConfidenceSplit(alpha, 0.0)


@dataclass(frozen=True, slots=True)
class SmoothingResult:
    """What the smoothing pass found for one image; T tokens.

    Attributes:
        payload: Arrays for the language model, ``image_embeds`` among them.
        sigma: As asked.
        samples: Samples drawn.
        max_samples: Samples that would have been drawn at most.
        ended: Why no more were drawn.
        confidence: 1 - α, as asked.
        alphas: How α was split.
        granularity: As asked.
        feature_map: As asked.
        norm_lower: Lower bound of ρ with that confidence: a float, or ``(T,)``, all tokens at once.
        norm_estimate: Plug-in estimate of ρ without confidence, of the same shape; None if it cannot be given.
        token_norm_lower: ``(T,)`` lower bounds of all tokens' ρ at once, with an α of their own; None if not asked for.
        spread: Upper bounds of the features' variances across and along g; None if they were not asked for.
        spread_estimate: Largest eigenvalue of the samples' covariance, without confidence; None likewise,
            and where nothing was seen of it.
        spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
        token_grids: Rows and columns of the rectangles that the tokens fill, one after another.
        seed: Of the draws.
        queue_seconds: Time before the first sample.
        smoothing_seconds: Time from the first sample to the last.
    """

    payload: dict[str, NDArray[np.generic]]
    sigma: float
    samples: int
    max_samples: int
    ended: Ending
    confidence: float
    alphas: ConfidenceSplit
    granularity: Granularity
    feature_map: FeatureMap
    norm_lower: float | NDArray[np.float64]
    norm_estimate: float | NDArray[np.float64] | None
    token_norm_lower: NDArray[np.float64] | None
    spread: Spread | None
    spread_estimate: float | None
    spectral_norm: float
    token_grids: tuple[tuple[int, int], ...]
    seed: int
    queue_seconds: float
    smoothing_seconds: float


class EngineClosedError(RuntimeError):
    """The engine no longer takes work."""


class EngineOverloadedError(RuntimeError):
    """The queue is full; the caller should try again later."""


class SmoothingError(RuntimeError):
    """The pass failed for this image."""


@dataclass(eq=False, slots=True)
class _Job:
    """One image on its way through the engine."""

    request: SmoothingRequest
    image: PreparedImage
    seed: int
    rule: StoppingRule | None = None
    sequence: NormConfidenceSequence | None = None
    token_sequence: NormConfidenceSequence | None = None
    spread: SpreadConfidenceSequence | None = None
    ended: Ending | None = None
    future: Future[SmoothingResult] = field(default_factory=Future)
    state: SmoothingState | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0

    @property
    def remaining(self) -> int:
        if self.ended is not None:
            return 0
        return self.request.samples - (self.state.count if self.state else 0)

    @property
    def bucket(self) -> tuple[tuple[int, ...], Grid, FeatureMap, bool]:
        """Jobs of one bucket may share a batch."""
        request = self.request
        return tuple(self.image.pixels.shape), self.image.grid, request.feature_map, request.sigma == 0

    def observe(self, products: InnerProducts) -> None:
        """Feeds the new samples to the confidence sequences, and ends the sampling where that is due.

        The inner products and the largest eigenvalue of the sketch are all that leaves the device.
        """
        if self.sequence is None:
            self._open_sequences(products.tokens.shape[-1])
        assert self.sequence is not None  # noqa: S101 (opened above)
        if products.image.shape[0]:
            if self.token_sequence is not None:
                self.token_sequence.update(products.tokens.double().cpu().numpy())
            by_token = self.request.granularity == "token"
            latest = (products.tokens if by_token else products.image).double().cpu().numpy()
            if not by_token:
                self.sequence.update(latest)
            if self.rule is not None:
                self.observe_spread()
                decision = self.rule.decide(self.sequence, latest, self.spread)
                if decision == "reached" or (decision == "out_of_reach" and self.remaining > 0):
                    self.ended = decision
        if self.ended is None and self.remaining <= 0:
            self.ended = "samples"

    def observe_spread(self) -> None:
        """Reads the sketch, which costs more than keeping it: only where a decision or the result needs it."""
        if self.spread is not None and self.state is not None and self.state.sketch is not None:
            self.spread.observe(self.state.sketch.largest, self.state.sketch.count)

    def _open_sequences(self, tokens: int) -> None:
        alphas = self.request.alphas
        by_token = self.request.granularity == "token"
        if by_token or self.request.token_map:
            alpha = 1 - self.request.confidence
            self.token_sequence = NormConfidenceSequence(1 - alpha / tokens, shape=(tokens,))  # Bonferroni
        self.sequence = self.token_sequence if by_token else NormConfidenceSequence(1 - alphas.norm)
        self.spread = SpreadConfidenceSequence(1 - alphas.spread) if alphas.spread else None


class SmoothingEngine:
    """Owns one device's encoder and keeps its batches full from all images in flight.

    A thread runs the passes; the event loop is never blocked by them. Batches are shared fairly: each image in flight
    gets an equal part, and what one does not need goes to the next in order of arrival. An image's draws and
    sums do not depend on the batches, so neither does its certificate; where sampling ends early, the number of
    samples does, since the rule looks at the end of each batch. The certificate holds at any number.

    Args:
        smoother: Encoder with purifier and mapper.
        batch_size: Samples in one batch.
        max_queued_samples: Samples that may wait at once; above it :class:`EngineOverloadedError` is raised.
    """

    def __init__(self, smoother: Smoother, *, batch_size: int = 32, max_queued_samples: int = 65536) -> None:
        self.smoother = smoother
        self._batch_size = batch_size
        self._max_queued_samples = max_queued_samples
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._turn = 0
        self.batches = 0  # run so far
        self.batch_samples = 0  # in them
        self._heartbeat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="smoothing", daemon=True)
        self._thread.start()

    @property
    def encoder(self) -> VisionEncoder:
        """The vision part that is smoothed."""
        return self.smoother.encoder

    @property
    def batch_size(self) -> int:
        """Most samples in one batch."""
        return self._batch_size

    @property
    def queue_limit(self) -> int:
        """Samples that may wait at once."""
        return self._max_queued_samples

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the passes is running."""
        return self._thread.is_alive()

    @property
    def seconds_since_heartbeat(self) -> float:
        """How long the thread has been busy with one batch; it gives a sign of life at least once a second else."""
        return time.monotonic() - self._heartbeat

    @property
    def queued_samples(self) -> int:
        """Samples asked for and not yet drawn."""
        with self._changed:
            return sum(job.remaining for job in self._jobs)

    def submit(self, request: SmoothingRequest) -> Future[SmoothingResult]:
        """Prepares an image on the calling thread and queues it.

        Cancelling the future stops its work at the next batch.

        Raises:
            EngineClosedError: :meth:`close` was called.
            EngineOverloadedError: Too many samples are waiting.
            ValueError: The request's values are out of range.
        """
        return self._enqueue(self._prepare(request))

    async def smooth(self, request: SmoothingRequest) -> SmoothingResult:
        """Smooths one image; cancelling the task cancels the work. Raises as :meth:`submit`, and SmoothingError."""
        job = await asyncio.to_thread(self._prepare, request)
        return await asyncio.wrap_future(self._enqueue(job))

    def _prepare(self, request: SmoothingRequest) -> _Job:
        if request.samples < 1:
            raise ValueError(f"samples must be at least 1, got {request.samples}")
        if request.feature_map.centred and self.smoother.statistics is None:
            raise ValueError("centred features need the model's feature statistics, and it has none")
        if not 0 < request.confidence <= MAX_CONFIDENCE:
            raise ValueError(f"confidence must lie in (0, 1 - 1e-9], for example 0.999; got {request.confidence}")
        if not (request.sigma >= 0 and np.isfinite(request.sigma)):
            raise ValueError(f"sigma must be a finite number of at least 0, got {request.sigma}")
        seed = fresh_seed() if request.seed is None else request.seed
        image = self.encoder.prepare(request.image)
        rule = None
        if request.until is not None and request.until.min_similarity and request.sigma > 0:
            radius = request.until.radii(image.spectral_norm).model
            further = request.samples - 1  # the first sample has no inner product
            rule = StoppingRule(request.until.min_similarity, radius, request.sigma, further)
        return _Job(request, image, seed, rule)

    def _enqueue(self, job: _Job) -> Future[SmoothingResult]:
        with self._changed:
            if self._closed or not self.alive:
                raise EngineClosedError("the smoothing engine is shut down")
            waiting = sum(other.remaining for other in self._jobs)
            if waiting and waiting + job.request.samples > self._max_queued_samples:
                raise EngineOverloadedError("too many noise samples are waiting")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def warm_up(self, image: NDArray[np.uint8] | None = None) -> None:
        """Runs one full batch, so that the first request does not pay for memory and kernels."""
        blank = np.zeros((64, 64, 3), np.uint8) if image is None else image
        self.submit(SmoothingRequest(blank, 0.1, self._batch_size, 0.9)).result()

    def close(self) -> None:
        """Fails what is queued and stops the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # --- the thread that owns the device -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._wait_for_batch()) is not None:
                if batch:
                    self._run_batch(batch)
        finally:  # also when the scheduler itself fails: nobody may wait for a thread that is gone
            with self._changed:
                self._closed = True
                for job in self._jobs:
                    _fail(job, EngineClosedError("the smoothing engine was shut down"))
                self._jobs.clear()

    def _wait_for_batch(self) -> list[tuple[_Job, int]] | None:
        """The next batch, perhaps empty; None once the engine is closed."""
        with self._changed:
            self._heartbeat = time.monotonic()
            while not self._jobs and not self._closed:
                self._changed.wait(_HEARTBEAT_SECONDS)
                self._heartbeat = time.monotonic()
            if self._closed:
                return None
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
            return self._next_batch()

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Which images get how many samples of the next batch."""
        if not self._jobs:
            return []
        buckets = list(dict.fromkeys(job.bucket for job in self._jobs))  # in order of arrival, each in its turn
        bucket = buckets[self._turn % len(buckets)]
        self._turn += 1
        jobs = [job for job in self._jobs if job.bucket == bucket][: self._batch_size]
        share = self._batch_size // len(jobs)
        counts = [min(job.remaining, share) for job in jobs]
        spare = self._batch_size - sum(counts)
        for index, job in enumerate(jobs):
            extra = min(spare, job.remaining - counts[index])
            counts[index] += extra
            spare -= extra
        self.batches += 1
        self.batch_samples += self._batch_size - spare
        return [(job, count) for job, count in zip(jobs, counts, strict=True) if count]

    def _run_batch(self, batch: Sequence[tuple[_Job, int]]) -> None:
        """Runs one batch. When it fails, each image runs alone, so that only the one at fault fails."""
        try:
            self._step(batch)
        except Exception as error:
            if len(batch) == 1:
                job, count = batch[0]
                if isinstance(error, torch.OutOfMemoryError) and count > 1:
                    torch.cuda.empty_cache()
                    self._run_batch([(job, count // 2)])  # the rest follows in later batches
                else:
                    _fail(job, SmoothingError(f"smoothing failed: {type(error).__name__}"), cause=error)
                    self._forget(job)
                return
            for part in batch:
                self._run_batch([part])

    def _step(self, batch: Sequence[tuple[_Job, int]]) -> None:
        now = time.monotonic()
        for job, _ in batch:
            if job.state is None:
                job.state = self.smoother.start(
                    job.image,
                    job.request.sigma,
                    job.seed,
                    job.request.feature_map,
                    spectral=job.request.alphas.spread > 0,
                )
                job.started = now
        parts = [(job.state, count) for job, count in batch if job.state is not None]
        products = self.smoother.step(parts)
        for (job, _), new in zip(batch, products, strict=True):
            # From here on the samples are counted, so a failure must not run the image again.
            try:
                job.observe(new)
                if job.ended is not None:
                    result = self._finish(job)
                    self._forget(job)
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_result(result)
            except Exception as error:
                _fail(job, SmoothingError(f"smoothing failed: {type(error).__name__}"), cause=error)
                self._forget(job)

    def _finish(self, job: _Job) -> SmoothingResult:
        assert job.state is not None  # noqa: S101 (set by _step)
        assert job.ended is not None  # noqa: S101 (why we are here)
        smoothed = self.smoother.finish(job.state)
        job.observe_spread()
        by_token = job.request.granularity == "token"
        estimate: float | NDArray[np.float64] | None = smoothed.norm_estimate
        if by_token and smoothed.token_norm_estimates is not None:
            estimate = smoothed.token_norm_estimates.double().cpu().numpy()
        lower = job.sequence.lower if job.sequence is not None else 0.0
        wants_map = job.request.token_map and job.token_sequence is not None
        return SmoothingResult(
            payload=self.encoder.payload(smoothed.embeddings, job.image),
            sigma=job.request.sigma,
            samples=job.state.count,
            max_samples=job.request.samples,
            ended=job.ended,
            confidence=job.request.confidence,
            alphas=job.request.alphas,
            granularity=job.request.granularity,
            feature_map=job.request.feature_map,
            norm_lower=lower,
            norm_estimate=estimate,
            token_norm_lower=np.asarray(job.token_sequence.lower) if wants_map and job.token_sequence else None,
            spread=job.spread.bound() if job.spread else None,
            spread_estimate=job.spread.observed if job.spread and job.spread.count else None,
            spectral_norm=job.image.spectral_norm,
            token_grids=self.encoder.token_grids(job.image.grid, job.request.feature_map.stage),
            seed=job.seed,
            queue_seconds=job.started - job.submitted,
            smoothing_seconds=time.monotonic() - job.started,
        )

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)


def _fail(job: _Job, error: Exception, cause: BaseException | None = None) -> None:
    error.__cause__ = cause
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
