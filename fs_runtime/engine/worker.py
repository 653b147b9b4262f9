"""The thread that owns the device: takes batches from the queue, runs them, and tells those who wait."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import torch

from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.memory import ImageCache
from fs_runtime.engine.cache.shared import SharedCache
from fs_runtime.engine.cache.stored import StoredImage, Sums
from fs_runtime.engine.capacity import BatchBudget, Rate
from fs_runtime.engine.errors import DeadlineExceededError, DeviceLostError, EngineClosedError, SmoothingError
from fs_runtime.engine.fair_queue import FairQueue
from fs_runtime.engine.job import Job, PendingRequest
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.gpu import device_works

log = logging.getLogger("fs_runtime.engine")

Batch = Sequence[tuple[Job, int]]
_IDLE_SECONDS = 1.0  # between heartbeats when there is nothing to do
_BLOCKED_SECONDS = 0.1  # between looks for requests that were given up, while all images wait for their readers


class Worker:
    """Runs the passes. All that is shared with other threads is guarded by ``changed``; nothing is computed under it.

    Args:
        smoother: Encoder with purifier and mapper.
        budget: Size of the batches.
        cache: Where finished images go.
        shared_cache: Where they go for other replicas; None if there are none.

    Attributes:
        changed: Guards the queue, ``jobs`` and the cache; notify after adding to them.
        queue: Images in flight.
        jobs: Those that further requests for the same draws can join.
        rate: Of the batches so far.
        beat: Time of the latest sign of life, on the monotonic clock.
        batches: Batches run so far.
        batch_fill: Sum of the parts of them that were used.
        samples: Samples drawn so far.
        out_of_memory: Batches that did not fit into memory so far.
        faults: Faults of the scheduler itself so far; each failed the images concerned.
        device_lost: Whether the device computes nothing any more; the thread has then ended.
    """

    def __init__(
        self, smoother: Smoother, budget: BatchBudget, cache: ImageCache, shared_cache: SharedCache | None = None
    ) -> None:
        self._smoother = smoother
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._budget = budget
        self._cache = cache
        self._shared_cache = shared_cache
        self.changed = threading.Condition()
        self.queue: FairQueue[Job] = FairQueue(budget.full)
        self.jobs: dict[CacheKey, Job] = {}
        self.rate = Rate()
        self.closed = False
        self.beat = time.monotonic()
        self.batches = 0
        self.batch_fill = 0.0
        self.samples = 0
        self.out_of_memory = 0
        self.faults = 0
        self.device_lost = False
        self._thread = threading.Thread(target=self._run, name="smoothing", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Fails what is queued and ends the thread after the batch that is under way."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self._thread.join()

    def add(self, job: Job) -> None:
        """Puts an image into the queue; call with ``changed`` held."""
        self.queue.add(job)
        if job.key is not None:
            self.jobs[job.key] = job
        self.changed.notify_all()

    def call(self, function: Callable[[], None]) -> Future[None]:
        """Has the thread call something between two batches: what is bound to a thread must be made on this one."""
        future: Future[None] = Future()
        with self.changed:
            if self.closed:
                future.set_exception(EngineClosedError("the smoothing engine is shut down"))
            else:
                self._calls.append((function, future))
                self.changed.notify_all()
        return future

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        end = EngineClosedError("the smoothing engine was shut down")
        try:
            while not self.closed:
                concerned: list[Job] = []
                try:
                    self._round(concerned)
                except DeviceLostError:
                    raise
                except Exception as error:
                    self._fault(concerned, error)
        except DeviceLostError as lost:
            end = lost
            log.critical("%s: no image can be smoothed until the process is started again", lost, exc_info=lost)
        finally:  # nobody may wait for a thread that is gone
            with self.changed:
                self.closed = True
            for _, future in self._calls:
                future.set_exception(end)
            self._drop(list(self.queue), end, end.__cause__)

    def _round(self, concerned: list[Job]) -> None:
        """One round: removes requests that ended, answers new ones where it can, and runs one batch.

        Keeps in ``concerned`` the images that it works on, which fail if the round fails.
        """
        with self.changed:
            self.beat = time.monotonic()
            call = self._calls.popleft() if self._calls else None
            if call is None and not self.queue and not self.closed:
                self.changed.wait(_IDLE_SECONDS)
                return
            late, left = self._remove_ended()
            joined = [job for job in self.queue if job.due]
            for job in joined:
                job.unseen = False
        if call is not None:
            _run_call(*call)
        for pending, error in late:
            _fail(pending, error)
        for job in left:
            concerned[:] = [job]
            self._keep(job)
            with self.changed:
                if not job.waiting:  # no request has joined since
                    self._finish(job)
        for job in joined:
            concerned[:] = [job]
            self._answer_ready(job)
        concerned.clear()
        with self.changed:
            batch = self.queue.next_batch(self._budget.current)
            concerned[:] = [job for job, _ in batch]
            if not batch and self.queue and not self._calls and not any(job.due for job in self.queue):
                self.changed.wait(_BLOCKED_SECONDS)
        if batch:
            self._run_batch(batch)

    def _remove_ended(self) -> tuple[list[tuple[PendingRequest, Exception]], list[Job]]:
        """Takes requests that nobody waits for any more out of the queue.

        Returns:
            Those that must be told, and images that stay until their draws are kept, since somebody has seen them.
        """
        now = time.monotonic()
        late: list[tuple[PendingRequest, Exception]] = []
        left: list[Job] = []
        for job in list(self.queue):
            for pending in list(job.waiting):
                if pending.future.cancelled():
                    job.waiting.remove(pending)
                elif pending.deadline <= now:
                    job.waiting.remove(pending)
                    seconds = pending.request.timeout
                    late.append((pending, DeadlineExceededError(f"smoothing was not done within {seconds:g} s")))
            if job.waiting:
                continue
            if job.answered:
                left.append(job)
            else:
                self._finish(job)
        return late, left

    def _run_batch(self, batch: Batch) -> None:
        """Runs one batch. When it fails, each image runs alone, so that only the one at fault fails."""
        tokens = sum(samples * job.cost for job, samples in batch)
        begun = time.monotonic()
        try:
            states = [(job.begin(self._smoother), samples) for job, samples in batch]
            products = self._smoother.step(states)
        except Exception as error:
            self._check_device(error)
            with self.changed:
                self.queue.refund(batch)
            self._failed(batch, tokens, error)
            return
        # From here on the samples are counted, so no failure may run an image again.
        for (job, _), new in zip(batch, products, strict=True):
            try:
                job.add(new, self._smoother.encoder)
            except Exception as error:
                self._check_device(error)
                self._drop([job], _smoothing_error(error), error)
                continue
            self._answer_ready(job)
        with self.changed:
            self._budget.fitted(tokens)
            self.rate.measured(tokens, time.monotonic() - begun)
            self.samples += sum(samples for _, samples in batch)
            self.batches += 1
            self.batch_fill += min(1.0, tokens / self._budget.current)

    def _failed(self, batch: Batch, tokens: int, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError) and (len(batch) > 1 or batch[0][1] > 1):
            torch.cuda.empty_cache()
            with self.changed:
                self._budget.out_of_memory(tokens)
                self.out_of_memory += 1
            log.warning("out of memory with a batch of %d tokens; going on with %d", tokens, self._budget.current)
        elif len(batch) == 1:
            self._drop([batch[0][0]], _smoothing_error(error), error)
        else:
            for job, samples in batch:
                with self.changed:
                    self.queue.charge([(job, samples)])
                self._run_batch([(job, samples)])

    def _answer_ready(self, job: Job) -> None:
        """Shows requests the new draws of their image, and answers those that need no more."""
        capacity = max(1, self._budget.full // job.cost)
        try:
            with self.changed:
                waiting = [pending for pending in job.waiting if pending.ended is None]
            if job.draws.count:
                for pending in waiting:
                    pending.observe(job.draws, capacity)
            ended = [pending for pending in waiting if pending.ended is not None]
            if not ended:
                return
            mean = job.mean(self._smoother)
            results = [(pending, pending.result(job, mean, job.started)) for pending in ended]
            job.answered = True
            if len(ended) == len(waiting):
                self._keep(job)
        except Exception as error:
            self._check_device(error)
            self._drop([job], _smoothing_error(error), error)
            return
        with self.changed:
            for pending in ended:
                job.waiting.remove(pending)
            if not job.waiting:
                self._finish(job)
        for pending, result in results:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_result(result)

    def _keep(self, job: Job) -> None:
        """Puts the draws of an image that nobody waits for any more into the caches."""
        stored = self._store(job) if job.key is not None else None
        if stored is None or job.key is None:
            return
        with self.changed:
            self._cache.put(job.key, stored)
        if self._shared_cache is not None and stored is not job.stored:
            self._shared_cache.offer(job.key, stored)

    def _store(self, job: Job) -> StoredImage | None:
        """What the caches keep of an image."""
        if job.state is None:
            return job.stored
        if job.first.terms.bounds_spread and job.state.sketch is None:
            return None  # it lost its sketch for want of memory; the next request makes the draws again, with one
        image = StoredImage(
            job.origin,
            job.draws.snapshot(),
            job.mean(self._smoother),
            None,
            job.spectral_norm,
            job.token_grids,
            job.cost,
        )
        sketch = job.state.sketch
        size = image.nbytes + 3 * job.state.x.nbytes + (sketch.nbytes if sketch else 0)
        if size > self._cache.max_image_bytes:
            return image  # what is not kept need not be copied
        return dataclasses.replace(image, sums=Sums.of(job.state))

    # --- how jobs end --------------------------------------------------------------------------------------------

    def _fault(self, concerned: list[Job], error: Exception) -> None:
        """A fault of the scheduler itself: fails the images concerned, all if it is not known which, and goes on."""
        self._check_device(error)
        log.error("fault in the scheduler", exc_info=error)
        with self.changed:
            self.faults += 1
            jobs = concerned or list(self.queue)
            if not concerned:
                self.queue, self.jobs = FairQueue(self._budget.full), {}
        self._drop(jobs, _smoothing_error(error), error)

    def _check_device(self, error: Exception) -> None:
        """Ends the thread where whatever fails has left a device on which all that follows fails too.

        Raises:
            DeviceLostError: That is so.
        """
        device = self._smoother.encoder.device
        if not device_works(device):
            self.device_lost = True
            raise DeviceLostError(f"{device} does not compute any more") from error

    def _drop(self, jobs: Iterable[Job], error: Exception, cause: BaseException | None = None) -> None:
        """Fails all requests that wait for some images."""
        error.__cause__ = cause
        for job in jobs:
            with self.changed:
                waiting, job.waiting = job.waiting, []
                self._finish(job)
            for pending in waiting:
                _fail(pending, error)

    def _finish(self, job: Job) -> None:
        """Takes an image out of the queue; with ``changed`` held."""
        if job in self.queue:
            self.queue.remove(job)
        if job.copies is not None:
            job.copies.end()
        if job.key is not None and self.jobs.get(job.key) is job:
            del self.jobs[job.key]


def _smoothing_error(error: Exception) -> SmoothingError:
    return SmoothingError(f"smoothing failed: {type(error).__name__}")


def _run_call(function: Callable[[], None], future: Future[None]) -> None:
    try:
        function()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(None)


def _fail(pending: PendingRequest, error: Exception) -> None:
    if pending.future.set_running_or_notify_cancel():
        pending.future.set_exception(error)
