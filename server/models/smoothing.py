"""From image parts of a request to embeddings and certificates."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field

from fs_runtime.encoders.base import ImageSizeError
from fs_runtime.engine import (
    Copies,
    DeadlineExceededError,
    DeviceLostError,
    EngineClosedError,
    EngineOverloadedError,
    Recall,
    SmoothingEngine,
    SmoothingError,
    SmoothingRequest,
    SmoothingResult,
)
from fs_runtime.options import CertificateQuery
from fs_runtime.receipts import SigningKey
from fs_runtime.receipts.document import ReceiptImage
from fs_runtime.receipts.issue import issue_receipt
from fs_runtime.robustness import Fingerprints, ImageRobustness, certify
from fs_runtime.rounding import at_least
from fs_runtime.smoothing.noise import SEED_BITS
from server.access.tenants import Tenant
from server.audit.log import AuditLog
from server.errors import ApiError, invalid, shutting_down
from server.images.limits import ImageLimits
from server.images.picture import Picture
from server.images.reader import ImageReader
from server.language_models.base import ImagePayload
from server.models.voting import Vote
from server.observability.model_metrics import ModelMetrics
from server.observability.tracing import certificate_attributes, record_pass, stage
from server.rate_limits.limiter import RateLimiter
from server.robustness.answer import Robustness
from server.robustness.answer_plan import AnswerPlan, answer_plan_of
from server.robustness.entry import ImageEntry, Judgement
from server.robustness.headers import robustness_headers
from server.robustness.options import RobustnessOptions
from server.robustness.planning import SmoothingPlan, plan_of
from server.robustness.policy import (
    AnswerRequirement,
    AnyRequirement,
    Decision,
    Evidence,
    Requirement,
    consequence,
    judge,
    strictest,
)
from server.settings.gateway import Settings


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image as the request gives it: a data URL, and where it stands in the request."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is.

    Attributes:
        headers: Of the answer, whatever it will be: the tenant's limits, and once it is known what is certified.
    """

    tenant: Tenant
    request_id: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """One image of a request, and who asks about its copies; None for nobody."""

    number: int
    source: ImageSource
    vote: Vote | None
    copies: Copies | None


@dataclass(frozen=True, slots=True)
class _Smoothed:
    """One image after the pass, with the certificate of its query and the verdicts on its requirements."""

    result: SmoothingResult
    entry: ImageEntry
    decision: Decision
    digest: str


