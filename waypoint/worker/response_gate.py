"""A response's head on its way through filters: it leaves when all have seen it, and perhaps its body.

The exchange hears once: `send_head`, or `refuse` while nothing has left, or `break_off` later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from transport.http2.events import Header
from waypoint.worker.answers import Answer
from waypoint.worker.body_pipe import BodyPipe
from waypoint.worker.filters.filtered_pipe import FilteredPipe
from waypoint.worker.filters.host import Fault
from waypoint.worker.filters.stage import Stage

if TYPE_CHECKING:
    from waypoint.worker.attempt import Attempt
    from waypoint.worker.exchange import Exchange

_LENGTH: Final = b"content-length"


class ResponseGate:
    """One response. `pipe` takes its body at once."""

    def __init__(
        self,
        exchange: Exchange,
        stages: Sequence[Stage],
        attempt: Attempt,
        head: tuple[int, list[Header], bool],
    ) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._status, self._headers, self._is_ended = head
        self._stages = list(reversed(stages))
        self._is_over = False
        self._may_leave = False
        self._length: int | None = None
        self._has_output = False
        upstream = attempt.connection
        assert upstream is not None
        readers = [stage for stage in self._stages if stage.has("on_response_body")]
        self.pipe: BodyPipe
        if readers and not self._is_ended:
            pipe = FilteredPipe(upstream, attempt.stream_id, readers, "on_response_body", exchange.check_end)
            pipe.on_output, pipe.on_fault = self._on_output, self._on_fault
            self._waits_for_body = pipe.wants_whole
            self.pipe = pipe
            self._headers = [line for line in self._headers if line[0] != _LENGTH]
        else:
            self._waits_for_body = False
            self.pipe = BodyPipe(upstream, attempt.stream_id)
            self.pipe.is_all_received = self._is_ended

    def begin(self) -> None:
        self._through(0)

    def cancel(self) -> None:
        """What filters still say is not wanted."""
        self._is_over = True

    def _through(self, index: int) -> None:
        if index == len(self._stages):
            self._may_leave = True
            self._look()
            return

        def take(result: list[Header] | Fault) -> None:
            if self._is_over:
                return
            if isinstance(result, Fault):
                self._on_fault(result)
                return
            self._headers = result
            self._through(index + 1)

        self._stages[index].on_response(self._status, self._headers, take)

    def _look(self) -> None:
        if self._is_over or not self._may_leave or (self._waits_for_body and not self._has_output):
            return
        self._is_over = True
        headers = self._headers
        if self._length is not None and self._waits_for_body:
            headers = [*headers, (_LENGTH, b"%d" % self._length)]
        self._exchange.send_head(self._attempt, headers, self._is_ended)

    def _on_output(self, length: int | None) -> None:
        if not self._has_output:
            self._has_output = True
            self._length = length
            self._look()

    def _on_fault(self, fault: Fault) -> None:
        exchange = self._exchange
        exchange.outcome.policy = f"filter {fault.trouble.value}: {fault.text}"
        details = f"filter_failed{{{fault.trouble.value}}}"
        self._is_over = True
        exchange.respond(Answer(503, details, body=b"the response cannot be examined"))
