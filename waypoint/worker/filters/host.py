"""Who runs a filter: the seam between the checks and the places where hooks are executed."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from waypoint.filters.api import Headers, Request, Response
from waypoint.filters.wire import RequestOutcome


class Trouble(enum.Enum):
    """Why a hook gave no result."""

    FAILED = "failed"  # it raised, or returned nonsense
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"  # not loaded, restarting, or too much is asked of it
    TOO_LARGE = "too_large"  # the body


@dataclass(frozen=True, slots=True)
class Fault:
    trouble: Trouble
    text: str


RequestDone: TypeAlias = Callable[[RequestOutcome | Fault], None]
ResponseDone: TypeAlias = Callable[[Headers | Fault], None]
BodyDone: TypeAlias = Callable[[bytes | Fault], None]


@dataclass(slots=True)
class Subject:
    """One exchange as a filter knows it: the same number for all of its hooks."""

    number: int
    request: Request
    response: Response


class FilterHost(Protocol):
    """Runs one version of one filter. `done` is called exactly once each, perhaps at once."""

    hooks: frozenset[str]
    problem: str  # why it cannot run; empty: it can, or is about to

    @property
    def is_ready(self) -> bool: ...

    def on_request(self, subject: Subject, done: RequestDone) -> None: ...

    def on_response(self, subject: Subject, done: ResponseDone) -> None: ...

    def on_body(self, hook: str, subject: Subject, chunk: bytes, is_last: bool, done: BodyDone) -> None: ...

    def over(self, subject: Subject) -> None:
        """Nothing more will be asked about this exchange."""

    def close(self) -> None:
        """Calls under way end as UNAVAILABLE."""
