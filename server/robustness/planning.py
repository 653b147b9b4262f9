"""A request's options with the tenant's settings filled in, and held to their ceilings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fs_runtime.engine import CertificateTerms
from fs_runtime.options import CertificateQuery, radius_for, sigma_in_use
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.smoother import Smoother
from server.errors import ApiError, invalid
from server.robustness.options import RobustnessOptions
from server.robustness.policy import (
    AnyRequirement,
    AskedPolicy,
    FidelityRequirement,
    Requirement,
    ServerPolicy,
    fidelity_requirements_of,
    requirements_of,
)
from server.settings.request import RequestSettings


@dataclass(frozen=True, slots=True)
class SmoothingPlan:
    """How the images of one request are smoothed, certified and judged.

    Attributes:
        query: What the certificates are asked about; its ``min_similarity`` is the request's own. A request without one
            is told about the largest that is required at its radius.
        full_budget: Whether no image gets fewer samples than the server gives by default, where its minimum binds.
    """

    terms: CertificateTerms
    samples: int
    seed: int | None
    query: CertificateQuery
    until: CertificateQuery | None
    requirements: list[Requirement]
    fidelity_requirements: list[FidelityRequirement]
    full_budget: bool
    receipt: bool
    own_parameters: bool
    cache: bool

    def beside_votes(self, copies: int) -> SmoothingPlan:
        """With the copies that are voted on as its samples, and more where a requirement of images needs them."""
        samples = max(copies, self.samples) if self.all_requirements else copies
        return replace(self, samples=samples, until=None)

    @property
    def all_requirements(self) -> list[AnyRequirement]:
        """Those of similarity, then those of fidelity."""
        return [*self.requirements, *self.fidelity_requirements]


def plan_of(
    options: RobustnessOptions, settings: RequestSettings, smoother: Smoother, *, allow_seed: bool
) -> SmoothingPlan:
    """Fills in what the request leaves open.

    Raises:
        ApiError: The request asks for what the operator does not allow, or for what does not fit together.
    """
    # A model is refused where this lowers it; a tenant's ceiling may lie below the model's default.
    default_sigma = min(smoother.sigma_for(settings.sigma), settings.max_sigma)
    sigma = default_sigma if options.sigma is None else options.sigma
    samples = settings.samples if options.samples is None else options.samples
    _check_ceilings(sigma, samples, options, settings, allow_seed)
    default_sigma, sigma = sigma_in_use(default_sigma), sigma_in_use(sigma)
    radius = radius_for(sigma, settings.radius if options.radius is None else options.radius)
    server = _server_policy(settings, default_sigma)
    asked = AskedPolicy(
        options.min_similarity,
        radius,
        options.space,
        options.on_failure,
        options.on_undecided,
        options.min_fidelity,
        options.on_low_fidelity,
    )
    required = requirements_of(server, asked)
    of_fidelity = fidelity_requirements_of(server, asked)
    _check_consistency(options, required, of_fidelity)
    features = {
        name: _pinned(name, options, settings, server.is_binding) for name in ("stage", "centred", "granularity")
    }
    if features["centred"] and smoother.statistics is None:
        raise invalid("this model has no feature statistics to centre with; leave centred out", "robustness.centred")
    confidence = settings.confidence if options.confidence is None else options.confidence
    binding = server.is_binding or settings.answers_bind
    if binding:
        confidence = max(confidence, settings.confidence)  # whatever holds with more confidence holds with less
    adaptive = settings.adaptive if options.adaptive is None else options.adaptive
    return SmoothingPlan(
        terms=CertificateTerms(
            sigma,
            confidence,
            granularity=features["granularity"],
            feature_map=FeatureMap(features["stage"], features["centred"]),
            spectral=settings.spectral if options.spectral is None else options.spectral,
            token_map=options.token_map,
        ),
        samples=samples if sigma > 0 else 1,  # without noise one sample says all
        seed=options.seed,
        query=CertificateQuery(radius, options.space, _asked_similarity(options, radius, required), options.curve),
        until=_until(required) if adaptive and not of_fidelity else None,
        requirements=required,
        fidelity_requirements=of_fidelity,
        full_budget=samples >= settings.samples or not server.is_binding,
        receipt=settings.receipts if options.receipt is None else options.receipt,
        own_parameters=options.own_parameters,
        cache=options.cache or binding,  # a request sent again keeps its draws
    )


def _asked_similarity(options: RobustnessOptions, radius: float, required: list[Requirement]) -> float | None:
    """Whoever asks about a similarity is told about it, also where it is not among the requirements, since another one
    implies it."""
    if options.min_similarity is not None:
        return options.min_similarity
    here = [item.similarity for item in required if (item.radius, item.space) == (radius, options.space)]
    return max(here, default=None)


def _server_policy(settings: RequestSettings, default_sigma: float) -> ServerPolicy:
    """At a radius that the request's sigma has no say in: a smaller sigma would make a smaller radius."""
    radius = settings.min_similarity_radius
    if radius is None:
        radius = radius_for(default_sigma, settings.radius)
    return ServerPolicy(
        similarity=settings.min_similarity,
        radius=radius,
        space=settings.min_similarity_space,
        on_failure=settings.on_failure,
        on_undecided=settings.on_undecided or settings.on_failure,
        binds=settings.policy_binds,
        fidelity=settings.min_fidelity,
        on_low_fidelity=settings.on_low_fidelity,
    )


def _until(required: list[Requirement]) -> CertificateQuery | None:
    """What ends the sampling early. With two requirements, neither of which implies the other, all samples are drawn:
    an early end at one would leave the other undecided. So are they beside a requirement of fidelity."""
    if len(required) != 1:
        return None
    return CertificateQuery(required[0].radius, required[0].space, required[0].similarity)


def _pinned(name: str, options: RobustnessOptions, settings: RequestSettings, binding: bool) -> Any:
    """The option or the operator's default; under a binding minimum the latter, for it speaks of these features."""
    asked, default = getattr(options, name), getattr(settings, name)
    if binding and asked is not None and asked != default:
        raise invalid(
            f"this server requires a similarity or fidelity of features with {name}: {default!r}, so {name} cannot be "
            f"{asked!r}; leave it out",
            f"robustness.{name}",
            "policy_conflict",
        )
    return default if asked is None else asked


def _check_ceilings(
    sigma: float, samples: int, options: RobustnessOptions, settings: RequestSettings, allow_seed: bool
) -> None:
    if sigma > settings.max_sigma:
        raise invalid(f"sigma {sigma} is above this server's limit of {settings.max_sigma}", "robustness.sigma")
    if samples > settings.max_samples:
        raise invalid(f"samples {samples} is above this server's limit of {settings.max_samples}", "robustness.samples")
    if options.seed is not None and not allow_seed:
        raise ApiError(
            403,
            "this server does not let requests fix the seed, since known noise can be attacked; leave it out",
            code="seed_not_allowed",
            param="robustness.seed",
        )


def _check_consistency(
    options: RobustnessOptions, required: list[Requirement], of_fidelity: list[FidelityRequirement]
) -> None:
    if options.adaptive and not any(item.similarity for item in required):
        raise invalid(
            "adaptive sampling ends when min_similarity is certified; give one above 0", "robustness.min_similarity"
        )
    for name in ("on_failure", "on_undecided"):
        if getattr(options, name) not in (None, "flag") and not required:
            raise invalid(f"{name} needs a min_similarity to fail by; give one", "robustness.min_similarity")
    if options.on_low_fidelity not in (None, "flag") and not of_fidelity:
        raise invalid("on_low_fidelity needs a min_fidelity to fall below; give one", "robustness.min_fidelity")
