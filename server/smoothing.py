"""From image parts of a request to embeddings and certificates."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from fs_runtime.engine import (
    EngineClosedError,
    EngineOverloadedError,
    SmoothingEngine,
    SmoothingError,
    SmoothingRequest,
    SmoothingResult,
)
from fs_runtime.query import CertificateQuery
from fs_runtime.receipts import SigningKey
from fs_runtime.receipts.issue import issue_receipt
from fs_runtime.robustness import Fingerprints, certify
from fs_runtime.smoothing import FeatureMap
from server.api.schemas import ImageEntry, Robustness, RobustnessOptions
from server.errors import ApiError, invalid
from server.images import ImageLimits, bytes_of_data_url, decode_image
from server.language_models.base import ImagePayload
from server.metrics import Metrics
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image as the request gives it: a data URL, and where it stands in the request."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """The request's options with the operator's defaults filled in."""

    sigma: float
    samples: int
    confidence: float
    query: CertificateQuery
    feature_map: FeatureMap
    spectral: bool
    reject: bool
    adaptive: bool
    receipt: bool
    options: RobustnessOptions


class SmoothingService:
    """Decodes, smooths and certifies the images of a request, within the operator's limits."""

    def __init__(self, settings: Settings, engine: SmoothingEngine, metrics: Metrics, key: SigningKey | None) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._key = key
        self._limits = ImageLimits.from_settings(settings)

    async def run(
        self, images: list[ImageSource], options: RobustnessOptions, request_id: str
    ) -> tuple[list[ImagePayload], Robustness]:
        """Smooths all images of one request together.

        Raises:
            ApiError: An image or an option is invalid, the server is too busy, or a certificate was rejected.
        """
        plan = self._plan(options)
        most = min(self._settings.max_images, self._engine.encoder.max_images or self._settings.max_images)
        if len(images) > most:
            raise invalid(
                f"the request holds {len(images)} images; at most {most} are allowed",
                "messages",
                "too_many_images",
            )
        tasks = [asyncio.create_task(self._one(image, plan, request_id)) for image in images]
        try:
            done = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one bad image, or a client that left, ends the work on the others
                task.cancel()
        certificates = [certificate for _, certificate in done]
        robustness = Robustness.of(certificates)
        self._metrics.queued_samples.set(self._engine.queued_samples)
        self._metrics.batch_fill.set(self._engine.last_batch_fill)
        if robustness.satisfied is False and plan.reject:
            self._metrics.rejections.inc()
            raise self._rejected(robustness, plan)
        return [result.payload for result, _ in done], robustness

    async def _one(self, source: ImageSource, plan: _Plan, request_id: str) -> tuple[SmoothingResult, ImageEntry]:
        start = time.perf_counter()
        pixels = await asyncio.to_thread(
            lambda: decode_image(bytes_of_data_url(source.url, self._limits, source.param), self._limits, source.param)
        )
        self._metrics.stage_seconds.labels(stage="decode").observe(time.perf_counter() - start)
        request = SmoothingRequest(
            image=pixels,
            sigma=plan.sigma,
            samples=plan.samples if plan.sigma > 0 else 1,  # without noise one sample says all
            confidence=plan.confidence,
            granularity=plan.options.granularity,
            seed=plan.options.seed,
            feature_map=plan.feature_map,
            spectral=plan.spectral,
            token_map=plan.options.token_map,
            until=plan.query if plan.adaptive else None,
        )
        try:
            result = await self._engine.smooth(request)
        except EngineOverloadedError:
            raise ApiError(
                429,
                "the server has more images than it can smooth in time; try again later, or ask for fewer samples",
                code="overloaded",
                headers={"retry-after": "1"},
            ) from None
        except EngineClosedError:
            raise ApiError(
                503, "the server is shutting down; try another one", code="shutting_down", headers={"retry-after": "5"}
            ) from None
        except SmoothingError as error:
            raise ApiError(500, f"{source.param}: {error}", code="smoothing_failed", param=source.param) from error
        start = time.perf_counter()
        smoother = self._engine.smoother
        fingerprints = Fingerprints.of(smoother, plan.feature_map)
        floor = smoother.statistics.floor_at(plan.feature_map, plan.sigma) if smoother.statistics else None
        certificate = await asyncio.to_thread(certify, result, plan.query, fingerprints, floor)
        self._metrics.stage_seconds.labels(stage="certificate").observe(time.perf_counter() - start)
        self._metrics.observe_image(certificate)
        receipt = None
        if plan.receipt:
            receipt = await asyncio.to_thread(
                issue_receipt,
                self._engine,
                pixels,
                plan.query,
                result,
                certificate,
                request_id=request_id,
                key=self._key,
            )
        return result, ImageEntry.of(certificate, receipt)

    def _plan(self, options: RobustnessOptions) -> _Plan:
        settings = self._settings
        default = self._engine.smoother.sigma if settings.sigma is None else settings.sigma
        sigma = default if options.sigma is None else options.sigma
        samples = settings.samples if options.samples is None else options.samples
        if sigma > settings.max_sigma:
            raise invalid(f"sigma {sigma} is above this server's limit of {settings.max_sigma}", "robustness.sigma")
        if samples > settings.max_samples:
            raise invalid(
                f"samples {samples} is above this server's limit of {settings.max_samples}", "robustness.samples"
            )
        if options.seed is not None and not settings.allow_seed:
            raise ApiError(
                403,
                "this server does not let requests fix the seed, since known noise can be attacked; leave it out",
                code="seed_not_allowed",
                param="robustness.seed",
            )
        if options.centred and self._engine.smoother.statistics is None:
            raise invalid(
                "this model has no feature statistics to centre with; leave centred out", "robustness.centred"
            )
        min_similarity = settings.min_similarity if options.min_similarity is None else options.min_similarity
        adaptive = settings.adaptive if options.adaptive is None else options.adaptive
        if options.adaptive and not min_similarity:
            raise invalid(
                "adaptive sampling ends when min_similarity is certified; give one above 0", "robustness.min_similarity"
            )
        if options.on_failure == "reject" and min_similarity is None:
            raise invalid("on_failure: reject needs a min_similarity to fail by; give one", "robustness.min_similarity")
        radius = settings.radius if options.radius is None else options.radius
        on_failure = options.on_failure or settings.on_failure
        return _Plan(
            sigma=sigma,
            samples=samples,
            confidence=settings.confidence if options.confidence is None else options.confidence,
            query=CertificateQuery(
                radius=sigma / 2 if radius is None else radius,
                space=options.space,
                min_similarity=min_similarity,
                curve=options.curve,
            ),
            feature_map=FeatureMap(options.stage, options.centred),
            spectral=settings.spectral if options.spectral is None else options.spectral,
            reject=on_failure == "reject",
            adaptive=adaptive,
            receipt=settings.receipts if options.receipt is None else options.receipt,
            options=options,
        )

    @staticmethod
    def _rejected(robustness: Robustness, plan: _Plan) -> ApiError:
        reached = min(image.smoothed.best or 0.0 for image in robustness.images)
        return ApiError(
            422,
            f"the certified similarity {reached:.4f} is below min_similarity {plan.query.min_similarity}; "
            "ask for more samples, a smaller radius, or on_failure: flag",
            code="certificate_below_minimum",
            param="robustness.min_similarity",
            extra={"robustness": robustness.model_dump(mode="json")},
        )
