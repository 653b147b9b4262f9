"""What an answer says of one image."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fs_runtime.engine import CacheOutcome
from fs_runtime.receipts import Receipt
from fs_runtime.robustness import ImageRobustness
from server.robustness.policy import Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one image did at one requirement.

    Attributes:
        verdict: ``met``: certified. ``undecided``: the estimate reaches it, the certificate does not. ``failed``.
        certified: Certified similarity at the requirement's radius, or certified fidelity; null for none.
        estimate: The same with estimates in place of bounds, or the fidelity of what is served: not certified.
    """

    verdict: Verdict
    certified: float | None
    estimate: float | None


@dataclass(frozen=True, slots=True)
class ImageEntry(ImageRobustness):
    """The certificate of one image, what the cache did for it, and its receipt if one was asked for.

    Attributes:
        judgements: One for each requirement of the request, in the same order.
        withheld: Whether the language model was given a notice in place of this image.
        spectral_left_out: Whether ``spectral`` had no effect, since the sketch that it takes would be too large.
    """

    cache: CacheOutcome | None = None
    receipt: Receipt | None = None
    judgements: tuple[Judgement, ...] = ()
    withheld: bool = False
    spectral_left_out: bool = False

    @classmethod
    def of(
        cls,
        certificate: ImageRobustness,
        cache: CacheOutcome | None,
        receipt: Receipt | None,
        judgements: tuple[Judgement, ...] = (),
        *,
        withheld: bool = False,
        spectral_left_out: bool = False,
    ) -> ImageEntry:
        """Puts them together."""
        values = {part.name: getattr(certificate, part.name) for part in fields(ImageRobustness)}
        return cls(
            **values,
            cache=cache,
            receipt=receipt,
            judgements=judgements,
            withheld=withheld,
            spectral_left_out=spectral_left_out,
        )
