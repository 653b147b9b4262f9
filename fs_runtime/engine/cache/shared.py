"""Finished images in Redis, behind the memory of each replica: what one has drawn, the others answer from.

Redis decides which draws an image has: the first replica that meets it puts their seed there, and all others draw the
same noise from then on, also while nothing is finished. So there is one set of draws and one confidence sequence,
however many replicas add to it and however they overtake each other (docs/guarantee.md section 7). What is stored is
only work that need not be done twice.

Nothing here may fail a request or keep it waiting beyond a fixed time. A Redis that is away, slow or tells nonsense
is left alone for a while; each replica then has draws of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.redis_store import RedisStore, RefusedError
from fs_runtime.engine.cache.seal import ForgedError, Seal
from fs_runtime.engine.cache.stored import KnownImage, StoredImage
from fs_runtime.engine.cache.stored_format import (
    FORMAT_VERSION,
    UnreadableError,
    image_from_bytes,
    image_to_bytes,
    origin_from_bytes,
    origin_to_bytes,
)
from fs_runtime.engine.request import Origin

log = logging.getLogger("fs_runtime.engine")

RETRY_SECONDS = 5.0  # how long a Redis that has gone is left alone
_WRITE_SECONDS = 2.0  # nobody waits for a write
_WARN_SECONDS = 60.0  # between two lines about unusable images; the metrics count each
_READERS = 8
_WAITING_IMAGES = 4  # of the largest size, that may wait to be written

LOOKUP_OUTCOMES = ("found", "claimed", "expired", "unusable", "failed", "busy", "skipped")
WRITE_OUTCOMES = ("stored", "kept", "other", "expired", "too_large", "refused", "failed", "dropped", "skipped")


@dataclass(frozen=True, slots=True)
class SharedCacheOptions:
    """How replicas share images.

    Attributes:
        url: ``redis://…`` or ``rediss://…``.
        secret: That all replicas have and nobody else; at least 32 characters.
        seconds: That a request waits for Redis, at most.
        lifetime: Seconds from the beginning of draws to their end in Redis; never prolonged.
        max_image_bytes: Most that one image may take.
    """

    url: str
    secret: str = dataclasses.field(repr=False)
    seconds: float = 0.25
    lifetime: float = 86400.0
    max_image_bytes: int = 2**25


class SharedCache:
    """Looks up and writes. Every method may be called on any thread.

    Args:
        options: As above.

    Attributes:
        lookups: Lookups so far by outcome: ``found`` an image or a claim, ``claimed`` for draws of this replica's,
            ``expired`` or ``unusable`` what was there, ``failed`` Redis, ``busy`` all connections, ``skipped`` since
            Redis failed lately.
        writes: Images to be written so far by outcome: ``stored``, ``kept`` since there were as many samples already,
            ``other`` draws there, ``expired`` or ``too_large`` image, ``refused`` by Redis, which is full for example,
            ``failed`` Redis, ``dropped`` since too many were waiting, ``skipped`` since Redis failed lately.

    Raises:
        ImportError, ValueError: As :class:`RedisStore` and :class:`Seal`.
    """

    def __init__(self, options: SharedCacheOptions) -> None:
        self._options = options
        self._seal = Seal(options.secret)
        self._reader = _Link(RedisStore(options.url, options.seconds), "reads")
        self._writer = _Link(RedisStore(options.url, _WRITE_SECONDS), "writes")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="redis-read")
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="redis-write")
        self._lock = threading.Lock()
        self._reading: dict[str, Future[tuple[str, KnownImage | None]]] = {}
        self._waiting_bytes = 0
        self._last_write: Future[None] | None = None
        self._closed = False
        self._warn_at = 0.0
        self.lookups: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()

    @property
    def up(self) -> bool:
        """Whether Redis answered when it was last asked for an image."""
        return self._reader.up

    def takes(self, origin: Origin) -> bool:
        """Whether draws are young enough to be shared."""
        return time.time() - origin.begun <= self._options.lifetime

    def find(self, key: CacheKey, proposal: Origin) -> KnownImage | None:
        """What the replicas have of an image; where they have nothing, the proposal is what they will draw.

        Args:
            key: Of the image.
            proposal: Draws that this replica would make, or has, and that :meth:`takes` takes. Where None is returned
                they may have become those of the other replicas all the same.

        Returns:
            None within ``seconds`` where Redis does not answer, or with something that cannot be used.
        """
        if not self._reader.may_be_asked:
            self._count(self.lookups, "skipped")
            return None
        name = self._name(key)
        with self._lock:
            if self._closed:
                return None
            reading = self._reading.get(name)  # equal requests at once ask once
            first = reading is None
            if reading is None:
                reading = self._reading[name] = self._read_threads.submit(self._read, name, proposal)
        if first:  # without the lock: of one that is done already it is called here and now
            reading.add_done_callback(lambda done: self._done_reading(name, done))
        known: KnownImage | None = None
        try:
            outcome, known = reading.result(self._options.seconds)
        except CancelledError:
            outcome = "busy"
        except TimeoutError as error:
            outcome = "busy"
            if not reading.cancel():  # it has begun: Redis is slow, or the connection is
                outcome = "failed"
                self._reader.mark_down(error)
                self._reader.store.disconnect()
        except Exception as error:  # whatever the client library makes of what it read
            outcome = "failed"
            self._reader.mark_down(error)
        else:
            self._reader.mark_up()
        self._count(self.lookups, outcome)
        return known

    def offer(self, key: CacheKey, image: StoredImage) -> None:
        """Has an image written when there is time; returns at once."""
        with self._lock:
            room = _WAITING_IMAGES * self._options.max_image_bytes
            if self._closed or self._waiting_bytes > room:
                self.writes["dropped"] += 1
                return
            self._waiting_bytes += image.nbytes
            self._last_write = self._write_thread.submit(self._write_and_count, key, image)

    def settle(self, seconds: float | None = None) -> None:
        """Waits until all that was offered so far is written, at most so long."""
        if self._last_write is not None:
            wait([self._last_write], seconds)

    def close(self) -> None:
        """Writes what waits, as far as that is done within two seconds, and closes the connections."""
        with self._lock:
            self._closed = True
        self.settle(_WRITE_SECONDS)
        for threads in self._read_threads, self._write_thread:
            threads.shutdown(wait=False, cancel_futures=True)
        for link in self._reader, self._writer:
            link.store.disconnect()

    # --- on the threads of the cache -----------------------------------------------------------------------------

    def _read(self, name: str, proposal: Origin) -> tuple[str, KnownImage | None]:
        store, lifetime = self._reader.store, self._options.lifetime
        claim = self._seal.close(name, _CLAIM, origin_to_bytes(proposal))
        try:
            entry = store.find_or_claim(name, self._draws_name(name, proposal), claim, round(1000 * lifetime))
            if entry is None:
                return "claimed", KnownImage(proposal, None)
            if entry.image is not None:
                image = image_from_bytes(self._seal.open(name, _IMAGE, entry.image))
                known = KnownImage(image.origin, image)
            else:
                known = KnownImage(origin_from_bytes(self._seal.open(name, _CLAIM, entry.claim or b"")), None)
        except (ForgedError, UnreadableError, RefusedError) as error:
            self._warn(error)
            store.drop(name)
            return "unusable", None
        if not self.takes(known.origin):  # put back by somebody, for Redis forgets them
            store.drop(name)
            return "expired", None
        return "found", known

    def _write_and_count(self, key: CacheKey, image: StoredImage) -> None:
        outcome = "skipped"
        try:
            if self._writer.may_be_asked:
                outcome = self._write(self._name(key), image)
                self._writer.mark_up()
        except RefusedError:
            outcome = "refused"
        except Exception as error:
            outcome = "failed"
            self._writer.mark_down(error)
        finally:
            with self._lock:
                self._waiting_bytes -= image.nbytes
                self.writes[outcome] += 1

    def _write(self, name: str, image: StoredImage) -> str:
        store, draws, count = self._writer.store, self._draws_name(name, image.origin), image.draws.count
        left = self._options.lifetime - max(0.0, time.time() - image.origin.begun)
        if left <= 0:
            return "expired"
        if not store.wants(name, draws, count):
            return "kept"
        if image.nbytes > self._options.max_image_bytes:
            image = dataclasses.replace(image, sums=None)  # others can answer from it, though not go on with it
        if image.nbytes > self._options.max_image_bytes:
            return "too_large"
        sealed = self._seal.close(name, _IMAGE, image_to_bytes(image))
        return store.store(name, draws, count, sealed, max(1, round(1000 * left)))

    # --- helpers -------------------------------------------------------------------------------------------------

    def _name(self, key: CacheKey) -> str:
        return self._seal.name(str(FORMAT_VERSION), *key.parts())

    def _draws_name(self, name: str, origin: Origin) -> str:
        return self._seal.name(name, str(origin.seed), str(origin.planned))

    def _warn(self, error: Exception) -> None:
        if time.monotonic() >= self._warn_at:
            self._warn_at = time.monotonic() + _WARN_SECONDS
            log.warning("what Redis holds of an image cannot be used, and is taken away: %s", error)

    def _done_reading(self, name: str, done: Future[tuple[str, KnownImage | None]]) -> None:
        with self._lock:
            if self._reading.get(name) is done:
                del self._reading[name]

    def _count(self, counter: Counter[str], outcome: str) -> None:
        with self._lock:
            counter[outcome] += 1


_CLAIM, _IMAGE = "claim", "image"


class _Link:
    """A store, and whether it is worth asking: after a failure not for a while. It is logged once."""

    def __init__(self, store: RedisStore, what: str) -> None:
        self.store = store
        self.up = True
        self._what = what
        self._ask_at = 0.0

    @property
    def may_be_asked(self) -> bool:
        return time.monotonic() >= self._ask_at

    def mark_down(self, error: BaseException) -> None:
        self._ask_at = time.monotonic() + RETRY_SECONDS
        if self.up:
            self.up = False
            log.error(
                "the Redis that replicas share images in does not answer (%s, %s); this one goes on by itself",
                self._what,
                type(error).__name__,
            )

    def mark_up(self) -> None:
        if not self.up:
            self.up = True
            log.warning("the Redis that replicas share images in is back (%s)", self._what)
