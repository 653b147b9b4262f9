"""Loads a model: its smoothing engine, and its language model if that is embedded."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from fs_runtime.embedded import EmbeddedModel, load_embedded_model
from fs_runtime.encoders import CheckpointError, load_family
from fs_runtime.encoders.checkpoint import Checkpoint
from fs_runtime.encoders.families import Family
from fs_runtime.encoders.turn_tokens import turn_tokens
from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.cache.shared import SharedCache, SharedCacheOptions
from fs_runtime.loading.engine import EngineOptions, load_engine, resolve_device, resolve_dtype
from fs_runtime.loading.memory import check_memory
from fs_runtime.smoothing.smoother import Smoother
from server.models.policy_checks import check_default_sigma, warn_about_policy
from server.settings.certificate import CertificateSettings
from server.settings.gateway import Settings
from server.settings.model import ModelSettings

log = structlog.get_logger("server.models")

# Settings that take effect without loading the model again.
_APPLY_WITHOUT_RELOAD = (
    CertificateSettings.model_fields.keys()
    | {name for name in ModelSettings.model_fields if name.startswith("vllm_")}
    | {"smoothing_timeout", "answer_timeout", "max_waiting", "max_new_tokens", "neutralise_turn_tokens"}
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        settings: The gateway's settings with the model's overrides applied.
        family: Model family of the checkpoint.
        turn_tokens: Spellings of the tokens by which its chat template separates turns.
        engine: The running engine, warmed up.
        embedded: The language model in this process, if there is one.
        owns_engine: Whether :meth:`close` closes the engine too.
    """

    settings: Settings
    family: Family
    turn_tokens: tuple[str, ...]
    engine: SmoothingEngine
    embedded: EmbeddedModel | None
    owns_engine: bool = True

    def close(self) -> None:
        """Stops the engine's thread, if this model owns it; may wait for a batch."""
        if self.owns_engine:
            self.engine.close()

    def matches(self, settings: Settings) -> bool:
        """Whether these settings need the same engine and language model as the loaded ones."""
        fields = Settings.model_fields.keys() - _APPLY_WITHOUT_RELOAD
        return all(getattr(self.settings, name) == getattr(settings, name) for name in fields)


def load_model(settings: Settings, engine: SmoothingEngine | None = None) -> LoadedModel:
    """Loads all of a model, and warms its encoder up.

    Args:
        settings: Settings of the model.
        engine: A running engine of this model, which the caller closes; None loads one.

    Raises:
        CheckpointError: The checkpoint cannot be used, it does not support the language model of the settings, its
            default noise level is above the largest that is allowed, or there is too little memory.
    """
    family = check_language_model(settings)
    if engine is None and settings.check_memory:
        check_memory(
            settings.checkpoint,
            language_model=settings.language_model == "embedded",
            batch_size=settings.batch_size,
            device=settings.device,
            dtype=settings.dtype,
            psm=settings.psm,
            revision=settings.revision,
        )
    running = engine or _start_engine(settings)
    try:
        embedded = _load_language_model(settings) if settings.language_model == "embedded" else None
        log_purifier(settings, running.smoother)
        check_default_sigma(settings, running.smoother)
        warn_about_policy(settings, running.smoother)
        turns = tuple(turn_tokens(Checkpoint(settings.checkpoint, settings.revision)))
        return LoadedModel(settings, family, turns, running, embedded, owns_engine=engine is None)
    except BaseException:
        if engine is None:
            running.close()
        raise


def check_language_model(settings: Settings) -> Family:
    """Returns the checkpoint's family, after checking that it supports the language model of the settings.

    Raises:
        CheckpointError: It does not, or the checkpoint cannot be used at all.
    """
    family = load_family(settings.checkpoint, revision=settings.revision)
    kinds = [*family.language_models, "none"]
    if settings.language_model not in kinds:
        why = f" ({family.note})" if family.note else ""
        raise CheckpointError(
            f"{settings.model} is of family {family.name}, which is not served with --language-model "
            f"{settings.language_model}{why}; use {' or '.join(kinds)}"
        )
    return family


def _start_engine(settings: Settings) -> SmoothingEngine:
    engine = load_engine(settings.checkpoint, EngineOptions.of(settings), build_shared_cache(settings))
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


def _load_language_model(settings: Settings) -> EmbeddedModel:
    device = resolve_device(settings.device)
    return load_embedded_model(
        settings.checkpoint,
        revision=settings.revision,
        device=device,
        dtype=resolve_dtype(settings.dtype, device),
    )


def log_purifier(settings: Settings, smoother: Smoother) -> None:
    """Logs which purifier runs, since one may run by default; warns if it was not trained for this noise level."""
    psm, sigma = smoother.psm, smoother.sigma_for(settings.sigma)
    if psm is None or sigma == 0:
        return
    facts = {"psm": psm.name, "sigma": sigma, "trained_from": psm.sigma_low, "trained_to": psm.sigma_high}
    if psm.trained_for(sigma):
        log.info("noisy copies pass a purifier", model=settings.model_name, **facts)
    else:
        log.warning(
            "the purifier was not trained for this sigma: certificates hold, answers may suffer",
            model=settings.model_name,
            **facts,
        )


def build_shared_cache(settings: Settings) -> SharedCache | None:
    """Makes the shared cache of the settings, which connects when it is first used; None without one."""
    if settings.cache_redis_url is None or settings.cache_redis_key is None:
        return None
    return SharedCache(
        SharedCacheOptions(
            settings.cache_redis_url.get_secret_value(),
            settings.cache_redis_key.get_secret_value(),
            settings.cache_redis_timeout,
            settings.cache_redis_lifetime,
            settings.cache_redis_image_bytes,
        )
    )
