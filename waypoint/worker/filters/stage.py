"""One filter's part in one exchange: its hooks called in the exchange's words, its faults dealt with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from transport.http2.events import Header
from waypoint.filters.api import Headers, Response, check_line
from waypoint.state.filters import FilterPolicy
from waypoint.worker.filters.host import Fault, Subject, Trouble

if TYPE_CHECKING:
    from waypoint.worker.filters.source import Running

# What is about the message's framing or the connection is not a filter's business.
KEPT: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    }
)


class Stage:
    """A filter that saw the request and may see the rest. `report` gets each fault, and counts it."""

    __slots__ = ("_report", "policy", "running", "subject")

    def __init__(
        self, running: Running, subject: Subject, policy: FilterPolicy, report: Callable[[Fault], None]
    ) -> None:
        self.running = running
        self.subject = subject
        self.policy = policy
        self._report = report

    def has(self, hook: str) -> bool:
        return hook in self.running.host.hooks

    def on_response(
        self, status: int, headers: list[Header], done: Callable[[list[Header] | Fault], None]
    ) -> None:
        """`done` gets the headers as they are now; with failure mode open the same as before for a fault."""
        if not self.has("on_response") and not self.has("on_response_body"):
            done(headers)
            return
        self.subject.response = Response(status, headers_of(headers))

        def take(result: Headers | Fault) -> None:
            try:
                changed = result if isinstance(result, Fault) else merged(headers, result)
            except ValueError as error:
                changed = Fault(Trouble.FAILED, f"its headers cannot be sent: {error}")
            if isinstance(changed, Fault):
                self._report(changed)
                done(headers if self.policy.fails_open else changed)
            else:
                done(changed)

        self.running.host.on_response(self.subject, take)

    def on_body(self, hook: str, chunk: bytes, is_last: bool, done: Callable[[bytes | Fault], None]) -> None:
        """The same for a piece of a body: with failure mode open it is passed on as it came."""

        def take(result: bytes | Fault) -> None:
            if isinstance(result, Fault):
                self.fault(result)
                done(chunk if self.policy.fails_open else result)
            else:
                done(result)

        self.running.host.on_body(hook, self.subject, chunk, is_last, take)

    def fault(self, fault: Fault) -> None:
        self._report(fault)


def headers_of(lines: list[Header]) -> Headers:
    """For a filter: without pseudo-headers."""
    return Headers.received(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in lines if name[:1] != b":"]
    )


def merged(before: list[Header], after: Headers) -> list[Header]:
    """What a filter left, with what it may not change as it was. Raises ValueError for impossible lines."""
    for name, value in after:
        check_line(name, value)
    kept = [line for line in before if line[0][:1] == b":" or line[0] in KEPT]
    changed = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in after]
    return kept + [line for line in changed if line[0] not in KEPT]
