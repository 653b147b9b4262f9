"""The engine's front: takes requests, answers from the cache what is there, and queues the rest."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.memory import ImageCache
from fs_runtime.engine.cache.origins import Origins, draws_name
from fs_runtime.engine.cache.shared import SharedCache
from fs_runtime.engine.cache.stored import Origin, StoredImage
from fs_runtime.engine.capacity import BatchBudget
from fs_runtime.engine.errors import DeadlineUnreachableError, DeviceLostError, EngineClosedError, EngineOverloadedError
from fs_runtime.engine.fair_gate import FairGate
from fs_runtime.engine.job import Job, PendingRequest, cost_of
from fs_runtime.engine.request import SmoothingRequest, SmoothingResult
from fs_runtime.engine.sketch_limit import SketchLimit
from fs_runtime.engine.worker import Worker
from fs_runtime.smoothing.smoother import Smoother

_USUAL_SIDE = 336  # a picture of that many pixels squared has the model's usual number of tokens


class SmoothingEngine:
    """Owns one device's encoder and keeps its batches full from all images in flight.

    A thread runs the passes; the event loop is never blocked by them. Tenants share the batches fairly, and so do the
    requests of each (fair_queue.py). An image's draws and sums do not depend on the batches, so neither does its
    certificate; where sampling ends early, the number of samples does, since the rule looks at the end of a batch.
    The certificate holds at any number.

    Requests that agree in all that the draws depend on share them: those in flight at once wait for one job, and later
    ones find in the cache what was drawn, and have more added to it if they need more.

    Args:
        smoother: Encoder with purifier and mapper; its weights must not change.
        batch_size: Samples in one batch, of images of the model's usual shape; of others as many as have as many
            tokens.
        max_queued_samples: Samples that may wait at once, counted likewise; above it :class:`EngineOverloadedError` is
            raised.
        max_queued_images: Images that may wait at once; their pixels take memory.
        cache_bytes: Memory for finished images; 0 keeps none, and lets no two requests share draws.
        shared_cache: What replicas share beyond that; closed with the engine. None for one replica. Needs
            ``cache_bytes``.
        max_sketch_bytes: Most memory for the sketch of one image's spread; where it would take more, the spread is not
            bounded, as if the request had not asked for it. 0 for no limit.

    Raises:
        ValueError: There is a shared cache without one in memory.
    """

    def __init__(
        self,
        smoother: Smoother,
        *,
        batch_size: int = 32,
        max_queued_samples: int = 65536,
        max_queued_images: int = 1024,
        cache_bytes: int = 0,
        shared_cache: SharedCache | None = None,
        max_sketch_bytes: int = 0,
    ) -> None:
        if shared_cache is not None and not cache_bytes:
            raise ValueError("a shared cache needs one in memory in front of it; give cache_bytes")
        self.smoother = smoother
        self._batch_size = batch_size
        blank = smoother.encoder.prepare(np.zeros((_USUAL_SIDE, _USUAL_SIDE, 3), np.uint8))
        usual = cost_of(blank)
        self._sketches = SketchLimit(smoother, blank, max_sketch_bytes)
        self._full_batch = batch_size * usual
        self._max_queued_samples = max_queued_samples
        self._max_queued_tokens = max_queued_samples * usual
        self._max_queued_images = max_queued_images
        self._cache = ImageCache(cache_bytes)
        self._origins = Origins()  # guarded as the cache is
        self.shared_cache = shared_cache
        self._worker = Worker(smoother, BatchBudget(self._full_batch), self._cache, shared_cache)
        # Of its own, so that images being prepared do not keep others from being found in the cache.
        places = max(1, min(4, os.cpu_count() or 1))
        self._preparers = ThreadPoolExecutor(places, thread_name_prefix="prepare")
        self._gate = FairGate(places)  # an executor's own queue knows no tenants
        self._preparing = 0

    @property
    def encoder(self) -> VisionEncoder:
        """The vision part that is smoothed."""
        return self.smoother.encoder

    @property
    def batch_size(self) -> int:
        """Most samples in one batch, of images of the model's usual shape."""
        return self._batch_size

    @property
    def queue_limit(self) -> int:
        """Samples that may wait at once, of images of the model's usual shape."""
        return self._max_queued_samples

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the passes is running."""
        return self._worker.alive

    @property
    def device_lost(self) -> bool:
        """Whether the device computes nothing any more for this process; the engine is closed then."""
        return self._worker.device_lost

    @property
    def seconds_since_heartbeat(self) -> float:
        """Time since the thread last came round: at most about a second, or the time of a batch."""
        return time.monotonic() - self._worker.beat

    @property
    def queued_samples(self) -> int:
        """Samples asked for and not yet drawn."""
        with self._worker.changed:
            return sum(job.remaining for job in self._worker.queue)

    @property
    def queued_images(self) -> int:
        """Images in flight."""
        with self._worker.changed:
            return len(self._worker.queue)

    @property
    def estimated_wait(self) -> float | None:
        """Seconds until all that is queued is done, at the rate of late; None before any batch was run."""
        with self._worker.changed:
            return self._worker.rate.seconds(self._worker.queue.cost)

    @property
    def batches(self) -> int:
        """Batches run so far."""
        return self._worker.batches

    @property
    def batch_fill(self) -> float:
        """Sum over those of the part that was used."""
        return self._worker.batch_fill

    @property
    def samples_drawn(self) -> int:
        """Samples drawn so far."""
        return self._worker.samples

    @property
    def out_of_memory_events(self) -> int:
        """Batches that did not fit into memory so far."""
        return self._worker.out_of_memory

    @property
    def scheduler_faults(self) -> int:
        """Faults of the scheduler itself so far, each of which failed some images."""
        return self._worker.faults

    @property
    def cache_bytes(self) -> int:
        """Memory that cached images take, about."""
        return self._cache.nbytes

    @property
    def cached_images(self) -> int:
        """Images in the cache."""
        return len(self._cache)

    def submit(self, request: SmoothingRequest) -> Future[SmoothingResult]:
        """Prepares an image on the calling thread and queues it, or answers from the cache.

        Cancelling the future stops its work at the next batch, unless others wait for the same draws.

        Raises:
            EngineClosedError: :meth:`close` was called.
            EngineOverloadedError: Too much is waiting, or (:class:`DeadlineUnreachableError`) too much for the timeout.
            ValueError: The request's values are out of range.
        """
        ask, key = self._open(request)
        found = self._recall(ask, key)
        if found is not None:
            ask.future.set_result(found)
        else:
            self._check_room()
            self._enqueue(ask, key, self._prepare(ask))
        return ask.future

    async def smooth(self, request: SmoothingRequest) -> SmoothingResult:
        """Smooths one image; cancelling the task cancels the work.

        Raises as :meth:`submit` and the request's ``image``; SmoothingError, DeadlineExceededError.
        """

        def recall() -> tuple[PendingRequest, CacheKey | None, SmoothingResult | None]:
            ask, key = self._open(request)
            return ask, key, self._recall(ask, key)

        ask, key, found = await asyncio.to_thread(recall)
        if found is not None:
            return found
        self._check_room()
        self._preparing += 1
        try:
            async with self._gate.place(request.tenant):
                image = await asyncio.get_running_loop().run_in_executor(self._preparers, self._prepare, ask)
        finally:
            self._preparing -= 1
        self._enqueue(ask, key, image)
        return await asyncio.wrap_future(ask.future)

    def warm_up(self, image: NDArray[np.uint8] | None = None) -> None:
        """Runs full batches, so that the first request does not pay for memory and kernels and the rate is known.

        Networks that are to be compiled are, before that.

        Raises:
            CompilationError: They cannot be.
        """
        blank = np.zeros((_USUAL_SIDE, _USUAL_SIDE, 3), np.uint8) if image is None else image
        compiled = self.smoother.compiled
        if compiled is not None:
            rows, columns = self.encoder.prepare(blank).grid[:2]
            self._worker.call(lambda: compiled.warm_up(self.encoder.device, (rows, columns))).result()
        self.submit(SmoothingRequest(blank, 0.1, 2 * self._batch_size, 0.9, seed=0)).result()

    def close(self) -> None:
        """Fails what is queued and stops the thread."""
        self._worker.close()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        if self.shared_cache is not None:
            self.shared_cache.close()

    # --- from a request to a place in the queue ------------------------------------------------------------------

    def _open(self, request: SmoothingRequest) -> tuple[PendingRequest, CacheKey | None]:
        request.check()
        if request.feature_map.centred and self.smoother.statistics is None:
            raise ValueError("centred features need the model's feature statistics, and it has none")
        ask = PendingRequest(request)
        cached = self._cache.max_bytes > 0 and request.use_cache and request.seed is None
        return ask, CacheKey.of(request, self.smoother, self._sketches.max_bytes) if cached else None

    def _recall(self, ask: PendingRequest, key: CacheKey | None) -> SmoothingResult | None:
        """The result if the cache has all that it takes: the one in memory first, then the one that replicas share."""
        if key is None:
            return None
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            stored, in_flight = self._cache.get(key), key in self._worker.jobs
        result = self._answer(ask, stored)
        if result is not None or self.shared_cache is None or in_flight:
            return result
        mine = stored.origin if stored is not None else self._remembered(draws_name(key))
        keeps = mine is not None and self.shared_cache.takes(mine)
        ask.proposal = mine if mine is not None and keeps else Origin.fresh(ask.request.samples)
        ask.known = self.shared_cache.find(key, ask.proposal)
        found = ask.known.image if ask.known else None
        if found is None or not found.is_better_than(stored):
            return None
        with self._worker.changed:
            self._cache.put(key, found)
        return self._answer(ask, found)

    def _answer(self, ask: PendingRequest, stored: StoredImage | None) -> SmoothingResult | None:
        """The result if what is stored is enough for it."""
        if stored is None:
            return None
        capacity = max(1, self._full_batch // stored.cost)
        ask.request = self._sketches.applied(ask.request, stored.token_grids)
        ask.open(stored.spectral_norm, capacity)
        ask.observe(stored.draws, capacity)
        if ask.ended is None:
            return None
        ask.cache, ask.had = "hit", stored.draws.count
        return ask.result(stored, stored.mean, None)

    def _check_room(self) -> None:
        """Refuses before the work of preparing an image."""
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            if len(self._worker.queue) + self._preparing >= self._max_queued_images:
                raise EngineOverloadedError("too many images are waiting", self._seconds(self._worker.queue.cost))

    def _prepare(self, ask: PendingRequest) -> PreparedImage:
        image = self.encoder.prepare(ask.request.pixels())
        request = ask.request.without_pixels()
        ask.request = self._sketches.applied(request, self._token_grids(request, image))
        ask.open(image.spectral_norm, max(1, self._full_batch // cost_of(image)))
        return image

    def _enqueue(self, ask: PendingRequest, key: CacheKey | None, image: PreparedImage) -> None:
        request = ask.request
        name = None if key is None else draws_name(key)
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            job = self._worker.jobs.get(key) if key is not None else None
            if job is not None:
                had = job.draws.count + job.remaining
                self._admit(ask, max(0, request.samples - had), job.draws.count, job.cost)
                ask.cache, ask.had = "hit" if request.samples <= had else "extended", had
                job.asks.append(ask)
                job.unseen = True
                self._worker.changed.notify_all()
                return
            origin, stored = self._begin(ask, key, name)
            count = ask.had = stored.draws.count if stored else 0
            self._admit(ask, max(0, request.samples - count), count, cost_of(image))
            if name is not None:
                self._origins.put(name, origin)
                ask.cache = "extended" if stored else "miss"
            job = Job(
                request,
                image,
                origin,
                self._token_grids(request, image),
                key,
                stored,
                [ask],
                unseen=stored is not None,
            )
            self._worker.add(job)

    def _begin(
        self, ask: PendingRequest, key: CacheKey | None, name: bytes | None
    ) -> tuple[Origin, StoredImage | None]:
        """Which draws the request gets, and what to go on with; with ``changed`` held."""
        stored = self._cache.get(key) if key is not None else None
        if ask.known is not None:  # what replicas share comes before what this one has
            found = ask.known.image
            if found is not None and found.is_better_than(stored):
                stored = found
            if stored is not None and stored.origin != ask.known.origin:
                stored = None
            origin = ask.known.origin
        elif stored is not None:
            origin = stored.origin
        else:  # the proposal may have reached others, even where no answer came back
            mine = None if name is None else self._remembered(name)
            origin = mine or ask.proposal or Origin.fresh(ask.request.samples, ask.request.seed)
        if stored is not None and stored.sums is None:
            stored = None  # it was too large to go on with: the same draws are made again
        return origin, stored

    def _remembered(self, name: bytes) -> Origin | None:
        """Which draws the image had, unless replicas are past sharing them."""
        with self._worker.changed:
            origin = self._origins.get(name)
        if origin is not None and self.shared_cache is not None and not self.shared_cache.takes(origin):
            return None
        return origin

    def _admit(self, ask: PendingRequest, further: int, count: int, cost: int) -> None:
        """Refuses a request that there is no room or no time for.

        Args:
            ask: The request.
            further: Samples that it adds to the queue.
            count: Samples that there are already.
            cost: Of one sample, in tokens.
        """
        queue, request = self._worker.queue, ask.request
        waiting = queue.cost
        if waiting and waiting + further * cost > self._max_queued_tokens:
            raise EngineOverloadedError("too many noise samples are waiting", self._seconds(waiting))
        needed = min(further, max(0, ask.wanted(count)))  # with a rule: the soonest that it may end
        wait = self._seconds(queue.cost_until_done(request.tenant, needed * cost))
        if wait is not None and time.monotonic() + wait > ask.deadline:
            raise DeadlineUnreachableError(
                f"smoothing would take about {wait:.3g} s, more than the {request.timeout:g} s that are left for it",
                wait,
            )

    def _token_grids(self, request: SmoothingRequest, image: PreparedImage) -> tuple[tuple[int, int], ...]:
        return self.encoder.token_grids(image.grid, request.feature_map.stage)

    def _seconds(self, tokens: int) -> float | None:
        return self._worker.rate.seconds(tokens)

    def _closed(self) -> EngineClosedError:
        if self.device_lost:
            return DeviceLostError(f"{self.encoder.device} does not compute any more")
        return EngineClosedError("the smoothing engine is shut down")
