"""Decides whether and where a failed request is retried, without I/O."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum

from server.language_models.vllm.pool import Server


class Outcome(StrEnum):
    """How one request at one server ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # a client error
    UNREACHABLE = "unreachable"  # no connection, so nothing was sent
    BUSY = "busy"  # the server rejected it because of overload, so nothing was done
    FAILED = "failed"  # an error of the server
    BROKEN_OFF = "broken_off"  # the connection was lost
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"  # our client left, or the gateway stops

    @property
    def is_server_fault(self) -> bool:
        """Whether the circuit breaker counts it as a failure. Refused connections are left to the health checks."""
        return self in (Outcome.FAILED, Outcome.BROKEN_OFF, Outcome.TIMED_OUT)

    @property
    def is_retryable(self) -> bool:
        """Whether the request may be sent again. Chat completions have no side effects, so a retry is safe until the
        client has got the first byte of an answer."""
        return self not in (Outcome.ANSWERED, Outcome.REFUSED, Outcome.WITHDRAWN)


class RetryBudget:
    """Limits the load that retries add: a burst of at most ``reserve``, and in the long run ``ratio`` per request.

    Args:
        reserve: Retries available at the start, which is also the maximum.
        ratio: Retries that each request adds.
    """

    def __init__(self, reserve: float, ratio: float = 0.2) -> None:
        self._reserve = reserve
        self._ratio = ratio
        self._balance = reserve

    @property
    def balance(self) -> float:
        """Retries available now."""
        return self._balance

    def deposit(self) -> None:
        """Adds the share of one new request."""
        self._balance = min(self._balance + self._ratio, self._reserve)

    def withdraw(self) -> bool:
        """Spends one retry. Returns False if none is available."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True


@dataclass(frozen=True, slots=True)
class ServerPreference:
    """Which servers a request may use.

    Attributes:
        avoid: Servers to take only if there is no other.
        exclude: Servers not to take.
    """

    avoid: frozenset[Server] = frozenset()
    exclude: frozenset[Server] = frozenset()


def attempts(budget: RetryBudget, max_retries: int) -> Generator[ServerPreference, tuple[Server, Outcome], None]:
    """Plans the attempts of one request: yields the preference of each, receives its outcome, and ends after the last.

    A refused connection does not count as a retry, since nothing was sent. It leads to the next server, each at most
    once.
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
        # A kept-alive connection may break because the server had just closed it; the server may still be fine.
        if outcome is Outcome.BROKEN_OFF and server not in preference.avoid:
            preference = ServerPreference(preference.avoid | {server}, preference.exclude)
        else:
            preference = ServerPreference(preference.avoid, preference.exclude | {server})
