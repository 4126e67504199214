"""May a failed attempt be made again, where, and when? (waypoint-facts 6, issue 3 point 4)

Two kinds of answer:

* a rule with a retry policy follows its conditions, by Envoy's names (`_REASONS`);
* without conditions only what was provably never processed is repeated: no connection, REFUSED_STREAM,
  GOAWAY above the stream's id, a reset before the request's head was sent. A reset or lost connection after
  that, and a try that took too long, is repeated only if the method is idempotent (RFC 9110 9.2.2): the
  application may have acted already. Statuses that the policy lists are repeated besides (HTTPRoute's codes).

In both nothing is repeated once the response's head went to the client, when the attempts are used up, when
the body that was sent is no longer held, or when the budget is spent.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from waypoint.state.flags import Flag
from waypoint.state.rules import RetryPolicy

MAXIMUM_BODY_BYTES: Final = 1 << 20
DEFAULT_ATTEMPTS: Final = 2
MAXIMUM_SELECTIONS: Final = 5
UNLIMITED: Final = (1 << 32) - 1

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_Host = TypeVar("_Host")


class Failure(enum.Enum):
    """How an attempt ended without a response that could be forwarded; RESPONSE if there is one."""

    RESPONSE = "response"
    CONNECT = "connect"  # no connection: refused, timed out, TLS or tunnel refused
    REFUSED_STREAM = "refused_stream"
    GOAWAY = "goaway"  # the stream's id is above the last one the peer will process
    RESET_BEFORE_REQUEST = "reset_before_request"  # nothing of the request left this proxy
    RESET = "reset"  # reset or connection lost after the request's head was sent, before the response's
    PER_TRY_TIMEOUT = "per_try_timeout"
    OVERFLOW = "overflow"  # a circuit breaker refused it here


# Whatever the policy says: these cannot have been processed.
_NEVER_PROCESSED = frozenset(
    (Failure.CONNECT, Failure.REFUSED_STREAM, Failure.GOAWAY, Failure.RESET_BEFORE_REQUEST)
)

# What an outcome without a response counts as; `refused-stream` includes GOAWAY, which promises the same.
_REASONS: Final[dict[Failure, frozenset[str]]] = {
    Failure.RESPONSE: frozenset(),
    Failure.CONNECT: frozenset(("connect-failure", "5xx", "gateway-error", "reset", "reset-before-request")),
    Failure.REFUSED_STREAM: frozenset(("refused-stream", "5xx", "gateway-error", "reset")),
    Failure.GOAWAY: frozenset(("refused-stream", "5xx", "gateway-error", "reset")),
    Failure.RESET_BEFORE_REQUEST: frozenset(("reset-before-request", "5xx", "gateway-error", "reset")),
    Failure.RESET: frozenset(("5xx", "gateway-error", "reset")),
    Failure.PER_TRY_TIMEOUT: frozenset(("5xx", "gateway-error")),
    Failure.OVERFLOW: frozenset(),
}

_GRPC_CONDITIONS: Final = {
    1: "cancelled", 4: "deadline-exceeded", 8: "resource-exhausted", 13: "internal", 14: "unavailable"
}  # fmt: skip

# Istio's default for a policy that counts attempts but names no conditions of its own is not safe for every
# method ("cancelled", "unavailable" may follow processing); ours is the rule in the module's head.
DEFAULT_POLICY: Final = RetryPolicy(attempts=DEFAULT_ATTEMPTS)
NO_RETRIES: Final = RetryPolicy(attempts=0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `grpc_status` only from a response's head (trailers-only), not from trailers."""

    failure: Failure
    status: int = 0
    grpc_status: int | None = None
    is_rate_limited: bool = False  # the response carries x-envoy-ratelimited


@dataclass(frozen=True, slots=True)
class Attempt:
    """Where the exchange stands. `retries_made` does not count the first try."""

    method: bytes
    retries_made: int
    has_forwarded_head: bool = False
    is_body_held: bool = True  # all of the body that was sent so far could be sent again


class Denial(enum.Enum):
    """Why an attempt is not repeated."""

    NOT_FAILED = "not_failed"
    CONDITION = "condition"
    NOT_IDEMPOTENT = "not_idempotent"
    FORWARDED = "forwarded"
    EXHAUSTED = "exhausted"
    BODY = "body"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class RetryVerdict:
    """`denial` is None if the attempt is to be repeated; `flag` is what the log gains by a denial."""

    denial: Denial | None
    flag: Flag = Flag.NONE

    @property
    def is_granted(self) -> bool:
        return self.denial is None


