"""The object ``robustness`` of an answer."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, Field

from server.robustness.answer_entry import AnswerEntry
from server.robustness.detail import answer_detail, detail_of
from server.robustness.entry import ImageEntry
from server.robustness.policy import AnswerRequirement, AnyRequirement, Decision, strictest


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
    requirements: list[AnyRequirement | AnswerRequirement] = Field(
        [], description="What every image had to reach, then, of kind answer, what the answer had to."
    )
    answer: AnswerEntry | None = Field(None, description="The vote on the answer; null where there was none.")
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
            requirements=[*(requirements or [])],
            images=images,
        )

    def with_answer(self, answer: AnswerEntry, requirements: list[AnswerRequirement]) -> Robustness:
        """With the vote on the answer, whose consequence counts if it is stricter.

        An answer that saw images which are withheld is not returned.
        """
        satisfied, decision, images = self.satisfied, self.decision, self.images
        if requirements:
            met = all(verdict == "met" for verdict in answer.verdicts)
            satisfied = met if satisfied is None else satisfied and met
            own = answer.decision(requirements)
            decision = strictest([*([decision] if decision else []), own])
            if own == "withhold":
                images = [replace(image, withheld=True) for image in images]
        if any(image.withheld for image in images):
            answer = replace(answer, returned=False)
        return self.model_copy(
            update={
                "answer": answer,
                "requirements": [*self.requirements, *requirements],
                "satisfied": satisfied,
                "decision": decision,
                "images": images,
                "detail": f"{answer_detail(answer)}; {detail_of(images)}",
            }
        )
