"""Whether settings suit a loaded model: what its default noise level does to ceilings and minimums."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from fs_runtime.encoders import CheckpointError
from fs_runtime.options import radius_for
from fs_runtime.psm.pretrained import is_pretrained
from fs_runtime.smoothing.smoother import Smoother
from server.access.tenants import Tenant
from server.settings.gateway import Settings

log = structlog.get_logger("server.models")

# Default noise level with the purifier for photographs before fidelity chose it (docs/upgrading.md).
_FORMER_SIGMA = 0.25
# Settings of a tenant by which a minimum may come to hold, or to refer to the default noise level.
_OF_MINIMUMS = {"sigma", "radius", "min_similarity", "min_similarity_radius", "min_fidelity", "on_low_fidelity"}


def check_default_sigma(settings: Settings, smoother: Smoother) -> None:
    """Refuses a model at whose default noise level no request is allowed.

    Raises:
        CheckpointError: Every request that names no sigma would be refused.
    """
    if settings.sigma is None and smoother.sigma > settings.max_sigma:
        raise CheckpointError(
            f"the default sigma of {settings.model_name} is {smoother.sigma:g}, above max_sigma "
            f"{settings.max_sigma:g}, so that every request without a sigma of its own would be refused; set sigma to "
            f"at most {settings.max_sigma:g}, or raise max_sigma"
        )


def warn_about_policy(settings: Settings, smoother: Smoother, tenant: str | None = None) -> None:
    """Warns of minimums that move with the model's default noise level, and of consequences without a minimum.

    Args:
        settings: Of the model, with a tenant's applied if they are a tenant's.
        smoother: Of the model.
        tenant: Whose settings they are; None for the operator's.
    """
    whose = {"model": settings.model_name} | ({} if tenant is None else {"tenant": tenant})
    _warn_about_moving_minimums(settings, smoother, whose)
    if settings.on_low_fidelity != "flag" and settings.min_fidelity is None:
        log.warning(
            "on_low_fidelity has no effect on requests that ask for no min_fidelity; set min_fidelity to require one "
            "of every image",
            on_low_fidelity=settings.on_low_fidelity,
            **whose,
        )


def warn_about_tenants(tenants: Iterable[Tenant], settings: Settings, smoother: Smoother) -> None:
    """:func:`warn_about_policy` for the tenants that may use a model and have settings about minimums of their own."""
    for tenant in tenants:
        if tenant.may_use(settings.model_name) and tenant.overrides.keys() & _OF_MINIMUMS:
            warn_about_policy(tenant.settings_for(settings), smoother, tenant.name)


def _warn_about_moving_minimums(settings: Settings, smoother: Smoother, whose: dict[str, str]) -> None:
    former = _former_sigma(smoother)
    if settings.sigma is not None or not (_follows_statistics(smoother) or smoother.sigma != former):
        return
    facts = {**whose, "sigma": smoother.sigma, "former_sigma": former}
    fixed = settings.min_similarity_radius is not None or settings.radius is not None
    if settings.min_similarity is not None and not fixed:
        log.warning(
            "min_similarity is judged at half of the default sigma, which follows from the feature statistics or the "
            "purifier; set min_similarity_radius to fix it",
            radius=radius_for(smoother.sigma),
            former_radius=radius_for(former),
            **facts,
        )
    if settings.min_fidelity is not None:
        log.warning(
            "min_fidelity is judged at the default sigma, which follows from the feature statistics or the purifier; "
            "set sigma to fix it",
            **facts,
        )


def _follows_statistics(smoother: Smoother) -> bool:
    return smoother.statistics is not None and bool(smoother.statistics.levels)


def _former_sigma(smoother: Smoother) -> float:
    """The default noise level before fidelity chose it."""
    psm = smoother.psm
    with_shipped = psm is not None and psm.encoder == "any" and not is_pretrained(psm.name)
    return _FORMER_SIGMA if with_shipped else smoother.psm_sigma
