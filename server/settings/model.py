"""Settings of one model: weights, device, queue and language model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, model_validator

from fs_runtime.options import DEFAULT_MAX_PIXELS, CompileMode, Dtype, LanguageModelKind, Quantization
from fs_runtime.reference import reference_model_path
from server.settings.certificate import CertificateSettings
from server.settings.fields import CommaList

# Settings that belong to one checkpoint, so models of the models file do not inherit them.
CHECKPOINT_SETTINGS = ("model", "revision", "served_model_name", "psm", "vllm_url", "vllm_urls", "vllm_model")


class ModelSettings(BaseModel):
    """Checkpoint, device, queue limits, cache and language model back end of a model."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model: str = Field(
        "reference", description="Checkpoint whose vision part is smoothed: a folder, a hub id, or 'reference'."
    )
    revision: str | None = Field(
        None, description="Revision of a hub checkpoint, so that a restart loads the same one."
    )
    served_model_name: str | None = Field(None, description="Name that clients use; by default that of the checkpoint.")
    device: str = Field("auto", description="Where the encoder runs: auto, cpu, cuda or cuda:<index>.")
    dtype: Dtype = Field(
        "auto", description="Arithmetic of the encoder; auto is bfloat16 on a GPU and float32 elsewhere."
    )
    compile: Literal["none", CompileMode] = Field(
        "none",
        description="Mode of torch.compile for encoder, purifier and mapper; none runs them as they are, as models "
        "that read images of any size always do. It needs a C++ compiler, and minutes at start before /readyz.",
    )
    quantization: Literal["none", Quantization] = Field(
        "none",
        description="Format of the products in the encoder's linear layers: fp8 on GPUs of compute capability 8.9 or "
        "later, or none for that of dtype. The encoder is then another function, with a fingerprint of its own.",
    )
    encoder_max_pixels: int = Field(
        DEFAULT_MAX_PIXELS,
        ge=0,
        description="Most pixels of an image for models that read any resolution (Qwen-VL), by which larger ones are "
        "shrunk; their memory and time grow with it. 0 takes the model's own limit, which may need gigabytes an image.",
    )
    max_sketch_bytes: int = Field(
        2**31,
        ge=0,
        description="Most memory for the sketch that 'spectral' keeps of an image in flight. An image whose sketch "
        "would be larger (many tiles) is certified without, and the answer says so. 0 for no limit.",
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

    language_model: LanguageModelKind | Literal["none"] = Field(
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
    vllm_answer_concurrency: int = Field(
        16,
        ge=1,
        description="Most votes of certified answers at the vLLM servers at once, of all requests together, so that "
        "they leave room for others.",
    )
    answer_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds for the votes of a certified answer; after that it is certified by those that are there.",
    )
    max_copy_bytes: int = Field(
        2**28,
        ge=2**20,
        description="Memory, about, for noisy copies on their way to the language model: what certified answers take.",
    )
    max_waiting: int = Field(
        256, ge=0, description="Most requests that may wait for the language model; above it they are answered 429."
    )
    max_new_tokens: int = Field(
        256, ge=1, description="Length of an answer of the embedded language model when the request does not say."
    )

    psm: str = Field(
        "auto",
        description="Purifier and mapper: a folder that 'train psm' wrote, a purifier that ships by name ('small'), "
        "deepinv:NAME[:WEIGHTS] or diffusion:SOURCE for a denoiser of other projects, 'none', or 'auto': those of the "
        "reference model for that one, 'small' for every other.",
    )
    feature_statistics: Path | None = Field(
        None,
        description="File of 'evaluate features' for this model and purifier: the default sigma follows from it, "
        "'centred' takes its mean off, and 'floor' is in answers. By default the one in the folder of the PSM or of "
        "the model.",
    )

    @model_validator(mode="after")
    def _one_list_of_servers(self) -> Self:
        if self.vllm_urls and "vllm_url" in self.model_fields_set:
            raise ValueError("give vllm_url for one vLLM server or vllm_urls for several, not both")
        if len(set(self.vllm_addresses)) < len(self.vllm_addresses):
            raise ValueError("vllm_urls names a server twice")
        return self

    @property
    def vllm_addresses(self) -> list[str]:
        """Addresses of the vLLM servers, without a slash at the end."""
        return [str(url).rstrip("/") for url in self.vllm_urls or [self.vllm_url]]

    @property
    def default_answer_tokens(self) -> int | None:
        """Most tokens of an answer if the request sets no limit; None for as many as the context has room for."""
        return self.max_new_tokens if self.language_model == "embedded" else None

    @property
    def checkpoint(self) -> str:
        """Folder or hub id of the weights."""
        return str(reference_model_path()) if self.model == "reference" else self.model

    @property
    def model_name(self) -> str:
        """The name that clients use."""
        if self.served_model_name:
            return self.served_model_name
        if self.model == "reference":
            return "fs-reference"
        return Path(self.model).name if Path(self.model).exists() else self.model


class PerModelSettings(CertificateSettings, ModelSettings):
    """All settings that a model in the models file may override."""
