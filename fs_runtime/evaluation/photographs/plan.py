"""What is measured: the cells of each encoder, purifier, noise level and attack, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fs_runtime.attacks import ThreatModel
from fs_runtime.evaluation.photographs.cells import NO_PURIFIER, PhotographKey

LINF_SIZES = (4 / 255, 8 / 255)  # ε of the ℓ∞ balls
L2_RATIOS = (0.5, 1.0)  # ε / σ of the ℓ2 balls


@dataclass(frozen=True, slots=True)
class PhotographPlan:
    """Settings of a measurement.

    Attributes:
        sigmas: Noise levels above 0, in pixels of [0, 1].
        samples: n, noisy copies of each picture; at least 2.
        confidence: 1 - α of each certificate by itself.
        seed: Of pictures, noise and attacks.
        attacks: Whether to make attacks.
        attack_images: Pictures of an attacked cell, at most: the first ones.
        steps: Gradient steps of every attack.
        draws: Fresh noisy copies behind each gradient of an adaptive attack.
        adaptive: Names of the encoders that are attacked adaptively.
        attack_sigmas: Noise levels that attacked pictures are served at, among ``sigmas``.
    """

    sigmas: tuple[float, ...]
    samples: int = 16
    confidence: float = 0.999
    seed: int = 0
    attacks: bool = True
    attack_images: int = 60
    steps: int = 20
    draws: int = 4
    adaptive: tuple[str, ...] = ()
    attack_sigmas: tuple[float, ...] = ()

    def balls(self, sigma: float) -> Iterator[ThreatModel]:
        """The balls of attacks on a noise level; those of every such level for 0, the encoder without smoothing."""
        radii = {ratio * each: None for each in ((sigma,) if sigma else self.attack_sigmas) for ratio in L2_RATIOS}
        yield from (ThreatModel("l2", radius) for radius in radii)
        yield from (ThreatModel("linf", size) for size in LINF_SIZES)

    def keys(self, encoders: Sequence[str], purifiers: Sequence[str]) -> list[PhotographKey]:
        """All cells: first those without attack, then fixed attacks, then adaptive ones.

        Args:
            encoders: Their names.
            purifiers: Their names; ``none`` is one.
        """
        keys = []
        for encoder in encoders:
            keys.append(PhotographKey(encoder, NO_PURIFIER, 0.0))
            keys += [PhotographKey(encoder, purifier, sigma) for sigma in self.sigmas for purifier in purifiers]
        if not self.attacks:
            return keys
        smoothed = [(purifier, sigma) for sigma in self.attack_sigmas for purifier in purifiers]
        for encoder in encoders:
            keys += [
                PhotographKey(encoder, purifier, sigma, "fixed", ball.norm, ball.epsilon)
                for purifier, sigma in [(NO_PURIFIER, 0.0), *smoothed]
                for ball in self.balls(sigma)
            ]
        for encoder in (name for name in encoders if name in self.adaptive):
            keys += [
                PhotographKey(encoder, purifier, sigma, "adaptive", ball.norm, ball.epsilon)
                for purifier, sigma in smoothed
                for ball in self.balls(sigma)
            ]
        return keys
