"""What is required of certificates, and what follows where they fall short. Pure: no I/O, no clock.

A request is held to a list of *requirements*: that of the server, if it binds, and the one that the request asks for.
Each is judged by itself, and the strictest consequence is taken. So a request can add to what the server requires,
and can take nothing away, whatever it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from fs_runtime.options import Space
from server.settings.certificate import Action, FidelityAction

Decision = Literal["pass", Action]
Verdict = Literal["met", "undecided", "failed"]
Source = Literal["server", "request"]
_STRICTNESS: dict[Decision, int] = {"pass": 0, "flag": 1, "withhold": 2, "reject": 3}


@dataclass(frozen=True, slots=True)
class Requirement:
    """Every image's certified similarity must reach ``similarity`` at ``radius``.

    Attributes:
        kind: Tells it from other requirements in JSON.
        source: Who requires it.
        similarity: Smallest certified cosine similarity, in [0, 1].
        radius: ℓ2 radius at which it must be certified, in pixels of [0, 1].
        space: Where the radius is measured.
        on_failure: What happens where the estimate is below it too, so that more samples would not help.
        on_undecided: What happens where the estimate reaches it, but the samples ended before it was certified.
    """

    source: Source
    similarity: float
    radius: float
    space: Space
    on_failure: Action
    on_undecided: Action
    kind: Literal["similarity"] = "similarity"

    def implies(self, other: Requirement) -> bool:
        """Whether an image that falls short of ``other`` falls short of this one, with no milder consequence.

        Bounds and estimates fall with the radius. So whoever failed the other has failed this one, and whoever left
        the other undecided has left this one undecided or failed it.
        """
        if self.space != other.space or self.radius < other.radius or self.similarity < other.similarity:
            return False
        failure, undecided = _STRICTNESS[self.on_failure], _STRICTNESS[self.on_undecided]
        if (self.radius, self.similarity) != (other.radius, other.similarity):
            undecided = min(failure, undecided)
        return failure >= _STRICTNESS[other.on_failure] and undecided >= _STRICTNESS[other.on_undecided]


@dataclass(frozen=True, slots=True)
class FidelityRequirement:
    """Every image's smoothed features must keep a fidelity of at least ``fidelity``.

    Attributes:
        source: Who requires it.
        fidelity: Smallest cosine similarity, by its certified lower bound, with the clean features of the picture as
            sent; in (0, 1].
        on_failure: What happens where the features that are served are below it too.
        on_undecided: What happens where they reach it but the bound does not; the same as ``on_failure``.
        kind: Tells it from other requirements in JSON.
    """

    source: Source
    fidelity: float
    on_failure: FidelityAction
    on_undecided: FidelityAction
    kind: Literal["fidelity"] = "fidelity"

    @classmethod
    def of(cls, source: Source, fidelity: float, action: FidelityAction) -> FidelityRequirement:
        """One whose two consequences are the same."""
        return cls(source, fidelity, action, action)

    def implies(self, other: FidelityRequirement) -> bool:
        """Whether an image that falls short of ``other`` falls short of this one, with no milder consequence."""
        harder = self.fidelity >= other.fidelity
        return harder and _STRICTNESS[self.on_failure] >= _STRICTNESS[other.on_failure]


@dataclass(frozen=True, slots=True)
class AnswerRequirement:
    """The answer must be certified: no change of the images below a size turns the vote on it.

    Attributes:
        source: Who requires it.
        radius: ℓ2 size of a change of all images together, in pixels of [0, 1].
        space: Where it is measured.
        on_failure: What happens where the votes do not reach it, and would not with more copies.
        on_undecided: What happens where they would.
        kind: Tells it from other requirements in JSON.
    """

    source: Source
    radius: float
    space: Space
    on_failure: Action
    on_undecided: Action
    kind: Literal["answer"] = "answer"

    def implies(self, other: AnswerRequirement) -> bool:
        """Whether an answer that falls short of ``other`` falls short of this one, with no milder consequence."""
        if self.space != other.space or self.radius < other.radius:
            return False
        failure, undecided = _STRICTNESS[self.on_failure], _STRICTNESS[self.on_undecided]
        if self.radius != other.radius:
            undecided = min(failure, undecided)
        return failure >= _STRICTNESS[other.on_failure] and undecided >= _STRICTNESS[other.on_undecided]


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """The operator's settings for a tenant; ``radius`` does not depend on what the request asks for."""

    similarity: float | None
    radius: float
    space: Space
    on_failure: Action
    on_undecided: Action
    binds: bool
    fidelity: float | None = None
    on_low_fidelity: FidelityAction = "flag"

    @property
    def is_binding(self) -> bool:
        """Whether there is a minimum that requests cannot do without."""
        return self.binds and not (self.similarity is None and self.fidelity is None)


