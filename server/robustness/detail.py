"""What is certified for a request, in words: the field ``detail``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from fs_runtime.rounding import at_least

if TYPE_CHECKING:
    from server.robustness.answer_entry import AnswerEntry, CertifiedValue
    from server.robustness.entry import ImageEntry

# Below it an answer is no longer about the picture: DINOv2 has 0.37 at sigma 0.5 without purifier, and different
# photographs share more than that. It is of the encoder's features as they are: with the mean taken off, and behind a
# projector, different pictures share less, and what is left of a picture is told by the floor alone.
_LITTLE = 0.6


def detail_of(images: Sequence[ImageEntry]) -> str:
    """Sums up the images of one request for the person who reads it."""
    if not images:
        return "nothing to certify: the request holds no image"
    parts = [_certified(images)]
    if weak := [i for i, image in enumerate(images) if _says_little(image)]:
        image = images[weak[0]]
        assert image.floor is not None  # noqa: S101 (it says little beside the floor)
        parts.append(
            f"the certified similarity of {_named(weak)} ({at_least(_best(image))} for the first of them) is no more "
            f"than what different pictures have by an estimate ({image.floor.mean:.3f} on average, 95% of them up to "
            f"{image.floor.high:.3f}), so it does not say that the picture stays itself"
        )
    if lost := [i for i, image in enumerate(images) if _is_lost(image)]:
        parts.append(_what_is_lost(images[lost[0]], _named(lost)))
    if withheld := [i for i, image in enumerate(images) if image.withheld]:
        parts.append(f"withheld from the language model, below what is required: {_named(withheld)}")
    if left_out := [i for i, image in enumerate(images) if image.spectral_left_out]:
        parts.append(
            f"the spread was not bounded for {_named(left_out)}, which has too many tokens for it: a smaller picture "
            "is certified more tightly"
        )
    outside = ((image.sigma, image.psm) for image in images if image.psm and not image.psm.sigma_in_range)
    for sigma, psm in islice(outside, 1):  # it is the same for all images
        parts.append(
            f"sigma {sigma:g} is outside what the purifier {psm.name} was trained for, {psm.sigma_low:g} to "
            f"{psm.sigma_high:g}: certificates hold, answers may suffer"
        )
    return "; ".join(parts)


def answer_detail(answer: AnswerEntry) -> str:
    """Sums up the vote on an answer for the person who reads it."""
    short = [value for value in answer.values if not value.satisfied]
    if not short:
        text = (
            f"the answer is certified: at every set of images within l2 distance {at_least(answer.radius.model)} of "
            "these, as the encoder reads them, the answer that is most frequent under noise is this one"
        )
    else:
        named = "the answer" if answer.function != "fields" else ", ".join(value.name for value in short)
        text = f"{named} is not certified at radius {answer.asked_radius.model:g}: {_why_not(short[0], answer)}"
        if len(short) == len(answer.values) == 1 and short[0].certified:
            text += f"; it is at {at_least(answer.radius.model)}"
    if not answer.returned:
        text += "; the text of this response is not the one that was voted for"
    return text


def _why_not(value: CertifiedValue, answer: AnswerEntry) -> str:
    if value.shortfall == "split":
        return "the first copies chose no value; ask so that answers are shorter, give choices, or a smaller sigma"
    if value.shortfall == "time":
        return (
            f"the votes ended after {answer.samples} copies for want of time; ask about fewer copies or a smaller one"
        )
    agreement = "none" if value.agreement is None else f"{value.agreement:.0%}"
    if value.shortfall == "samples":
        return f"{agreement} of the votes agree, so more copies than {answer.max_samples} would do"
    return f"{agreement} of the votes agree; ask for a smaller radius, another sigma, or give choices"


def _certified(images: Sequence[ImageEntry]) -> str:
    failed = [i for i, image in enumerate(images) if not image.certified]
    if not failed:
        return "every image has a certified similarity at its radius"
    return f"no similarity is certified at the radius for {_named(failed)}: {_remedy([images[i] for i in failed])}"


def _remedy(images: Sequence[ImageEntry]) -> str:
    """What would certify more."""
    if all(image.sigma == 0 for image in images):
        return "smoothing is off, since sigma is 0"
    remedies = ["a smaller radius"]
    if any(image.psm is None or image.sigma < image.psm.sigma_high for image in images):
        remedies.insert(0, "a larger sigma")
    if all(image.estimate.best is None for image in images):
        return f"more samples would hardly do; ask for {' or '.join(remedies)}"
    return f"ask for {', '.join(['more samples', *remedies[:-1]])} or {remedies[-1]}"


def _says_little(image: ImageEntry) -> bool:
    """Whether another picture may well be as similar (docs/guarantee.md, section 10).

    The floor is that of whole images, so nothing is said of a worst token beside it.
    """
    known = image.certified and image.granularity == "image"
    return known and image.floor is not None and _best(image) <= image.floor.high


def _is_lost(image: ImageEntry) -> bool:
    """Whether smoothing has taken the picture away: little is left, or no more than different pictures share."""
    if image.fidelity is None:
        return False
    served, plain = image.fidelity.served, image.stage == "encoder" and not image.centred
    return (plain and served < _LITTLE) or (image.floor is not None and served <= image.floor.high)


def _what_is_lost(image: ImageEntry, named: str) -> str:
    assert image.fidelity is not None  # noqa: S101 (it is lost by its fidelity)
    beside = ""
    if image.floor is not None:
        beside = f"; smoothed features of different pictures have up to {image.floor.high:.3f} with each other"
    return (
        f"smoothing at sigma {image.sigma:g} leaves little of {named}: the mean of the samples has a cosine "
        f"similarity of {image.fidelity.served:.3f} with the features of the picture as sent (the first of them"
        f"{beside}). "
        "Either noise has drowned the picture, and a smaller sigma or a better purifier shows more of it, or the "
        "picture was attacked, and smoothing took the attack away"
    )


def _best(image: ImageEntry) -> float:
    return image.smoothed.best or 0.0


def _named(numbers: Sequence[int]) -> str:
    return f"image {', '.join(map(str, numbers))}"
