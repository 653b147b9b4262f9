"""Settings, from flags, environment (``FS_…``) and a YAML file, in that order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AnyHttpUrl, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from fs_runtime.receipts import read_signing_key
from fs_runtime.resolution import DEFAULT_MAX_PIXELS
from server.access.keys import stored_form
from server.access.tenants import read_access
from server.limits.redis import check_redis_url
from server.request_settings import RequestSettings

CONFIG_FILE_VARIABLE = "FS_CONFIG"

T = TypeVar("T")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


# A list that environment and flags give as one text, separated by commas.
CommaList = Annotated[list[T], NoDecode, BeforeValidator(_split)]


class Settings(RequestSettings, BaseSettings):
    """All settings of the gateway.

    A flag wins over the environment variable of its name (--max-samples is FS_MAX_SAMPLES), that over the YAML file
    named by --config or FS_CONFIG (max_samples: 256), that over the default.
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

    model: str = Field(
        "reference", description="Checkpoint whose vision part is smoothed: a folder, a hub id, or 'reference'."
    )
    revision: str | None = Field(
        None, description="Revision of a hub checkpoint, so that a restart loads the same one."
    )
    served_model_name: str | None = Field(None, description="Name that clients use; by default that of the checkpoint.")
    device: str = Field("auto", description="Where the encoder runs: auto, cpu, cuda or cuda:<index>.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic of the encoder; auto is bfloat16 on a GPU and float32 elsewhere."
    )
    encoder_max_pixels: int = Field(
        DEFAULT_MAX_PIXELS,
        ge=0,
        description="Most pixels of an image for models that read any resolution (Qwen-VL), by which larger ones are "
        "shrunk; their memory and time grow with it. 0 takes the model's own limit, which may need gigabytes an image.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Noise samples in one batch; larger fills a GPU better, smaller takes less memory."
    )
    max_queued_samples: int = Field(
        65536, ge=1, description="Noise samples that may wait; above it requests are answered 429."
    )
    max_queued_images: int = Field(
        1024, ge=1, description="Images that may wait, since their pixels take memory; above it requests get 429."
    )
    smoothing_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds within which an image must be smoothed: what would take longer is answered 429 at once, "
        "what does take longer 504.",
    )
    cache_bytes: int = Field(
        2**30,
        ge=0,
        description="Memory for smoothed images, so that one that is sent again costs nothing; 0 keeps none, and every "
        "request has draws of its own.",
    )

    language_model: Literal["embedded", "vllm", "none"] = Field(
        "embedded",
        description="Where answers are made: in this process (small models), by a vLLM server, or not at all ('none'): "
        "images are certified, and chat requests refused.",
    )
    neutralise_turn_tokens: bool = Field(
        True,
        description="Make the model's turn tokens (such as <|im_start|> or </s>) in the texts of requests harmless, as "
        "image tokens always are; off leaves them to the language model, which then reads them as turns.",
    )
    vllm_url: AnyHttpUrl = Field(
        AnyHttpUrl("http://127.0.0.1:8001"), description="Address of the vLLM server; keep it on an internal network."
    )
    vllm_urls: CommaList[AnyHttpUrl] = Field(
        [],
        description="Addresses of several vLLM servers that serve the same model, separated by commas; instead of "
        "vllm_url.",
    )
    vllm_model: str | None = Field(
        None, description="Name of the model at vLLM; by default the first one that each server lists."
    )
    vllm_api_key: SecretStr | None = Field(None, description="Key that the gateway sends to vLLM, if vLLM wants one.")
    vllm_connect_timeout: float = Field(
        5.0, gt=0, description="Seconds to reach a vLLM server before another one is tried."
    )
    vllm_first_token_timeout: float = Field(
        60.0, gt=0, description="Seconds to the first token of a stream before another server is tried."
    )
    vllm_next_token_timeout: float = Field(
        30.0, gt=0, description="Seconds between two tokens of a stream before it is ended with an error."
    )
    vllm_total_timeout: float = Field(
        600.0, gt=0, description="Seconds that an answer of vLLM may take in all, retries included."
    )
    vllm_max_in_flight: int = Field(
        256, ge=1, description="Most requests at one vLLM server at once; what it can run in one batch (max-num-seqs)."
    )
    vllm_max_wait: float = Field(
        5.0, gt=0, description="Seconds that a request may wait for a free vLLM server before it is answered 429."
    )
    vllm_retries: int = Field(
        1, ge=0, description="How often a request is sent again when a vLLM server fails before the first token."
    )
    vllm_health_interval: float = Field(
        2.0, gt=0, description="Seconds between health checks of a vLLM server: how soon a lost one is noticed."
    )
    vllm_health_timeout: float = Field(
        2.0, gt=0, description="Seconds that a vLLM server has to answer a health check; two late ones in a row count."
    )
    max_waiting: int = Field(
        256, ge=0, description="Most requests that may wait for the language model; above it they are answered 429."
    )
    client_write_timeout: float = Field(
        60.0, gt=0, description="Seconds for which a client may take nothing of a stream before it is cut off."
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
    max_new_tokens: int = Field(
        256, ge=1, description="Length of an answer of the embedded language model when the request does not say."
    )

    psm: str = Field(
        "auto",
        description="Purifier and mapper for the model: a folder that 'train psm' wrote, 'none', or 'auto' for the "
        "ones that ship with the reference model.",
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
    def _one_list_of_servers(self) -> Settings:
        if self.vllm_urls and "vllm_url" in self.model_fields_set:
            raise ValueError("give vllm_url for one vLLM server or vllm_urls for several, not both")
        if len(set(self.vllm_addresses)) < len(self.vllm_addresses):
            raise ValueError("vllm_urls names a server twice")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if problem := self.contradiction():
            raise ValueError(problem)
        for key in self.api_keys:
            stored_form(key.get_secret_value())
        if self.limits_redis_url is not None:
            check_redis_url(self.limits_redis_url.get_secret_value())
        if self.access_file is not None:
            read_access(self.access_file, self)  # a wrong file is found at start, not by the first client
        return self

    @field_validator("receipt_key")
    @classmethod
    def _key_that_signs(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_signing_key(path)  # a wrong file is found at start, not by the first client
        return path

    @property
    def vllm_addresses(self) -> list[str]:
        """Addresses of the vLLM servers, without a slash at the end."""
        return [str(url).rstrip("/") for url in self.vllm_urls or [self.vllm_url]]

    @property
    def default_answer_tokens(self) -> int | None:
        """Tokens of an answer when the request does not say; None for all that the context has room for."""
        return self.max_new_tokens if self.language_model == "embedded" else None

    @property
    def model_name(self) -> str:
        """The name that clients use."""
        if self.served_model_name:
            return self.served_model_name
        if self.model == "reference":
            return "fs-reference"
        return Path(self.model).name if Path(self.model).exists() else self.model

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags are put in front by pydantic-settings; then come arguments, environment and the file."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if path := os.environ.get(CONFIG_FILE_VARIABLE):
            if not Path(path).is_file():
                raise FileNotFoundError(f"settings file {path} does not exist")
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=path))
        return tuple(sources)
