"""The interface between a model family's vision part and the smoothing runtime."""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fs_runtime.encoders.checkpoint import CheckpointError, fingerprint
from fs_runtime.encoders.float8 import SCHEME, check_float8, use_float8
from fs_runtime.options import Quantization, Stage

Grid = tuple[int, ...]
"""Rows and columns of the token grid: of the image or, in families that cut it into tiles, of one tile. Such families
append the layout of the tiles. It depends on the image's size alone, which an attack does not change."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the encoder reads it, with the facts about its preprocessing that the certificate needs.

    Attributes:
        pixels: ``(C, H, W)``, or ``(N, C, H, W)`` for N tiles, float32 in [0, 1] on the host: x of docs/guarantee.md,
            before mean/std normalisation.
        spectral_norm: ‖A‖₂ of the map from the client's pixels to ``pixels`` (docs/guarantee.md section 6), or an
            upper bound of it.
        grid: Of the tokens.
    """

    pixels: Tensor
    spectral_norm: float
    grid: Grid


class ImageSizeError(ValueError):
    """The model does not read images of this size; the message names the sizes that it reads."""


class VisionEncoder(abc.ABC):
    """Vision tower and projector of one model family, without its language model.

    Images of one batch share their shape and grid; others (families with dynamic resolution) go in different batches.
    The adapter is a fixed function: evaluation mode, no dropout, no gradients of weights.

    Attributes:
        family: The ``model_type`` of the checkpoint, for example ``llava``.
        fingerprint: SHA-256 over configuration and weights that this adapter read, as ``sha256:<hex>``.
        device: Where the weights are.
        dtype: Arithmetic of the encoder.
        preprocessing: The preprocessing steps as JSON values, which receipts record.
        control_tokens: Texts that the model's tokenizer turns into image tokens; they are not allowed in plain text.
        language_width: Width of the embeddings that the language model reads; None if there is no language model.
        max_images: Most images that the model takes in one request; None for any number.
        tower: The vision tower that :meth:`encode` runs, if it is a separate module that can be trained and replaced;
            else None.
        quantization: Format of the products in the vision tower's linear layers; None for that of ``dtype``.
    """

    family: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    preprocessing: dict[str, Any]
    control_tokens: tuple[str, ...]
    language_width: int | None = None
    max_images: int | None = None
    tower: nn.Module | None = None
    quantization: Quantization | None = None

    @abc.abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Float preprocessing of one ``(H, W, 3)`` uint8 RGB image. Runs on the host, in any thread.

        Raises:
            ImageSizeError: The model does not read images of this size.
        """

    def cap(self, max_pixels: int) -> None:  # noqa: B027 (most families ignore it)
        """Caps the pixels of x in families that read images of any resolution; others ignore it.

        The size of x still depends on the image's size alone. ``preprocessing`` records the cap. ``fingerprint`` does
        not change, since purifier and mapper fit every size.

        Raises:
            ValueError: The cap is below the model's smallest size.
        """

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Mean/std normalisation and vision tower.

        Args:
            x: ``(B, C, H, W)`` pixels around [0, 1], noise included, on ``device``, float32 or ``dtype``: whole images,
                or the tiles of some images one after another.

        Returns:
            ``(B, T, D)`` token features that the projector reads, in ``dtype``, row by row over the grid.
        """

    def assemble(self, features: Tensor, grid: Grid) -> Tensor:
        """Tokens of all tiles, ``(…, N, T, D)``, as one sequence ``(…, T'', D)``: the f that is smoothed.

        For families that cut images into tiles. By default the tiles' tokens are concatenated; a family may leave out
        tokens that the language model never reads.
        """
        return features.flatten(-3, -2)

    def with_tower(self, tower: nn.Module) -> Self:
        """This encoder with another vision tower of the same architecture; preprocessing and projector are shared.

        Args:
            tower: Used as it is, in its mode and dtype; the fingerprint covers its current weights.

        Raises:
            ValueError: The family's tower cannot be replaced.
        """
        if self.tower is None:
            raise ValueError(f"the vision tower of family {self.family} cannot be exchanged")
        other = copy.copy(self)
        other.tower = tower
        other.fingerprint = fingerprint({"instead of": self.fingerprint}, tower)
        return other

    def in_float8(self) -> Self:
        """This encoder with float8 products in the linear layers of its tower (:mod:`fs_runtime.encoders.float8`).

        It is another function, with its own fingerprint, and certificates hold for that function.

        Raises:
            CheckpointError: The device cannot multiply in float8, or no layer has a suitable shape.
        """
        check_float8(self.device)
        name = "_tower" if self.tower is None else "tower"
        tower = copy.deepcopy(getattr(self, name))
        if not use_float8(tower):
            raise CheckpointError(f"the vision tower of family {self.family} has no linear layer that float8 suits")
        other = copy.copy(self)
        setattr(other, name, tower)
        other.quantization = "fp8"
        other.fingerprint = fingerprint({"instead of": self.fingerprint, "linear layers": SCHEME})
        return other

    @abc.abstractmethod
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        """Projector: ``(…, T, D)`` features to ``(…, T', D')`` embeddings; :meth:`payload` adds constant tokens."""

    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the rectangles that the tokens of a stage fill, one after another."""
        return ((grid[0], grid[1]),)

    @abc.abstractmethod
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        """Arrays that the language-model server needs for one image.

        Args:
            embeddings: ``(T', D')`` from :meth:`project`.
            image: The image they belong to.

        Returns:
            ``image_embeds`` and further arrays that the family needs, on the host.

        Raises:
            ValueError: Shape or token count is wrong, or a value is not finite. Such a payload can crash vLLM.
        """
