"""A request's wish for a certified answer with the tenant's settings filled in, and what cannot be voted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fs_runtime.options import Space, radius_for
from fs_runtime.votes import Choices, Fields, Pattern, Reading, ReadingError, WholeText
from server.errors import ApiError, invalid
from server.robustness.answer_options import AnswerOptions
from server.robustness.policy import AnswerRequirement, stricter
from server.settings.request import RequestSettings

_FUNCTIONS: dict[str, Callable[[Any], Reading]] = {"choices": Choices, "pattern": Pattern, "fields": Fields}


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How the answer of one request is voted on and judged.

    Attributes:
        reading: What is voted on.
        samples: Copies that are asked about, at most.
        radius: That the votes are to reach; where several are asked for, the largest.
        space: Of ``radius``.
        adaptive: Whether the votes end at it.
        requirements: What the answer must reach.
        full_budget: Whether no fewer copies are asked about than the server asks about by default, where it binds.
        binds: Whether a radius that the server requires binds.
        own_parameters: Whether the request chose anything that the certified radius depends on.
    """

    reading: Reading
    samples: int
    radius: float
    space: Space
    adaptive: bool
    requirements: list[AnswerRequirement]
    full_budget: bool = True
    binds: bool = False
    own_parameters: bool = False

    @property
    def may_reject(self) -> bool:
        """Whether the votes may end in an error, so that no byte may go out before they do."""
        return any("reject" in (item.on_failure, item.on_undecided) for item in self.requirements)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Texts of which the language model must say one; None for any text."""
        return self.reading.choices if isinstance(self.reading, Choices) else None


def answer_plan_of(
    options: AnswerOptions | None, settings: RequestSettings, sigma: float, default_sigma: float
) -> AnswerPlan | None:
    """Fills in what the request leaves open; None where neither request nor operator wants a certified answer.

    Args:
        options: Of the request.
        settings: The tenant's.
        sigma: σ of the request.
        default_sigma: σ of a request that says nothing.

    Raises:
        ApiError: The request asks for what the operator does not allow, or for what does not fit together.
    """
    binding = settings.answers_bind
    if options is None or not options.certify:
        if not binding:
            return None
        options = AnswerOptions(certify=True)
    if sigma == 0:
        raise invalid("an answer is certified by noise, and sigma is 0; give a larger one", "robustness.sigma")
    if binding and sigma != default_sigma:
        raise invalid(
            f"this server requires answers certified with sigma {default_sigma:g}, so sigma cannot be {sigma:g}; leave "
            "it out",
            "robustness.sigma",
            "policy_conflict",
        )
    usual = min(settings.answer_samples, settings.max_samples)
    samples = usual if options.samples is None else options.samples
    if samples > settings.max_samples:
        raise invalid(
            f"samples {samples} is above this server's limit of {settings.max_samples}", "robustness.answer.samples"
        )
    reading = _reading_of(options)
    if binding:
        _check_function(reading, settings)
    requirements = _requirements(options, settings, binding)
    asked = radius_for(sigma, None) if options.radius is None else options.radius
    named = [(item.radius, item.space) for item in requirements] or [(asked, options.space)]
    radius, space = max(named) if len({space for _, space in named}) == 1 else (asked, options.space)
    adaptive = bool(requirements) if options.adaptive is None else options.adaptive
    # Two spaces, neither of which implies the other: all copies are asked about.
    adaptive = adaptive and len({space for _, space in named}) == 1
    return AnswerPlan(
        reading,
        samples,
        radius,
        space,
        adaptive,
        requirements,
        full_budget=samples >= usual or not binding,
        binds=binding,
        own_parameters=options.own_parameters,
    )


def _reading_of(options: AnswerOptions) -> Reading:
    given = [name for name in _FUNCTIONS if getattr(options, name) is not None]
    if len(given) > 1:
        raise invalid(
            f"{given[0]} and {given[1]} cannot be voted on together; leave one of them out",
            f"robustness.answer.{given[1]}",
        )
    if not given:
        return WholeText()
    name = given[0]
    try:
        return _FUNCTIONS[name](getattr(options, name))
    except ReadingError as error:
        raise invalid(f"robustness.answer.{name} {error}", f"robustness.answer.{name}") from None


def _check_function(reading: Reading, settings: RequestSettings) -> None:
    name = f"pattern:{reading.pattern}" if isinstance(reading, Pattern) else reading.kind
    if name not in settings.answer_functions:
        raise invalid(
            f"this server requires certified answers, and a vote on {name} does not count there; vote on "
            f"{' or '.join(settings.answer_functions)}",
            "robustness.answer" if reading.kind == "text" else f"robustness.answer.{reading.kind}",
            "policy_conflict",
        )


def _requirements(options: AnswerOptions, settings: RequestSettings, binding: bool) -> list[AnswerRequirement]:
    """As for similarities: what the request asks for, and what the operator does, if that binds or is not replaced."""
    on_failure = options.on_failure or settings.on_answer_failure
    server_undecided = settings.on_answer_undecided or settings.on_answer_failure
    on_undecided = options.on_undecided or options.on_failure or server_undecided
    own = None
    if options.radius is not None:
        own = AnswerRequirement("request", options.radius, options.space, on_failure, on_undecided)
    least = settings.min_answer_radius
    if least is None:
        if own is None and "reject" in (options.on_failure, options.on_undecided):
            raise invalid("on_failure needs a radius to fail by; give one", "robustness.answer.radius")
        return [own] if own else []
    if not binding:
        return [own or AnswerRequirement("server", least, "model", on_failure, on_undecided)]
    strict = settings.on_answer_failure, server_undecided
    if own is None:
        strict = stricter(strict[0], on_failure), stricter(strict[1], on_undecided)
    bound = AnswerRequirement("server", least, "model", *strict)
    if own is None or bound.implies(own):
        return [bound]
    return [own] if own.implies(bound) else [bound, own]


# Fields of a chat request that a vote cannot be taken with, and values that have no effect.
_NO_EFFECT: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "temperature": (0,),
    "logprobs": (False,),
    "prompt_logprobs": (),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "use_beam_search": (False,),
    "best_of": (1,),
    "audio": (),
    "echo": (False,),
}
_FORMS = ("response_format", "structured_outputs", "guided_json", "guided_choice", "guided_regex", "guided_grammar")


def check_votable(body: Mapping[str, Any], plan: AnswerPlan, images: int) -> None:
    """Refuses a chat request whose answer cannot be voted on.

    Raises:
        ApiError: 400, naming the field.
    """
    if not images:
        raise invalid("an answer is certified against changes of images, and the request holds none", "messages")
    for name, values in _NO_EFFECT.items():
        if body.get(name) is not None and body[name] not in values:
            raise _not_votable(name, "each vote is the one answer that the model gives without chance or tools")
    given = [name for name in _FORMS if body.get(name) is not None]
    if plan.choices is not None and given:
        raise _not_votable(given[0], "choices are the form of the answer")
    if plan.reading.kind == "fields" and not _has_schema(body):
        raise invalid(
            'fields need answers that have them: give a response_format of type "json_schema"', "response_format"
        )
    thinking = body.get("chat_template_kwargs")
    if isinstance(thinking, Mapping) and (thinking.get("enable_thinking") or thinking.get("thinking")):
        raise _not_votable("chat_template_kwargs", "what the model thinks is not voted on, so it must not think")


def _not_votable(name: str, reason: str) -> ApiError:
    return invalid(f"{name} cannot be used with a certified answer: {reason}; leave it out", name)


def _has_schema(body: Mapping[str, Any]) -> bool:
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_schema":
        return True
    return isinstance(body.get("structured_outputs"), Mapping) and "json" in body["structured_outputs"]


def ballot_body(body: Mapping[str, Any], *, thinks: bool) -> dict[str, Any]:
    """The request that is sent for each copy: greedy, whole, without thoughts.

    Args:
        body: OpenAI's request.
        thinks: Whether the back end passes variables to the chat template, so that thinking is turned off.
    """
    vote = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "top_p")}
    vote["temperature"] = 0
    if thinks:
        vote["chat_template_kwargs"] = {"enable_thinking": False, **(body.get("chat_template_kwargs") or {})}
    return vote
