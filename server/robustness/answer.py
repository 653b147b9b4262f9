"""The object ``robustness`` of an answer."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.robustness.detail import detail_of
from server.robustness.entry import ImageEntry
from server.robustness.policy import AnyRequirement, Decision


class Robustness(BaseModel):
    """The object that is added to every answer.

    ``certified`` is true when every image has a bound at its radius, false when one has none, and null when there
    was no image, hence nothing to certify.
    """

    certified: bool | None
    satisfied: bool | None = Field(None, description="Whether every image met every requirement; null if none.")
    decision: Decision | None = Field(
        None, description="What followed: pass, flag, withhold or reject; null without image or requirement."
    )
    detail: str
    requirements: list[AnyRequirement] = Field([], description="What every image had to reach.")
    images: list[ImageEntry]

    @classmethod
    def of(
        cls,
        images: list[ImageEntry],
        requirements: list[AnyRequirement] | None = None,
        decision: Decision | None = None,
    ) -> Robustness:
        """Sums up the images of one request."""
        detail = detail_of(images)
        if not images:
            return cls(certified=None, detail=detail, images=[])
        verdicts = [judgement.verdict for image in images for judgement in image.judgements]
        return cls(
            certified=all(image.certified for image in images),
            satisfied=all(verdict == "met" for verdict in verdicts) if verdicts else None,
            decision=decision,
            detail=detail,
            requirements=requirements or [],
            images=images,
        )