@dataclass(frozen=True, slots=True)
class AskedPolicy:
    """What a request asks for; ``radius`` and ``space`` are those of its certificate."""

    similarity: float | None
    radius: float
    space: Space
    on_failure: Action | None
    on_undecided: Action | None
    fidelity: float | None = None
    on_low_fidelity: FidelityAction | None = None


def requirements_of(server: ServerPolicy, asked: AskedPolicy) -> list[Requirement]:
    """What the images of a request must reach, without what another requirement implies.

    * Without a minimum of its own, a request is held to the server's, and may make its consequences stricter.
    * With one, it is held to its own, and to the server's too if that binds.
    """
    on_failure = asked.on_failure or server.on_failure
    on_undecided = asked.on_undecided or asked.on_failure or server.on_undecided
    own = None
    if asked.similarity is not None:
        own = Requirement("request", asked.similarity, asked.radius, asked.space, on_failure, on_undecided)
    if server.similarity is None:
        return [own] if own else []
    if not server.binds:
        default = Requirement("server", server.similarity, asked.radius, asked.space, on_failure, on_undecided)
        return [own or default]
    strict_failure, strict_undecided = server.on_failure, server.on_undecided
    if own is None:
        strict_failure = stricter(strict_failure, on_failure)
        strict_undecided = stricter(strict_undecided, on_undecided)
    bound = Requirement("server", server.similarity, server.radius, server.space, strict_failure, strict_undecided)
    if own is None or bound.implies(own):
        return [bound]
    return [own] if own.implies(bound) else [bound, own]


def fidelity_requirements_of(server: ServerPolicy, asked: AskedPolicy) -> list[FidelityRequirement]:
    """What smoothing must leave of the images of a request, by the same rules as :func:`requirements_of`."""
    action = asked.on_low_fidelity or server.on_low_fidelity
    own = None if asked.fidelity is None else FidelityRequirement.of("request", asked.fidelity, action)
    if server.fidelity is None:
        return [own] if own else []
    if not server.binds:
        return [own or FidelityRequirement.of("server", server.fidelity, action)]
    strict = server.on_low_fidelity if own else stricter(server.on_low_fidelity, action)
    bound = FidelityRequirement.of("server", server.fidelity, strict)
    if own is None or bound.implies(own):
        return [bound]
    return [own] if own.implies(bound) else [bound, own]


_AnyAction = TypeVar("_AnyAction", bound=Action)


def stricter(one: _AnyAction, other: _AnyAction) -> _AnyAction:
    """The stricter of two actions: flag, withhold, reject."""
    return max(one, other, key=_STRICTNESS.__getitem__)


AnyRequirement = Requirement | FidelityRequirement
"""What every image of a request must reach."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one image about a requirement, at its radius if it has one.

    Attributes:
        certified: Certified value; None where nothing is certified.
        estimate: Of a similarity, the plug-in estimate of its bound, without confidence; None where there is none. Of
            a fidelity, that of the features that are served.
        full_budget: Whether the image was given as many samples as the server gives by default. With fewer, the
            sender chose that they would end, and "undecided" would be a way around ``on_failure``.
    """

    certified: float | None
    estimate: float | None
    full_budget: bool = True


def judge(requirement: AnyRequirement, evidence: Evidence) -> Verdict:
    """Whether a requirement is met. ``met`` is certified; the other two are told apart by an estimate."""
    wanted = requirement.similarity if requirement.kind == "similarity" else requirement.fidelity
    if evidence.certified is not None and evidence.certified >= wanted:
        return "met"
    within_reach = evidence.estimate is not None and evidence.estimate >= wanted
    return "undecided" if within_reach and evidence.full_budget else "failed"


def consequence(requirements: Sequence[AnyRequirement | AnswerRequirement], verdicts: Sequence[Verdict]) -> Decision:
    """What the verdicts on one image or answer, one for each requirement, lead to: the strictest of all."""
    steps: list[Decision] = ["pass"]
    for requirement, verdict in zip(requirements, verdicts, strict=True):
        if verdict != "met":
            steps.append(requirement.on_failure if verdict == "failed" else requirement.on_undecided)
    return strictest(steps)


def strictest(decisions: Sequence[Decision]) -> Decision:
    """The strictest of some decisions: that of a request, from those of its images. ``pass`` for none."""
    return max(decisions, key=_STRICTNESS.__getitem__, default="pass")