class SmoothingService:
    """Decodes, smooths, certifies and judges the images of a request to one model, within the limits of its tenant."""

    def __init__(
        self,
        settings: Settings,
        engine: SmoothingEngine,
        images: ImageReader,
        metrics: ModelMetrics,
        limiter: RateLimiter,
        audit: AuditLog,
        key: SigningKey | None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._images = images
        self._metrics = metrics
        self._limiter = limiter
        self._audit = audit
        self._key = key

    async def run(
        self, images: list[ImageSource], options: RobustnessOptions, caller: Caller, vote: Vote | None = None
    ) -> tuple[list[ImagePayload], Robustness]:
        """Smooths all images of one request together, and has each noisy copy of them asked about if there is a vote.

        The tenant is charged for images, samples and votes before any work is done, and gets back samples and votes
        that an early end saved. What fails or is cancelled stays charged: else failing on purpose would be a way around
        the limits.

        Returns:
            Payloads of all images, those to be withheld included, and what is known about them.

        Raises:
            ApiError: An image or an option is invalid, a limit is used up, the server is too busy, or a certificate
                was rejected.
        """
        plan = self.plan(options, caller)
        if vote is not None:
            plan = plan.beside_votes(vote.plan.samples)
        self.check_number(len(images), caller)
        if not images:
            nothing = Robustness.of([])
            caller.headers.update(robustness_headers(nothing))
            return [], nothing
        votes = 0 if vote is None else vote.plan.samples  # however many images each of them is about
        charge = await self._limiter.charge(
            caller.tenant, {"images": len(images), "samples": len(images) * plan.samples, "votes": votes}
        )
        caller.headers.update(charge.headers)
        copies = vote.copies_for(len(images)) if vote is not None else [None] * len(images)
        tasks = [
            asyncio.create_task(self._one(_Task(number, image, vote, own), plan, caller))
            for number, (image, own) in enumerate(zip(images, copies, strict=True))
        ]
        voting = asyncio.create_task(self._vote(vote, plan))
        try:
            await asyncio.gather(*tasks, voting)
        finally:
            voting.cancel()
            for task in tasks:  # one bad image, or a client that left, ends the work on the others
                task.cancel()
        done = [task.result() for task in tasks]
        unused = sum(plan.samples - min(plan.samples, image.result.drawn) for image in done)
        taken = 0 if vote is None else vote.copies
        await self._limiter.give_back(charge, {"samples": unused, "votes": votes - taken})
        robustness = await self._decide(done, plan, caller, vote)
        return [image.result.payload for image in done], robustness

    def check_number(self, images: int, caller: Caller) -> None:
        """Raises :class:`ApiError` if a request may not have so many images."""
        settings = caller.tenant.settings_for(self._settings)
        most = min(settings.max_images, self._engine.encoder.max_images or settings.max_images)
        if images > most:
            raise invalid(
                f"the request holds {images} images; at most {most} are allowed", "messages", "too_many_images"
            )

    def plan(self, options: RobustnessOptions, caller: Caller) -> SmoothingPlan:
        """How a request's images are smoothed.

        Raises:
            ApiError: The request asks for what the operator does not allow, or for what does not fit together.
        """
        settings = caller.tenant.settings_for(self._settings)
        return plan_of(options, settings, self._engine.smoother, allow_seed=self._settings.allow_seed)

    def answer_plan(self, options: RobustnessOptions, caller: Caller, *, has_images: bool) -> AnswerPlan | None:
        """How a request's answer is voted on; None where nobody wants that, or there is nothing to certify.

        Raises:
            ApiError: As :meth:`plan`.
        """
        asked = options.answer is not None and options.answer.certify
        if not has_images and not asked:
            return None
        settings = caller.tenant.settings_for(self._settings)
        default = self.plan(RobustnessOptions(), caller)
        return answer_plan_of(options.answer, settings, self.plan(options, caller).terms.sigma, default.terms.sigma)

    @staticmethod
    async def _vote(vote: Vote | None, plan: SmoothingPlan) -> None:
        if vote is not None:
            go_on = plan.samples > vote.plan.samples
            await vote.run(plan.terms.sigma, plan.terms.confidence, go_on=go_on)

    async def _decide(
        self, images: list[_Smoothed], plan: SmoothingPlan, caller: Caller, vote: Vote | None
    ) -> Robustness:
        """Sums up the verdicts, and writes the decision down before it takes effect."""
        requirements = plan.all_requirements
        decision = strictest([image.decision for image in images]) if requirements else None
        robustness = Robustness.of([image.entry for image in images], requirements, decision)
        if vote is not None:
            norms = [image.result.spectral_norm for image in images]
            answer = vote.entry(norms, plan.terms.confidence, sum(image.entry.statements for image in images))
            self._metrics.observe_answer(
                answer.outcome,
                answer.radius.model,
                answer.agreement,
                answer.shortfall,
                copies=answer.samples,
                own_parameters=plan.own_parameters or vote.plan.own_parameters,
            )
            robustness = robustness.with_answer(answer, vote.plan.requirements)
            decision = robustness.decision
        caller.headers.update(robustness_headers(robustness))
        if decision is not None:
            self._metrics.count_decision(decision)
        await self._audit.record(
            robustness,
            [image.digest for image in images],
            request_id=caller.request_id,
            tenant=caller.tenant.name,
            model=self._settings.model_name,
        )
        if decision == "reject":
            raise _rejected(robustness)
        return robustness

    async def _one(self, task: _Task, plan: SmoothingPlan, caller: Caller) -> _Smoothed:
        source = task.source
        limits = ImageLimits.of(caller.tenant.settings, self._settings.min_image_side)
        file = await self._images.file(source.url, source.param, limits)
        picture = Picture(file, lambda file: self._images.decode(file, source.param, limits), self._images.descriptions)
        result = await self._smooth(picture, task, plan, caller.tenant.name)
        record_pass(
            result.queue_seconds,
            result.smoothing_seconds,
            {"fs.model": self._settings.model_name, "fs.samples": result.samples},
        )
        smoother = self._engine.smoother
        fingerprints = Fingerprints.of(smoother, plan.terms.feature_map)
        floor = None
        if smoother.statistics:
            floor = smoother.statistics.floor_at(plan.terms.feature_map, plan.terms.sigma)
        with stage(self._metrics, "certificate") as span:
            certificate = await asyncio.to_thread(certify, result, plan.query, fingerprints, floor, smoother.psm)
            judgements = await asyncio.to_thread(judge_image, result, certificate, plan)
            span.set_attributes(certificate_attributes(certificate))
        self._metrics.observe_image(certificate, own_parameters=plan.own_parameters)
        self._metrics.count_cache(result.cache)
        receipt = None
        if plan.receipt:
            description = await picture.description()
            receipt = await asyncio.to_thread(
                lambda: issue_receipt(
                    self._engine,
                    description,
                    plan.query,
                    result,
                    certificate,
                    request_id=caller.request_id,
                    key=self._key,
                )
            )
        decision = consequence(plan.all_requirements, [judgement.verdict for judgement in judgements])
        entry = ImageEntry.of(
            certificate,
            result.cache,
            receipt,
            judgements,
            withheld=decision == "withhold",
            spectral_left_out=plan.terms.bounds_spread and result.spread is None,
        )
        image_digest = (await picture.description()).digest if self._audit.enabled else ""
        return _Smoothed(result, entry, decision, image_digest)

    async def _smooth(self, picture: Picture, task: _Task, plan: SmoothingPlan, tenant: str) -> SmoothingResult:
        source, received = task.source, time.monotonic()
        try:
            known = await picture.known_description()
            if known is None and task.vote is not None:
                # The draws of a vote are named after all its images, for which none may wait with a place in its hand.
                async with self._engine.place(tenant):
                    known = await picture.description()
            if known is not None:  # decoding it may take longer than all the rest
                recall = await self._recall(known, task, plan, tenant, received)
                if recall.result is not None:
                    return recall.result
            async with self._engine.place(tenant) as place:
                # The pixels are nowhere but in the last call, so that they go as soon as they are prepared.
                pixels = [await picture.pixels()]
                if known is None:
                    recall = await self._recall(await picture.description(), task, plan, tenant, received)
                    if recall.result is not None:
                        return recall.result
                return await self._engine.smooth(recall, pixels.pop(), place, task.copies)
        except ImageSizeError as error:
            raise invalid(str(error), source.param, "image_size_not_supported") from None
        except EngineOverloadedError as error:
            raise ApiError(
                429,
                "the server has more images than it can smooth in time; try again later, or ask for fewer samples",
                code="overloaded",
                headers={"retry-after": str(max(1, math.ceil(error.estimated_wait or 1.0)))},
            ) from None
        except DeadlineExceededError:
            raise ApiError(
                504,
                f"{source.param}: smoothing was not done within {self._settings.smoothing_timeout:g} s; try again "
                "later, or ask for fewer samples",
                code="smoothing_timeout",
                param=source.param,
            ) from None
        except DeviceLostError:
            raise ApiError(
                503,
                "the server's GPU has failed, and the server must be started again; try another one",
                code="device_lost",
                headers={"retry-after": "30"},
            ) from None
        except EngineClosedError:
            raise shutting_down() from None
        except SmoothingError as error:
            raise ApiError(500, f"{source.param}: {error}", code="smoothing_failed", param=source.param) from error

    async def _recall(
        self, image: ReceiptImage, task: _Task, plan: SmoothingPlan, tenant: str, received: float
    ) -> Recall:
        """What the engine has of an image, which it knows by its pixels: another file of them gets no other draws."""
        request = SmoothingRequest(
            plan.terms,
            plan.samples,
            # Of a vote, the noise of all images is independent; else one image has one certificate wherever it stands.
            seed=plan.seed if plan.seed is None or task.vote is None else (plan.seed + task.number) % 2**SEED_BITS,
            until=plan.until,
            tenant=tenant,
            image_id=image.digest,
            # Where each copy is asked about, drawing waits for the answers.
            timeout=self._settings.smoothing_timeout + (self._settings.answer_timeout if task.vote else 0),
            use_cache=plan.cache,
            purpose="" if task.vote is None else await task.vote.purpose_of(task.number, image.digest),
        )
        return await self._engine.recall(request, received)


def judge_image(result: SmoothingResult, certificate: ImageRobustness, plan: SmoothingPlan) -> tuple[Judgement, ...]:
    """The verdict on each requirement, at the radius that it names, in the order of the plan."""
    judgements = []
    for requirement in plan.requirements:
        at = certificate
        if (requirement.radius, requirement.space) != (plan.query.radius, plan.query.space):
            # Bounds of all radii hold at once, so another one costs no further confidence.
            at = certify(result, CertificateQuery(requirement.radius, requirement.space), certificate.fingerprints)
        evidence = Evidence(at.smoothed.best, at.estimate.best, plan.full_budget)
        judgements.append(_judgement(requirement, evidence))
    # Without noise, nothing of the picture is lost.
    kept = (1.0, 1.0) if certificate.fidelity is None else (certificate.fidelity.lower, certificate.fidelity.served)
    of_fidelity = Evidence(*kept, plan.full_budget)
    judgements += [_judgement(requirement, of_fidelity) for requirement in plan.fidelity_requirements]
    return tuple(judgements)


def _judgement(requirement: AnyRequirement, evidence: Evidence) -> Judgement:
    return Judgement(judge(requirement, evidence), evidence.certified, evidence.estimate)


def _rejected(robustness: Robustness) -> ApiError:
    """The 422, with the image and requirement that decided, or the answer."""
    if not any(_rejects(robustness, image) for image in robustness.images):
        return _answer_rejected(robustness)
    failed = [pair for image in robustness.images for pair in _rejects(robustness, image)]
    requirement, judgement = min(failed, key=lambda pair: (pair[1].verdict == "undecided", pair[1].certified or 0.0))
    whose = "this server's" if requirement.source == "server" else "the"
    message = (
        f"the certified similarity {at_least(judgement.certified or 0.0)} is below {whose} min_similarity "
        f"{requirement.similarity:g} at {requirement.space} radius {requirement.radius:g}"
    )
    if judgement.verdict == "undecided":
        message += f", though its estimate {judgement.estimate:.4f} is not: more samples may certify it"
    else:
        message += "; another picture of the same thing, or another sigma, may do better"
    return ApiError(
        422,
        message,
        code="certificate_undecided" if judgement.verdict == "undecided" else "certificate_below_minimum",
        param="robustness.min_similarity",
        extra={"robustness": robustness.model_dump(mode="json")},
    )


def _rejects(robustness: Robustness, image: ImageEntry) -> list[tuple[Requirement, Judgement]]:
    """Requirements that reject a request for one of its images; those of the answer follow those of images."""
    return [
        (requirement, judgement)
        for requirement, judgement in zip(robustness.requirements, image.judgements, strict=False)
        if isinstance(requirement, Requirement)  # low fidelity rejects nothing
        and {"failed": requirement.on_failure, "undecided": requirement.on_undecided}.get(judgement.verdict) == "reject"
    ]


def _answer_rejected(robustness: Robustness) -> ApiError:
    answer = robustness.answer
    assert answer is not None  # noqa: S101 (nothing else rejects)
    required = [item for item in robustness.requirements if isinstance(item, AnswerRequirement)]
    short = [
        (requirement, verdict)
        for requirement, verdict in zip(required, answer.verdicts, strict=True)
        if {"failed": requirement.on_failure, "undecided": requirement.on_undecided}.get(verdict) == "reject"
    ]
    requirement, verdict = max(short, key=lambda pair: (pair[1] == "failed", pair[0].radius))
    whose = "this server requires" if requirement.source == "server" else "the request asks for"
    return ApiError(
        422,
        f"the answer is certified at radius {at_least(answer.radius.model)}, and {whose} {requirement.space} radius "
        f"{requirement.radius:g}: {robustness.detail.partition('; ')[0]}",
        code="answer_undecided" if verdict == "undecided" else "answer_below_minimum",
        param="robustness.answer.radius",
        extra={"robustness": robustness.model_dump(mode="json")},
    )
