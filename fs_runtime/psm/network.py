"""Base class of the networks of a PSM, which describe themselves so that they can be stored and rebuilt."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import torch
from torch import nn


class PsmNetwork(nn.Module, abc.ABC):
    """A purifier or a mapper.

    Attributes:
        kind: Name of the architecture in a PSM's card.
        fingerprint: SHA-256 over configuration and weights, as ``sha256:<hex>``; empty unless loaded from disk.
    """

    kind: ClassVar[str]
    fingerprint: str = ""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The configuration as JSON values."""

    @classmethod
    @abc.abstractmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """A network with this configuration and fresh weights.

        Raises:
            TypeError: The configuration has an unknown field, or lacks one.
            ValueError: A value is invalid.
        """

    def use_precision(self, dtype: torch.dtype) -> None:
        """Computes in this arithmetic from now on. Buffers keep float32: they scale features."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
