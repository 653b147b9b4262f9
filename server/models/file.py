"""The models file: names, checkpoints, and the settings that each model overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from server.settings.files import parse_yaml
from server.settings.model import CHECKPOINT_SETTINGS, ModelSettings, PerModelSettings

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/\-]{0,127}$")]


class ModelsFileError(ValueError):
    """The models file cannot be used; the message says why, and holds nothing of its contents but names."""


S = TypeVar("S", bound=PerModelSettings)


class ModelEntry(PerModelSettings):
    """One model: its name, its checkpoint, and the settings that it overrides."""

    name: ModelName
    model: str

    @model_validator(mode="after")
    def _without_served_name(self) -> Self:
        if "served_model_name" in self.model_fields_set:
            raise ValueError("leave served_model_name out; name is what clients use")
        return self


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[ModelEntry] = Field(min_length=1)


def read_models(path: Path, server: S) -> dict[str, S]:
    """Reads the models file.

    Args:
        path: YAML: ``models: [{name: …, model: …, psm: …, samples: …, …}, …]``.
        server: Settings that models override; those of one checkpoint are not inherited.

    Returns:
        Each model's settings by its name, in the order of the file.

    Raises:
        ModelsFileError: It cannot be read, or is not a valid models file.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise ModelsFileError(f"{path} cannot be read: {error.strerror}") from None
    return parse_models(contents, server)


def parse_models(contents: bytes, server: S) -> dict[str, S]:
    """Parses the contents of a models file, like :func:`read_models`."""
    try:
        file = parse_yaml(contents, _ModelsFile)
    except ValueError as error:
        raise ModelsFileError(str(error)) from None
    models: dict[str, S] = {}
    for entry in file.models:
        if entry.name in models:
            raise ModelsFileError(f"model {entry.name} appears twice")
        models[entry.name] = _settings(entry, server)
    return models


def _settings(entry: ModelEntry, server: S) -> S:
    own = {name: getattr(entry, name) for name in entry.model_fields_set - {"name"}}
    defaults = {name: ModelSettings.model_fields[name].get_default() for name in CHECKPOINT_SETTINGS}
    settings = server.model_copy(update={**defaults, **own, "served_model_name": entry.name})
    if settings.language_model == "vllm" and not own.keys() & {"vllm_url", "vllm_urls"}:
        raise ModelsFileError(f"model {entry.name} is to be answered by vLLM: give its vllm_url or vllm_urls")
    if problem := settings.contradiction():
        raise ModelsFileError(f"model {entry.name}: {problem}")
    return settings
