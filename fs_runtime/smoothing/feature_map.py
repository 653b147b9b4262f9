"""Which features are smoothed: of which stage, and whether they are centred."""

from __future__ import annotations

from dataclasses import dataclass

from fs_runtime.options import Stage


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Which f is smoothed; the guarantee holds for each (docs/guarantee.md section 1).

    Attributes:
        stage: Whose output f is: the encoder's (the paper), or the projector's, which the language model reads.
        centred: Whether a fixed vector, the mean feature of a reference set, is subtracted before features are
            normalised, so that different images are far apart.
    """

    stage: Stage = "encoder"
    centred: bool = False


ENCODER_FEATURES = FeatureMap()
