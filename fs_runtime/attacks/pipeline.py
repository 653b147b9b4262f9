"""The smoothed feature as a differentiable function of the image, for white-box attacks.

Source: expectation over transformation (EOT), Athalye, Engstrom, Ilyas and Kwok, "Synthesizing Robust Adversarial
Examples", ICML 2018 (arXiv 1707.07397), with Gaussian noise as the transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from fs_runtime.encoders.base import Grid
from fs_runtime.smoothing.smoother import Smoother

Score = Callable[[Tensor, Tensor], Tensor]
"""Maps a pipeline's output for B images, and a reference to compare it with, to ``(B,)`` values to maximise.

With a :class:`FeaturePipeline` both arguments are ``(B, T, D)`` features."""


class FeaturePipeline:
    """Mean of the unit token features f(x + σ·noise) over noisy copies, as the server computes it.

    Gradients go through purifier, encoder and mapper. Batches are split so that at most ``batch_size`` noisy copies are
    in memory at once; the copies of one image always stay together, since its value depends on all of them.

    Args:
        smoother: The networks.
        sigma: Standard deviation σ of the noise; 0 is the undefended model, which needs a single draw.
        grid: Of the tokens.
        draws: Noisy copies of each image for one evaluation.
        seed: Of the draws.
        fixed: Draw the same noise at every evaluation (common random numbers) instead of fresh noise (EOT).
        batch_size: Most noisy copies in one pass.

    Raises:
        ValueError: σ is negative, or a count is not positive.
    """

    def __init__(
        self,
        smoother: Smoother,
        sigma: float,
        grid: Grid,
        *,
        draws: int = 1,
        seed: int = 0,
        fixed: bool = False,
        batch_size: int = 64,
    ) -> None:
        if sigma < 0:
            raise ValueError(f"sigma must not be negative; got {sigma}")
        if draws < 1 or batch_size < 1:
            raise ValueError(f"draws and batch_size must be at least 1; got {draws} and {batch_size}")
        self.smoother = smoother
        self.sigma = sigma
        self.grid = grid
        self.draws = draws if sigma > 0 else 1
        self.seed = seed
        self.fixed = fixed
        self.batch_size = batch_size
        self._generator = torch.Generator(smoother.encoder.device).manual_seed(seed)

    @property
    def stochastic(self) -> bool:
        """Whether two evaluations at one image differ."""
        return self.sigma > 0 and not self.fixed

    def with_options(self, **changes: Any) -> FeaturePipeline:
        """A copy with other ``draws``, ``seed`` or ``fixed``."""
        return type(self)(self.smoother, self.sigma, self.grid, **(self._options() | changes))

    def embedded(self) -> EmbeddingPipeline:
        """The same pipeline up to the embeddings that the language model reads."""
        return EmbeddingPipeline(self.smoother, self.sigma, self.grid, **self._options())

    def by_copy(self) -> CopyPipeline:
        """The same pipeline up to the embeddings that the language model reads of each copy by itself."""
        return CopyPipeline(self.smoother, self.sigma, self.grid, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"draws": self.draws, "seed": self.seed, "fixed": self.fixed, "batch_size": self.batch_size}

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` mean unit features of ``(B, C, H, W)`` images, without gradients."""
        self._rewind()
        return torch.cat([self._output(part) for part in self._chunks(x)])

    def value_and_gradient(self, x: Tensor, reference: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        """Value and gradient of ``score`` at each image.

        Args:
            x: ``(B, C, H, W)`` images.
            reference: ``(B, …)`` the score's second argument: ``(B, T, D)`` features.
            score: To maximise.

        Returns:
            ``(B,)`` values and ``(B, C, H, W)`` gradients, each image's own.
        """
        self._rewind()
        values, gradients = [], []
        for part, against in zip(self._chunks(x), self._chunks(reference), strict=True):
            leaf = part.detach().requires_grad_()
            value = score(self._output(leaf), against)
            gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)

    def unit_features(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` unit features of ``(B, C, H, W)`` copies that include their noise; differentiable."""
        return functional.normalize(self._raw_features(x), dim=-1)

    def _raw_features(self, x: Tensor) -> Tensor:
        levels = torch.full((len(x),), self.sigma, device=x.device)
        return self.smoother.features(x, levels, self.grid, noisy=self.sigma > 0).float()

    def _rewind(self) -> None:
        if self.fixed:
            self._generator.manual_seed(self.seed)

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, max(1, self.batch_size // self.draws))

    def _output(self, x: Tensor) -> Tensor:
        unit = self.unit_features(self._copies(x))  # (B·draws, T, D)
        return self._averaged(unit)

    def _copies(self, x: Tensor) -> Tensor:
        """``(B·draws, C, H, W)`` noisy copies, those of one image next to each other."""
        if self.sigma == 0:
            return x
        copies = x.repeat_interleave(self.draws, dim=0)
        return copies + self.sigma * torch.empty_like(copies).normal_(generator=self._generator)

    def _averaged(self, values: Tensor) -> Tensor:
        """``(B, …)`` means over the copies of each image."""
        return values.view(-1, self.draws, *values.shape[1:]).mean(dim=1)


class EmbeddingPipeline(FeaturePipeline):
    """The embeddings that the language model reads, computed from noisy copies as the server does.

    They are the direction of the mean unit feature times the mean length, passed through the projector. ``features``
    and a score's first argument are then ``(B, T', D')`` embeddings.
    """

    @override
    def _output(self, x: Tensor) -> Tensor:
        features = self._raw_features(self._copies(x))  # (B·draws, T, D)
        lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        direction = functional.normalize(self._averaged(functional.normalize(features, dim=-1)), dim=-1)
        return self.smoother.encoder.project(direction * self._averaged(lengths), self.grid)


class CopyPipeline(FeaturePipeline):
    """The embeddings that the language model reads of each noisy copy by itself, as a vote on its answer does.

    ``features`` and a score's first argument are then ``(B, draws, T', D')`` embeddings: nothing is averaged.
    """

    @override
    def _output(self, x: Tensor) -> Tensor:
        embeddings = self.smoother.encoder.project(self._raw_features(self._copies(x)), self.grid)
        return embeddings.view(len(x), self.draws, *embeddings.shape[1:])
