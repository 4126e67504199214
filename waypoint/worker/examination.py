"""One request before the checks of its port: what they may see and change, and where it stands.

Invariants: checks run one after the other, each once; the exchange hears of the end once (`on_examined`)
unless the client goes first; a body that is held for a check is bounded by what the check asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transport.http2.events import Header
from waypoint.worker.answers import Answer
from waypoint.worker.checks import Check, Pending, ResponseHook
from waypoint.worker.headers import Request, value_of
from waypoint.worker.plan import Matched, Outcome, Source

if TYPE_CHECKING:
    from waypoint.worker.exchange import Exchange
    from waypoint.worker.filters.stage import Stage
    from waypoint.worker.ways import ServedPort

_CONTINUE: list[Header] = [(b":status", b"100")]


class _NotYet:
    """No result was given."""


_NOT_YET = _NotYet()


class Examination:
    """`credentials`: the claims of the token that was validated first, `credentials_all`: of each.

    `must_rematch`: a check changed what routing depends on, so the route is looked up again at the end.
    """

    __slots__ = (
        "_awaited_bytes",
        "_checks",
        "_early",
        "_ends",
        "_exchange",
        "_hooks",
        "_index",
        "_on_body_held",
        "_pending",
        "credentials",
        "credentials_all",
        "matched",
        "must_rematch",
        "stages",
    )

    def __init__(self, exchange: Exchange, checks: Sequence[Check], matched: Matched) -> None:
        self._exchange = exchange
        self._checks = checks
        self._index = 0
        self._pending: Pending | None = None
        self._early: Answer | _NotYet | None = None
        self._hooks: list[ResponseHook] | None = None
        self._awaited_bytes = 0
        self._on_body_held: Callable[[bytes, bool], None] | None = None
        self.matched = matched
        self.credentials: dict[str, Any] | None = None
        self.credentials_all: list[dict[str, Any]] = []
        self.must_rematch = False
        self.stages: tuple[Stage, ...] = ()
        self._ends: list[Callable[[], None]] | None = None

    # What a check may use

    @property
    def exchange(self) -> Exchange:
        return self._exchange

    @property
    def request(self) -> Request:
        """As it is routed on and sent; what a check changes in it is final."""
        return self._exchange.request

    @property
    def source(self) -> Source:
        return self._exchange.source

    @property
    def outcome(self) -> Outcome:
        return self._exchange.outcome

    @property
    def port(self) -> ServedPort:
        return self.matched.port

    @property
    def route_name(self) -> str:
        """`kind/namespace/name/rule`; empty where no rule matched."""
        return self.matched.route_name

    @property
    def is_body_ended(self) -> bool:
        """All of the request has come."""
        return self._exchange.request_pipe.is_all_received

    def add_response_hook(self, hook: ResponseHook) -> None:
        """Let `hook` change the fields of the response, own answers too, before they leave."""
        if self._hooks is None:
            self._hooks = []
        self._hooks.append(hook)

    def add_end_hook(self, hook: Callable[[], None]) -> None:
        """Let `hook` know when the exchange is over, whatever its end."""
        if self._ends is None:
            self._ends = []
        self._ends.append(hook)

    def add_stage(self, stage: Stage) -> None:
        """A filter that may see more of this exchange: the request's body now, the response later."""
        self.stages = (*self.stages, stage)
        if stage.has("on_request_body"):
            self._exchange.filter_request_body(stage)

    def hold_body(self, limit_bytes: int, callback: Callable[[bytes, bool], None]) -> None:
        """Call back with the body's first `limit_bytes`, or all of it, and whether it is all.

        Comes at once if they are there already. What was held is sent upstream afterwards as it came.
        """
        assert self._on_body_held is None, "one check at a time"
        self._awaited_bytes = limit_bytes
        self._on_body_held = callback
        self._ask_for_body()
        self.on_body()

    def _ask_for_body(self) -> None:
        """A client that waits for leave to send its body gets it here, as no upstream was asked yet."""
        request = self.request
        if value_of(request.headers, b"expect").lower() == b"100-continue":
            request.headers = [field for field in request.headers if field[0] != b"expect"]
            self._exchange.on_informational(_CONTINUE)

    # The exchange's part

    def begin(self) -> Answer | Pending | None:
        """Run the checks until one answers or waits; None: all have let it pass."""
        checks = self._checks
        while self._index < len(checks):
            check = checks[self._index]
            self._index += 1
            self._early = _NOT_YET
            result = check.examine(self)
            if result is not None and not isinstance(result, Answer):
                early = self._take_early()
                if isinstance(early, _NotYet):
                    self._pending = result
                    return result
                result = early
            if result is not None:
                return result
        return None

    def _take_early(self) -> Answer | _NotYet | None:
        return self._early

    def go_on(self, answer: Answer | None) -> None:
        """For a check that waited: its result. None: the request may pass."""
        if self._pending is None:
            assert isinstance(self._early, _NotYet), "once for each wait"
            self._early = answer  # its `examine` has not returned yet
            return
        self._pending = None
        self._on_body_held = None
        result = answer or self.begin()
        if result is None or isinstance(result, Answer):
            self._exchange.on_examined(result)

    def on_body(self) -> None:
        """A piece of the request's body has come, or its end."""
        callback = self._on_body_held
        if callback is None:
            return
        pipe = self._exchange.request_pipe
        if pipe.held_bytes >= self._awaited_bytes or pipe.is_all_received:
            self._on_body_held = None
            body = pipe.peek(self._awaited_bytes)
            callback(body, pipe.is_all_received and len(body) == pipe.held_bytes)
        else:
            pipe.credit_held()

    def change_response(self, status: int, headers: list[Header]) -> None:
        for hook in self._hooks or ():
            hook(status, headers)

    def end(self) -> None:
        """The exchange is over."""
        self.cancel()
        ends, self._ends = self._ends, None
        for hook in ends or ():
            hook()

    def cancel(self) -> None:
        """No check's result is wanted any more. Idempotent."""
        self._on_body_held = None
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
