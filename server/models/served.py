"""A served model: its engine, its language model, and a count of the requests that use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fs_runtime.receipts import SigningKey
from server.audit.log import AuditLog
from server.images.reader import ImageReader
from server.language_models.base import LanguageModel
from server.language_models.embedded import EmbeddedLanguageModel
from server.language_models.none import NoLanguageModel
from server.language_models.observed import ObservedLanguageModel
from server.language_models.vllm.compatibility import CompatibilityCheck
from server.language_models.vllm.model import VllmLanguageModel
from server.language_models.vllm.upstreams import Upstreams
from server.models.loading import LoadedModel
from server.models.smoothing import SmoothingService
from server.models.vote_rate import VoteRate
from server.observability.metrics import Metrics
from server.observability.model_metrics import ModelMetrics
from server.prompt_safety.control_tokens import ControlTokens
from server.rate_limits.limiter import RateLimiter
from server.settings.gateway import Settings


@dataclass(frozen=True, slots=True)
class SharedParts:
    """Components that all models of a gateway share."""

    images: ImageReader
    limiter: RateLimiter
    audit: AuditLog
    receipt_key: SigningKey | None
    metrics: Metrics


class ServedModel:
    """A loaded model that serves requests.

    Args:
        loaded: Engine and weights.
        shared: Components that all models share.

    Attributes:
        name: Name that clients use.
        settings: The gateway's settings with the model's overrides applied.
        engine: The smoothing engine.
        language_model: Answers chat requests.
        smoothing: Turns image parts into embeddings and certificates.
        control_tokens: Neutralises image tokens in texts, and turn tokens unless the operator allows them.
        metrics: Metrics of this model.
        votes: How fast votes on its answers are.
        created: When it was loaded, in seconds since 1970.
    """

    def __init__(self, loaded: LoadedModel, shared: SharedParts) -> None:
        self.settings = loaded.settings
        self.name = loaded.settings.model_name
        self.engine = loaded.engine
        turns = loaded.turn_tokens if self.settings.neutralise_turn_tokens else ()
        self.control_tokens = ControlTokens((*self.engine.encoder.control_tokens, *turns))
        self.metrics = shared.metrics.models.of_model(self.name)
        self.votes = VoteRate()
        self.language_model = ObservedLanguageModel(
            _language_model(loaded, self.metrics), self.metrics, self.name, self.settings.language_model
        )
        self.smoothing = SmoothingService(
            self.settings, self.engine, shared.images, self.metrics, shared.limiter, shared.audit, shared.receipt_key
        )
        self.created = int(time.time())
        self._loaded = loaded
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that runs the smoothing passes has sent a heartbeat lately."""
        return self.engine.alive and self.engine.seconds_since_heartbeat <= self.settings.stall_timeout

    def reuse_with(self, settings: Settings) -> LoadedModel | None:
        """Returns the loaded weights with other settings; None if these need other weights.

        This model still closes the engine, unless another one takes it over.
        """
        return replace(self._loaded, settings=settings, owns_engine=False) if self._loaded.matches(settings) else None

    def take_over_engine(self, former: ServedModel) -> None:
        """Makes this model close the engine instead of the former model, if they share it."""
        if former.engine is self.engine:
            self._loaded = replace(self._loaded, owns_engine=former._loaded.owns_engine)
            former._loaded = replace(former._loaded, owns_engine=False)

    async def start(self) -> None:
        """Starts background tasks of the language model, such as health checks."""
        await self.language_model.start()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts a request that uses the model until the block ends."""
        self._requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def wait_until_unused(self) -> None:
        """Waits until no request uses the model. No new ones may start meanwhile."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stops background tasks and the engine. Memory is freed when the last reference to the model is gone."""
        await self.language_model.close()
        await asyncio.to_thread(self._loaded.close)


def _language_model(loaded: LoadedModel, metrics: ModelMetrics) -> LanguageModel:
    settings, name = loaded.settings, loaded.settings.model_name
    if loaded.embedded is not None:
        return EmbeddedLanguageModel(settings, loaded.embedded, name)
    if settings.language_model == "vllm":
        compatibility = CompatibilityCheck.of(loaded.engine.encoder, loaded.family, settings.vllm_model)
        upstreams = Upstreams(settings, metrics.upstreams, compatibility)
        return VllmLanguageModel(upstreams, name, settings.vllm_answer_concurrency)
    return NoLanguageModel()
