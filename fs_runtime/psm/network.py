"""What every network of a PSM says about itself, so that it can be stored, told apart and built again."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

from torch import nn


class PsmNetwork(nn.Module, abc.ABC):
    """A purifier or a mapper.

    Attributes:
        kind: Name of the architecture in a PSM's card.
        fingerprint: SHA-256 over configuration and weights, as ``sha256:<hex>``; empty until it is loaded.
    """

    kind: ClassVar[str]
    fingerprint: str = ""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The configuration as JSON can hold it."""

    @classmethod
    @abc.abstractmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """A network with this configuration and fresh weights.

        Raises:
            TypeError: The configuration has a field that is not known, or lacks one.
            ValueError: A value makes no sense.
        """
