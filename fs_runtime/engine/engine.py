"""The engine's front: takes requests, answers from the cache what is there, and queues the rest."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.memory import ImageCache
from fs_runtime.engine.cache.origins import Origins, draws_name
from fs_runtime.engine.cache.shared import SharedCache
from fs_runtime.engine.cache.stored import StoredImage
from fs_runtime.engine.capacity import BatchBudget
from fs_runtime.engine.copies import Copies, CopyBudget
from fs_runtime.engine.errors import DeadlineUnreachableError, DeviceLostError, EngineClosedError, EngineOverloadedError
from fs_runtime.engine.fair_gate import FairGate
from fs_runtime.engine.job import Job, PendingRequest, cost_of
from fs_runtime.engine.request import Origin, Pixels, Place, Recall, SmoothingRequest, SmoothingResult
from fs_runtime.engine.sketch_limit import SketchLimit
from fs_runtime.engine.terms import CertificateTerms
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
        max_copy_bytes: Most memory, about, for copies that are asked about by themselves.

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
        max_copy_bytes: int = 2**28,
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
        self._copies = CopyBudget(max_copy_bytes, self._worker.changed)
        # Of its own, so that images being prepared do not keep others from being found in the cache.
        places = max(1, min(4, os.cpu_count() or 1))
        self._preparers = ThreadPoolExecutor(places, thread_name_prefix="prepare")
        self._gate = FairGate(places)  # an executor's own queue knows no tenants
        self._place_numbers = itertools.count()
        self._preparing: set[Place] = set()  # images that were admitted and are not in the queue yet
        self._working: set[Place] = set()  # those of them that are being decoded and prepared

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

    def seconds_for(self, samples: int) -> float | None:
        """Seconds until all that is queued and so many samples more, of images of the model's usual shape, are done.

        None before any batch was run.
        """
        with self._worker.changed:
            return self._worker.rate.seconds(self._worker.queue.cost + samples * self._full_batch // self._batch_size)

    @property
    def copy_bytes(self) -> int | None:
        """Memory of one copy of the image that copies were drawn of last; None before any."""
        return self._copies.copy_bytes

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

    def submit(self, request: SmoothingRequest, pixels: Pixels) -> Future[SmoothingResult]:
        """Prepares an image on the calling thread and queues it, or answers from the cache.

        Cancelling the future stops its work at the next batch, unless others wait for the same draws.

        Raises:
            EngineClosedError: :meth:`close` was called.
            EngineOverloadedError: Too much is waiting, or (:class:`DeadlineUnreachableError`) too much for the timeout.
            ValueError: The request's values are out of range.
        """
        received = time.monotonic()
        self._check(request)
        key = self._key(request, pixels)
        recall = self._recall(request, key, received)
        pending = PendingRequest(request, received=received)
        if recall.result is not None:
            pending.future.set_result(recall.result)
        else:
            self._check_room()
            image = self._prepare(pending, pixels)
            self._enqueue(pending, key, image, recall, self._found_again(recall, key))
        return pending.future

    async def recall(self, request: SmoothingRequest, received: float | None = None) -> Recall:
        """Looks an image up by its ``image_id``. Without a result, go on with :meth:`smooth`.

        Args:
            request: What is asked.
            received: When it came, on the monotonic clock, if its image had to be decoded first; now if None.

        Raises:
            EngineClosedError: :meth:`close` was called.
            ValueError: The request's values are out of range, or it has no ``image_id`` though the cache is to be used.
        """
        came = time.monotonic() if received is None else received
        self._check(request)
        return await asyncio.to_thread(lambda: self._recall(request, self._key(request), came))

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[Place]:
        """Admits an image to be decoded and prepared. Few are at once, for pixels take memory; tenants take turns.

        Raises:
            EngineClosedError: :meth:`close` was called.
            EngineOverloadedError: Too many images are waiting.
        """
        self._check_room()
        place = Place(next(self._place_numbers))
        self._preparing.add(place)
        try:
            await self._gate.enter(tenant)
            self._working.add(place)
            yield place
        finally:
            self._leave(place)

    async def smooth(
        self, recall: Recall, pixels: Pixels, place: Place, copies: Copies | None = None
    ) -> SmoothingResult:
        """Smooths an image that :meth:`recall` had no result for; cancelling the task cancels the work.

        Args:
            recall: What this engine made of the request.
            pixels: Of the image. Keep no reference to them: nobody looks at them again once they are prepared.
            place: One of :meth:`place`, which is left as soon as the image is prepared.
            copies: Gets each sample by itself, and says how many; the request should name a purpose. None for nobody.

        Raises:
            EngineOverloadedError, EngineClosedError, SmoothingError, DeadlineExceededError: As their names say.
            ImageSizeError: The encoder does not take an image of this size.
        """
        pending = PendingRequest(recall.request, received=recall.received, copies=copies)
        key = self._key(recall.request)
        try:
            work = asyncio.get_running_loop().run_in_executor(self._preparers, self._prepare, pending, pixels)
        except RuntimeError:  # the engine was closed while the image was decoded
            raise self._closed() from None
        del pixels
        try:
            image = await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._closed() from None  # closing cancels what waits for a thread
        found = await asyncio.to_thread(self._found_again, recall, key) if recall.shared else None
        self._leave(place)
        self._enqueue(pending, key, image, recall, found)
        return await asyncio.wrap_future(pending.future)

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
        self.submit(SmoothingRequest(CertificateTerms(0.1, 0.9), 2 * self._batch_size, seed=0), blank).result()

    def close(self) -> None:
        """Fails what is queued and stops the thread."""
        self._worker.close()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        if self.shared_cache is not None:
            self.shared_cache.close()

    # --- from a request to a place in the queue ------------------------------------------------------------------

    def _check(self, request: SmoothingRequest) -> None:
        request.check()
        if request.terms.feature_map.centred and self.smoother.statistics is None:
            raise ValueError("centred features need the model's feature statistics, and it has none")

    def _key(self, request: SmoothingRequest, pixels: Pixels | None = None) -> CacheKey | None:
        """What the caches know the image by; None if the request goes past them."""
        if self._cache.max_bytes == 0 or not request.use_cache or request.seed is not None:
            return None
        return CacheKey.of(request, self.smoother, self._sketches.max_bytes, pixels)

    def _recall(self, request: SmoothingRequest, key: CacheKey | None, received: float) -> Recall:
        """Asks the cache in memory first, then the one that replicas share."""
        if key is None:
            return Recall(request, None, received)
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            stored, in_flight = self._cache.get(key), key in self._worker.jobs
        result = self._answer(request, stored)
        if result is not None or self.shared_cache is None or in_flight:
            return Recall(request, result, received)
        mine = stored.origin if stored is not None else self._remembered(draws_name(key))
        keeps = mine is not None and self.shared_cache.takes(mine)
        proposed = mine if mine is not None and keeps else Origin.fresh(request.samples)
        known = self.shared_cache.find(key, proposed)
        if known is None:
            return Recall(request, None, received, proposed)
        if known.image is not None and known.image.is_better_than(stored):
            with self._worker.changed:
                self._cache.put(key, known.image)
            result = self._answer(request, known.image)
        return Recall(request, result, received, proposed, known.origin, shared=known.image is not None)

    def _answer(self, request: SmoothingRequest, stored: StoredImage | None) -> SmoothingResult | None:
        """The result if what is stored is enough for it."""
        if stored is None:
            return None
        capacity = max(1, self._full_batch // stored.cost)
        pending = PendingRequest(self._sketches.applied(request, stored.token_grids))
        pending.open(stored.spectral_norm, capacity)
        pending.observe(stored.draws, capacity)
        if pending.ended is None:
            return None
        pending.cache, pending.had = "hit", stored.draws.count
        return pending.result(stored, stored.mean, None)

    def _check_room(self) -> None:
        """Refuses before the work of preparing an image."""
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            if len(self._worker.queue) + len(self._preparing) >= self._max_queued_images:
                raise EngineOverloadedError("too many images are waiting", self._seconds(self._worker.queue.cost))

    def _leave(self, place: Place) -> None:
        """Lets the next image in; a second call does nothing."""
        self._preparing.discard(place)
        if place in self._working:
            self._working.discard(place)
            self._gate.leave()

    def _found_again(self, recall: Recall, key: CacheKey | None) -> StoredImage | None:
        """What replicas share of an image, where this one's memory could not keep it since it was recalled."""
        if key is None or not recall.shared or recall.agreed is None or self.shared_cache is None:
            return None
        with self._worker.changed:
            stored = self._cache.get(key)
        if stored is not None and stored.origin == recall.agreed and stored.sums is not None:
            return None
        known = self.shared_cache.find(key, recall.agreed)
        return None if known is None else known.image

    def _prepare(self, pending: PendingRequest, pixels: Pixels) -> PreparedImage:
        image = self.encoder.prepare(pixels)
        pending.request = self._sketches.applied(pending.request, self._token_grids(pending.request, image))
        pending.open(image.spectral_norm, max(1, self._full_batch // cost_of(image)))
        return image

    def _enqueue(
        self,
        pending: PendingRequest,
        key: CacheKey | None,
        image: PreparedImage,
        recall: Recall,
        found: StoredImage | None,
    ) -> None:
        request = pending.request
        name = None if key is None else draws_name(key)
        with self._worker.changed:
            if self._worker.closed:
                raise self._closed()
            job = self._worker.jobs.get(key) if key is not None and pending.copies is None else None
            if job is not None:
                had = job.draws.count + job.remaining
                self._admit(pending, max(0, request.samples - had), job.draws.count, job.cost)
                pending.cache, pending.had = "hit" if request.samples <= had else "extended", had
                job.waiting.append(pending)
                job.unseen = True
                self._worker.changed.notify_all()
                return
            origin, stored = self._begin(recall, key, name, found)
            count = pending.had = stored.draws.count if stored else 0
            self._admit(pending, max(0, request.samples - count), count, cost_of(image))
            if name is not None:
                self._origins[name] = origin
                pending.cache = "extended" if stored else "miss"
            if pending.copies is not None:
                pending.copies.attach(self._copies, image.spectral_norm)
            job = Job(
                request,
                image,
                origin,
                self._token_grids(request, image),
                key if pending.copies is None else None,  # nobody joins, and nothing is kept but the origin
                stored,
                [pending],
                unseen=stored is not None,
                copies=pending.copies,
            )
            self._worker.add(job)

    def _begin(
        self, recall: Recall, key: CacheKey | None, name: bytes | None, found: StoredImage | None
    ) -> tuple[Origin, StoredImage | None]:
        """Which draws the request gets, and what to go on with; with ``changed`` held."""
        stored = self._cache.get(key) if key is not None else None
        if found is not None and found.is_better_than(stored):
            stored = found
        if recall.agreed is not None:  # what replicas share comes before what this one has
            origin = recall.agreed
            if stored is not None and stored.origin != origin:
                stored = None
        elif stored is not None:
            origin = stored.origin
        else:  # the proposal may have reached others, even where no answer came back
            mine = None if name is None else self._remembered(name)
            origin = mine or recall.proposed or Origin.fresh(recall.request.samples, recall.request.seed)
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

    def _admit(self, pending: PendingRequest, further: int, count: int, cost: int) -> None:
        """Refuses a request that there is no room or no time for.

        Args:
            pending: The request.
            further: Samples that it adds to the queue.
            count: Samples that there are already.
            cost: Of one sample, in tokens.
        """
        queue, request = self._worker.queue, pending.request
        waiting = queue.cost
        if waiting and waiting + further * cost > self._max_queued_tokens:
            raise EngineOverloadedError("too many noise samples are waiting", self._seconds(waiting))
        needed = min(further, max(0, pending.wanted(count)))  # with a rule: the soonest that it may end
        wait = self._seconds(queue.cost_until_done(request.tenant, needed * cost))
        if wait is not None and time.monotonic() + wait > pending.deadline:
            raise DeadlineUnreachableError(
                f"smoothing would take about {wait:.3g} s, more than the {request.timeout:g} s that are left for it",
                wait,
            )

    def _token_grids(self, request: SmoothingRequest, image: PreparedImage) -> tuple[tuple[int, int], ...]:
        return self.encoder.token_grids(image.grid, request.terms.feature_map.stage)

    def _seconds(self, tokens: int) -> float | None:
        return self._worker.rate.seconds(tokens)

    def _closed(self) -> EngineClosedError:
        if self.device_lost:
            return DeviceLostError(f"{self.encoder.device} does not compute any more")
        return EngineClosedError("the smoothing engine is shut down")