_GRANTED = RetryVerdict(None)
_DENIED = {denial: RetryVerdict(denial) for denial in Denial}
_EXHAUSTED = RetryVerdict(Denial.EXHAUSTED, Flag.RETRY_LIMIT)


def judge(policy: RetryPolicy, outcome: Outcome, attempt: Attempt) -> RetryVerdict:
    """May it be tried again? The caller asks `Budget` next."""
    if outcome.failure is Failure.RESPONSE and not _may_be_failure(policy, outcome):
        return _DENIED[Denial.NOT_FAILED]
    if attempt.has_forwarded_head:
        return _DENIED[Denial.FORWARDED]
    denial = _condition(policy, outcome, attempt.method)
    if denial is not None:
        return _DENIED[denial]
    if attempt.retries_made >= policy.attempts:
        return _EXHAUSTED if policy.attempts else _DENIED[Denial.EXHAUSTED]
    if not attempt.is_body_held:
        return _DENIED[Denial.BODY]
    return _GRANTED


def _may_be_failure(policy: RetryPolicy, outcome: Outcome) -> bool:
    return (
        outcome.status >= 400
        or bool(outcome.grpc_status)
        or outcome.is_rate_limited
        or outcome.status in policy.statuses
    )


def _condition(policy: RetryPolicy, outcome: Outcome, method: bytes) -> Denial | None:
    if not policy.on:
        if outcome.failure in _NEVER_PROCESSED:
            return None
        if outcome.failure in (Failure.RESET, Failure.PER_TRY_TIMEOUT):
            return None if method in _IDEMPOTENT else Denial.NOT_IDEMPOTENT
    return None if _is_listed(policy, outcome) else Denial.CONDITION


def _is_listed(policy: RetryPolicy, outcome: Outcome) -> bool:
    if outcome.failure is not Failure.RESPONSE:
        return not policy.on.isdisjoint(_REASONS[outcome.failure])
    if outcome.is_rate_limited:
        return "envoy-ratelimited" in policy.on  # else that header forbids a repetition
    return _is_listed_status(policy, outcome.status) or (
        outcome.grpc_status is not None and _GRPC_CONDITIONS.get(outcome.grpc_status) in policy.on
    )


def _is_listed_status(policy: RetryPolicy, status: int) -> bool:
    """A list of statuses speaks for itself: `retriable-status-codes` need not be named beside it."""
    return (
        status in policy.statuses
        or ("5xx" in policy.on and 500 <= status <= 599)
        or ("gateway-error" in policy.on and status in (502, 503, 504))
        or ("retriable-4xx" in policy.on and status == 409)
    )


def backoff_s(policy: RetryPolicy, retry: int, random: float) -> float:
    """Full jitter before retry 1, 2, ...: anywhere in [0, min((2^n - 1)·B, 10·B))."""
    return random * policy.backoff_s * min((1 << min(retry, 8)) - 1, 10)


def may_hold_body(held_bytes: int, further_bytes: int) -> bool:
    """Whether `further_bytes` may join the held body; if not, the body is let go and nothing is repeated."""
    return held_bytes + further_bytes <= MAXIMUM_BODY_BYTES


def is_within_budget(
    active_retries: int,
    active_requests: int,
    *,
    percent: float | None = None,
    minimum: int = 3,
    maximum: int = UNLIMITED,
) -> bool:
    """Whether one more retry may be in flight at a destination.

    With `percent` (a budget): less than max(minimum, percent of `active_requests`), which includes pending
    ones and retries; it replaces the circuit breaker's `maximum`.
    """
    if percent is None:
        return active_retries < maximum
    return active_retries < max(minimum, int(percent * active_requests / 100))


def choose_other(
    choose: Callable[[], _Host | None], tried: Collection[_Host], *, may_repeat: bool = False
) -> _Host | None:
    """A host not tried before, if one of five selections finds it; else the last selected."""
    host = choose()
    if may_repeat or not tried:
        return host
    for _ in range(MAXIMUM_SELECTIONS - 1):
        if host is None or host not in tried:
            break
        host = choose()
    return host
