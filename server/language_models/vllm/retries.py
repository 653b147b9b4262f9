"""When a request is sent once more, and where: decided without I/O."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum

from server.language_models.vllm.pool import Server


class Outcome(StrEnum):
    """What became of one request at one server."""

    ANSWERED = "answered"
    REFUSED = "refused"  # the request's own fault
    UNREACHABLE = "unreachable"  # no connection, so nothing was sent
    BUSY = "busy"  # the server says that it takes no more, so nothing was done
    FAILED = "failed"  # an error of the server
    BROKEN_OFF = "broken_off"  # the connection was lost
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"  # our client left, or the gateway stops

    @property
    def is_server_fault(self) -> bool:
        """Whether the breaker counts it as a failure. A refused connection is the health check's business."""
        return self in (Outcome.FAILED, Outcome.BROKEN_OFF, Outcome.TIMED_OUT)

    @property
    def is_retryable(self) -> bool:
        """Whether another server may be asked. Chat completions have no effect but their answer, so all of these are
        safe as long as the client has got no byte of one."""
        return self not in (Outcome.ANSWERED, Outcome.REFUSED, Outcome.WITHDRAWN)


class RetryBudget:
    """Bounds what retries add to the load: at most ``reserve`` at once, and ``ratio`` of the requests on the whole.

    Args:
        reserve: Retries at hand in the beginning, and the most that can be saved up.
        ratio: What each request adds.
    """

    def __init__(self, reserve: float, ratio: float = 0.2) -> None:
        self._reserve = reserve
        self._ratio = ratio
        self._balance = reserve

    @property
    def balance(self) -> float:
        """Retries at hand."""
        return self._balance

    def deposit(self) -> None:
        """A request arrived."""
        self._balance = min(self._balance + self._ratio, self._reserve)

    def withdraw(self) -> bool:
        """Whether one more retry may be made; it counts as made."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True


@dataclass(frozen=True, slots=True)
class ServerPreference:
    """Where a request may go.

    Attributes:
        avoid: Servers to take only if there is no other.
        exclude: Servers not to take.
    """

    avoid: frozenset[Server] = frozenset()
    exclude: frozenset[Server] = frozenset()


def attempts(budget: RetryBudget, max_retries: int) -> Generator[ServerPreference, tuple[Server, Outcome], None]:
    """The attempts of one request: yields where each may go, is sent what became of it, and ends with the last one.

    Only what was sent and may have cost a server something counts as a retry: a refused connection does not, and leads
    to the next server, each at most once.
    """
    budget.deposit()
    preference = ServerPreference()
    while True:
        server, outcome = yield preference
        if not outcome.is_retryable:
            return
        if outcome is not Outcome.UNREACHABLE:
            if max_retries == 0 or not budget.withdraw():
                return
            max_retries -= 1
        # A connection that broke off may have been a kept one that the server had closed: then it may serve again.
        if outcome is Outcome.BROKEN_OFF and server not in preference.avoid:
            preference = ServerPreference(preference.avoid | {server}, preference.exclude)
        else:
            preference = ServerPreference(preference.avoid, preference.exclude | {server})
