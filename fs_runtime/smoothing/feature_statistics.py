"""What is known of a model's features over a reference set: their mean, and how similar different images are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, device

from fs_runtime.options import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fs_runtime.encoders.base import Grid
    from fs_runtime.smoothing.feature_map import FeatureMap

STAGES: tuple[Stage, ...] = get_args(Stage)
FILE_NAME = "feature_statistics.safetensors"
# Rises when a reader of the version before would misread a file. A file without one is of version 1, which had none.
# Within a version fields are only added: a reader fills in what an older file lacks, and ignores what it does not know.
VERSION = 1


class StatisticsError(ValueError):
    """The statistics cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Cosine similarity between the smoothed features of *different* images: what a bound must exceed to mean much.

    Attributes:
        mean: Over all pairs of the reference set.
        high: The value that 95% of the pairs do not exceed.
    """

    mean: float
    high: float


@dataclass(frozen=True, slots=True)
class StatisticsCard:
    """Where the statistics come from.

    Attributes:
        encoder: Fingerprint of the vision encoder.
        purifier: Fingerprint of the purifier; None for none.
        mapper: Fingerprint of the mapper; None for none.
        sigma: σ of the noise.
        samples: Noise samples for each image.
        images: Images of the reference set.
    """

    encoder: str
    purifier: str | None
    mapper: str | None
    sigma: float
    samples: int
    images: int


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """What smoothing at one noise level makes of the reference set, at the encoder's output if nothing else is said.

    Attributes:
        sigma: σ of the noise.
        norm: ρ, by plug-in estimates without confidence; mean over the images, like all but ``low_fidelity``.
        fidelity: Cosine similarity of the sample mean with the clean features, both stacked.
        token_fidelity: The same by token, mean over the tokens too.
        low_fidelity: The value of ``fidelity`` that 5% of the images do not exceed.
        floors: Per stage, for features as they are and for centred ones.
    """

    sigma: float
    norm: float
    fidelity: float
    token_fidelity: float
    low_fidelity: float
    floors: dict[Stage, tuple[Floor, Floor]]


class FeatureStatistics:
    """Mean feature and floor of each certified stage, and what smoothing leaves of pictures at several noise levels.

    Args:
        card: Where they come from.
        centres: Mean features over the images: by stage and token grid ``(T, D)`` float32, and by stage and None, over
            the tokens too, ``(1, D)`` for grids that the reference set does not have.
        floors: Per stage, for features as they are and for centred ones, at the noise level of the card.
        levels: The same and more at other noise levels; files of earlier versions have none.
    """

    def __init__(
        self,
        card: StatisticsCard,
        centres: dict[tuple[Stage, Grid | None], Tensor],
        floors: dict[Stage, tuple[Floor, Floor]],
        levels: Sequence[NoiseLevel] = (),
    ) -> None:
        self.card = card
        self.levels = tuple(sorted(levels, key=lambda level: level.sigma))
        self._centres = centres
        self._floors = floors
        self._tensors = {_name(*key): centre.float().cpu().contiguous() for key, centre in centres.items()}
        digest = hashlib.sha256()
        for name in sorted(self._tensors):
            digest.update(name.encode() + self._tensors[name].numpy().tobytes())
        self.fingerprint = f"sha256:{digest.hexdigest()}"

    def centre(self, stage: Stage, grid: Grid, on: device) -> Tensor:
        """``(T, D)`` or ``(1, D)`` float32, the fixed vectors that centring takes off the tokens of this grid."""
        key = (stage, grid) if (stage, grid) in self._centres else (stage, None)
        self._centres[key] = self._centres[key].to(on)
        return self._centres[key]

    def floor(self, feature_map: FeatureMap) -> Floor:
        """Similarity of different images under this feature map, at the noise level of the card."""
        return self._floors[feature_map.stage][int(feature_map.centred)]

    def floor_at(self, feature_map: FeatureMap, sigma: float) -> Floor | None:
        """The same at the noise level ``sigma``; None where it was not measured, since the floor rises with σ."""
        if sigma == self.card.sigma:
            return self.floor(feature_map)
        at = next((level for level in self.levels if level.sigma == sigma), None)
        return at.floors[feature_map.stage][int(feature_map.centred)] if at else None

    def with_levels(self, levels: Sequence[NoiseLevel]) -> FeatureStatistics:
        """The same statistics with other noise levels."""
        return FeatureStatistics(self.card, self._centres, self._floors, levels)

    def largest_sigma(self, least: float) -> float | None:
        """The largest measured σ up to which the fidelity of tokens is at least ``least``; None where none is."""
        reached = None
        for level in self.levels:
            if level.token_fidelity < least:
                break
            reached = level.sigma
        return reached

    def save(self, path: Path) -> None:
        """Writes one safetensors file."""
        floors = {stage: [asdict(floor) for floor in pair] for stage, pair in self._floors.items()}
        metadata = {
            "version": str(VERSION),
            "card": json.dumps(asdict(self.card)),
            "floors": json.dumps(floors),
            "levels": json.dumps([asdict(level) for level in self.levels]),
        }
        save_file(self._tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> FeatureStatistics:
        """Reads what :meth:`save` wrote.

        Raises:
            StatisticsError: The file is missing or not of this kind.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                centres = {_key(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            version = int(metadata.get("version", "1"))
            if version > VERSION:
                raise StatisticsError(f"{path} is of version {version}, this fs-serve reads up to {VERSION}; update it")
            card = StatisticsCard(**_known(StatisticsCard, json.loads(metadata["card"])))
            pairs = _pairs(json.loads(metadata["floors"]))
            levels = [_level(values) for values in json.loads(metadata.get("levels", "[]"))]
            if any((stage, None) not in centres for stage in STAGES):
                raise KeyError("centre")
        except StatisticsError:
            raise
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StatisticsError(f"{path} holds no feature statistics: {type(error).__name__}") from error
        return cls(card, centres, pairs, levels)


def _known(kind: type[StatisticsCard | Floor | NoiseLevel], values: dict[str, Any]) -> dict[str, Any]:
    """The values that this version knows."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _floor(values: dict[str, Any]) -> Floor:
    return Floor(**_known(Floor, values))


def _pairs(floors: dict[str, Any]) -> dict[Stage, tuple[Floor, Floor]]:
    return {stage: (_floor(floors[stage][0]), _floor(floors[stage][1])) for stage in STAGES}


def _level(values: dict[str, Any]) -> NoiseLevel:
    return NoiseLevel(**_known(NoiseLevel, {**values, "floors": _pairs(values["floors"])}))


def _name(stage: Stage, grid: Grid | None) -> str:
    return stage if grid is None else f"{stage}.{'x'.join(map(str, grid))}"


def _key(name: str) -> tuple[Stage, Grid | None]:
    stage, _, grid = name.partition(".")
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage}")
    return stage, tuple(map(int, grid.split("x"))) if grid else None
