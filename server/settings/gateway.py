"""Settings, from flags, environment (``FS_…``) and a YAML file, in that order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from fs_runtime.engine.cache.seal import Seal
from fs_runtime.receipts import read_signing_key
from server.settings.fields import CommaList, check_redis_url
from server.settings.model import PerModelSettings
from server.settings.request import RequestSettings

CONFIG_FILE_VARIABLE = "FS_CONFIG"


# server.run reads the files that settings name, before it loads any weights.
class Settings(RequestSettings, PerModelSettings, BaseSettings):
    """All settings of the gateway.

    Precedence: flag (--max-samples), environment variable (FS_MAX_SAMPLES), YAML file of --config or FS_CONFIG
    (max_samples: 256), default.
    """

    model_config = SettingsConfigDict(
        env_prefix="FS_", extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 inside a container.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line to write."
    )

    api_keys: CommaList[SecretStr] = Field(
        [],
        description="Keys that clients may send as 'Authorization: Bearer …', separated by commas, each in clear or as "
        "sha256:<hex>; they belong to the tenant 'default'. Without these and access_file everyone is let in.",
    )
    access_file: Path | None = Field(
        None,
        description="YAML file of tenants, each with the digests of its keys and with settings of its own; a change "
        "takes effect without a restart. 'fs-serve api-key new' makes keys.",
    )
    cache_salt_key: SecretStr | None = Field(
        None,
        description="Secret from which each tenant's salt of vLLM's prefix cache is derived; the same for replicas "
        "that share a vLLM. By default a fresh one at each start, which costs shared prefixes.",
    )
    limits_redis_url: SecretStr | None = Field(
        None,
        description="redis://… that counts rate limits for several replicas together (extra 'redis'); by default each "
        "process counts for itself, as it does while Redis is away.",
    )

    models_file: Path | None = Field(
        None,
        description="YAML file of several models for this gateway, each with settings of its own, in place of model; "
        "a change loads and unloads models without a restart.",
    )
    check_memory: bool = Field(
        True, description="Refuse to load a model that by an estimate does not fit into the memory that is free."
    )
    gpu_memory_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Most of a GPU's memory that this process allocates, so that a vLLM on the same GPU keeps its "
        "share; by default all that is free, as with 1. Less than 1 is refused without a GPU.",
    )
    cache_redis_url: SecretStr | None = Field(
        None,
        description="redis://… in which replicas share smoothed images, behind the cache in memory (extra 'redis'); by "
        "default each replica has its own alone.",
    )
    cache_redis_key: SecretStr | None = Field(
        None,
        description="Secret of at least 32 characters that seals what is in that Redis, the same for all replicas: "
        "without it nobody can read or forge an image there. 'openssl rand -hex 32' makes one.",
    )
    cache_redis_timeout: float = Field(
        0.25,
        gt=0,
        le=10,
        description="Seconds that a request waits for that Redis at most; after that it goes on by itself.",
    )
    cache_redis_lifetime: float = Field(
        86400.0,
        ge=1,
        description="Seconds for which an image's draws are shared in Redis, the same for all replicas; after that "
        "they are made anew.",
    )
    cache_redis_image_bytes: int = Field(
        2**25,
        ge=4096,
        description="Most bytes of one image in Redis; of larger ones what is needed to add samples is left out, and "
        "if that does not do, the image.",
    )

    client_write_timeout: float = Field(
        60.0, gt=0, description="Seconds for which a client may take nothing of a stream before it is cut off."
    )
    client_idle_timeout: int = Field(
        120,
        ge=1,
        description="Seconds after an answer for which its connection stays open without a further request: more "
        "than the proxy in front keeps it, which else sends requests on connections that are being closed.",
    )
    stall_timeout: float = Field(
        120.0, gt=0, description="Seconds without a sign of life from the smoothing thread before /livez fails."
    )
    drain_lead: float = Field(
        5.0,
        ge=0,
        description="Seconds from SIGTERM, when /readyz turns 503, to the end of listening: the time that load "
        "balancers need to notice.",
    )
    drain_timeout: float = Field(
        30.0,
        ge=0,
        description="Seconds after that for what is under way, before it is ended with an error.",
    )
    allow_seed: bool = Field(
        False, description="Let requests fix the seed of the noise. For tests only: known draws can be attacked."
    )

    receipt_key: Path | None = Field(
        None,
        description="PEM file of the Ed25519 private key that signs receipts; without it they are unsigned. "
        "fs-serve keygen makes one.",
    )

    audit_log: Path | None = Field(
        None,
        description="File that gets a JSON line for each decision about a request's images; '-' is standard output.",
    )
    audit_max_bytes: int = Field(
        100 * 2**20, ge=0, description="Size at which the audit log becomes <file>.1; 0 leaves rotation to others."
    )
    audit_backups: int = Field(10, ge=0, description="How many rotated audit logs are kept.")
    audit_required: bool = Field(
        False,
        description="Answer 503 rather than without a record in the audit log; by default requests are answered, and "
        "metrics and log say that records are lost.",
    )

    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body; larger ones are answered 413.")
    max_body_bytes_together: int = Field(
        512 * 2**20,
        ge=1024,
        description="Most bytes that the bodies of all requests under way may have together, and at least that of the "
        "largest one; whoever sends more is answered 429. Memory has to hold some two times as much.",
    )
    min_image_side: int = Field(4, ge=1, description="Smallest side of an image in pixels; less carries no picture.")
    body_timeout: float = Field(
        60.0, gt=0, description="Seconds in which a whole request body must arrive; slower ones are answered 408."
    )
    decode_processes: int = Field(
        2, ge=1, description="Processes that decode images, each about 45 MB; they start when they are first needed."
    )
    decode_timeout: float = Field(
        10.0, gt=0, description="Seconds in which an image must be decoded; slower ones are answered 413."
    )
    remote_image_hosts: CommaList[str] = Field(
        [],
        description="Servers that images may be fetched from, separated by commas: names, *.example.com for all below "
        "one, or * for any; none, the default, refuses URLs other than data:.",
    )
    remote_image_schemes: CommaList[Literal["https", "http"]] = Field(
        ["https"], description="Schemes of such URLs; http lets anyone on the way change the image."
    )
    remote_image_ports: CommaList[Annotated[int, Field(ge=1, le=65535)]] = Field(
        [443], description="Ports of such URLs."
    )
    remote_image_timeout: float = Field(
        10.0, gt=0, description="Seconds in which such an image must arrive, redirects included; else it is a 504."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if problem := self.contradiction():
            raise ValueError(problem)
        for name in ("limits_redis_url", "cache_redis_url"):
            if (url := getattr(self, name)) is not None:
                check_redis_url(name, url.get_secret_value())
        check_shared_cache(self)
        return self

    @field_validator("receipt_key")
    @classmethod
    def _key_that_signs(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_signing_key(path)  # a wrong file is found at start, not by the first client
        return path

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: arguments, environment, file. pydantic-settings puts flags in front."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if path := os.environ.get(CONFIG_FILE_VARIABLE):
            if not Path(path).is_file():
                raise FileNotFoundError(f"settings file {path} does not exist")
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=path))
        return tuple(sources)


def check_shared_cache(settings: Settings) -> None:
    """Checks that the settings of the shared cache are consistent, without connecting.

    Raises:
        ValueError: They are not; the message names the setting and the remedy.
    """
    url, key = settings.cache_redis_url, settings.cache_redis_key
    if (url is None) != (key is None):
        raise ValueError(
            "cache_redis_url and cache_redis_key go together: without the key whoever can write that Redis could "
            "forge certificates; make one with `openssl rand -hex 32` and give it to all replicas"
        )
    if key is None:
        return
    if not settings.cache_bytes:
        raise ValueError("cache_redis_url needs a cache in memory in front of it; give cache_bytes more than 0")
    try:
        Seal(key.get_secret_value())
    except ValueError as error:
        raise ValueError(f"cache_redis_key: {error}") from None
