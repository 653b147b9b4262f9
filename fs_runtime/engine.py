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

from fs_runtime.certificate import NormConfidenceSequence, StoppingRule, required_norm
from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.noise import fresh_seed
from fs_runtime.query import CertificateQuery
from fs_runtime.smoothing import InnerProducts, Smoother, SmoothingState

Granularity = Literal["image", "token"]
Ending = Literal["samples", "reached", "out_of_reach"]


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
        until: Similarity and radius whose certificate ends the sampling early, as does the insight that it will not be
            reached; None draws all samples.
    """

    image: NDArray[np.uint8]
    sigma: float
    samples: int
    confidence: float
    granularity: Granularity = "image"
    seed: int | None = None
    until: CertificateQuery | None = None


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
        granularity: As asked.
        norm_lower: Lower bound of ρ with that confidence: a float, or ``(T,)``, all tokens at once.
        norm_estimate: Plug-in estimate of ρ without confidence, of the same shape; None if it cannot be given.
        spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
        grid: Rows and columns of the token grid.
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
    granularity: Granularity
    norm_lower: float | NDArray[np.float64]
    norm_estimate: float | NDArray[np.float64] | None
    spectral_norm: float
    grid: tuple[int, int]
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
    def bucket(self) -> tuple[tuple[int, ...], tuple[int, int], bool]:
        """Jobs of one bucket may share a batch."""
        return tuple(self.image.pixels.shape), self.image.grid, self.request.sigma == 0

    def observe(self, products: InnerProducts) -> None:
        """Feeds the new inner products to the confidence sequence, and ends the sampling where that is due.

        The inner products are all that leaves the device.
        """
        tokens = products.tokens.shape[-1]
        by_token = self.request.granularity == "token"
        if self.sequence is None:
            alpha = 1 - self.request.confidence
            self.sequence = (
                NormConfidenceSequence(1 - alpha / tokens, shape=(tokens,))  # Bonferroni over the tokens
                if by_token
                else NormConfidenceSequence(self.request.confidence)
            )
        values = products.tokens if by_token else products.image
        if values.shape[0]:
            latest = values.double().cpu().numpy()
            self.sequence.update(latest)
            decision = self.rule.decide(self.sequence, latest) if self.rule else "continue"
            if decision != "continue":
                self.ended = decision
        if self.ended is None and self.remaining <= 0:
            self.ended = "samples"


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
        self.last_batch_fill = 0.0
        self._thread = threading.Thread(target=self._run, name="smoothing", daemon=True)
        self._thread.start()

    @property
    def encoder(self) -> VisionEncoder:
        """The vision part that is smoothed."""
        return self.smoother.encoder

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the passes is running."""
        return self._thread.is_alive()

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
        if not (request.sigma >= 0 and np.isfinite(request.sigma)):
            raise ValueError(f"sigma must be a finite number of at least 0, got {request.sigma}")
        seed = fresh_seed() if request.seed is None else request.seed
        image = self.encoder.prepare(request.image)
        rule = None
        if request.until is not None and request.until.min_similarity and request.sigma > 0:
            radius = request.until.radii(image.spectral_norm).model
            norm = required_norm(request.until.min_similarity, radius, request.sigma)
            rule = StoppingRule(norm, request.samples - 1)  # the first sample has no inner product
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
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
            return self._next_batch()

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Which images get how many samples of the next batch."""
        if not self._jobs:
            return []
        jobs = [job for job in self._jobs if job.bucket == self._jobs[0].bucket][: self._batch_size]
        share = self._batch_size // len(jobs)
        counts = [min(job.remaining, share) for job in jobs]
        spare = self._batch_size - sum(counts)
        for index, job in enumerate(jobs):
            extra = min(spare, job.remaining - counts[index])
            counts[index] += extra
            spare -= extra
        self.last_batch_fill = 1 - spare / self._batch_size
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
                job.state = self.smoother.start(job.image, job.request.sigma, job.seed)
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
        by_token = job.request.granularity == "token"
        estimate: float | NDArray[np.float64] | None = smoothed.norm_estimate
        if by_token and smoothed.token_norm_estimates is not None:
            estimate = smoothed.token_norm_estimates.double().cpu().numpy()
        lower = job.sequence.lower if job.sequence is not None else 0.0
        return SmoothingResult(
            payload=self.encoder.payload(smoothed.embeddings, job.image),
            sigma=job.request.sigma,
            samples=job.state.count,
            max_samples=job.request.samples,
            ended=job.ended,
            confidence=job.request.confidence,
            granularity=job.request.granularity,
            norm_lower=lower,
            norm_estimate=estimate,
            spectral_norm=job.image.spectral_norm,
            grid=job.image.grid,
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
