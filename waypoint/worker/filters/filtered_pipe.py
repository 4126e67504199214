"""A body on its way through filters: piece by piece in order, one at a time, with bounded memory.

The sender gets credit for what was passed on or is kept for a filter that wants the whole body; never more
than it has sent. `on_output` is called before each piece that leaves, `on_fault` once, when a filter breaks
the body off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from transport.http2.events import Header
from waypoint.worker.body_pipe import BodyPipe, BodySource
from waypoint.worker.filters.host import Fault, Trouble
from waypoint.worker.filters.stage import Stage


class _Metered:
    """Gives the source no more credit than it is owed."""

    __slots__ = ("_source", "_source_id", "owed")

    def __init__(self, source: BodySource, source_id: int) -> None:
        self._source = source
        self._source_id = source_id
        self.owed = 0

    def consumed(self, stream_id: int, flow_bytes: int) -> None:  # noqa: ARG002 - there is one
        given = min(flow_bytes, self.owed)
        if given:
            self.owed -= given
            self._source.consumed(self._source_id, given)


class _Step:
    """One filter, and what it is still to get."""

    __slots__ = ("buffer", "is_passing", "limit", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.limit = stage.policy.whole_body_bytes
        self.buffer = bytearray()
        self.is_passing = False  # it failed, and lets pass


class FilteredPipe(BodyPipe):
    """`hook` is `on_request_body` or `on_response_body`."""

    __slots__ = (
        "_hook",
        "_is_broken",
        "_is_busy",
        "_metered",
        "_on_change",
        "_queue",
        "_steps",
        "on_fault",
        "on_output",
    )

    def __init__(
        self,
        source: BodySource,
        source_id: int,
        stages: Sequence[Stage],
        hook: str,
        on_change: Callable[[], None],
    ) -> None:
        self._metered = _Metered(source, source_id)
        super().__init__(self._metered, source_id)
        self._steps = [_Step(stage) for stage in stages]
        self._hook = hook
        self._on_change = on_change
        self._queue: deque[tuple[bytes, bool, list[Header] | None]] = deque()
        self._is_busy = False
        self._is_broken = False
        self.on_output: Callable[[int | None], None] = _nobody
        self.on_fault: Callable[[Fault], None] = _nobody

    def add(self, stage: Stage) -> None:
        """One more filter, after those that are there; before anything has gone through."""
        self._steps.append(_Step(stage))

    @property
    def wants_whole(self) -> bool:
        """Nothing leaves before the body has ended."""
        return any(step.limit for step in self._steps)

    def push(self, data: memoryview, flow_bytes: int, *, end: bool) -> None:
        self._metered.owed += flow_bytes
        if self.is_discarding or self._is_broken:
            if end:
                self.is_all_received = True
            self._settle_credit()
            return
        self._queue.append((bytes(data), end, None))
        self._go_on()

    def push_trailers(self, headers: list[Header]) -> None:
        self._queue.append((b"", True, headers))
        self._go_on()

    def discard(self) -> None:
        self._queue.clear()
        super().discard()
        self._settle_credit()

    def pump(self) -> None:
        super().pump()
        if not self.held_bytes:
            self._settle_credit()

    def _settle_credit(self) -> None:
        self._metered.consumed(0, self._metered.owed)

    def _go_on(self) -> None:
        while self._queue and not self._is_busy and not self._is_broken:
            chunk, is_last, trailers = self._queue.popleft()
            self._is_busy = True
            self._through(0, chunk, is_last, trailers)

    def _through(self, index: int, chunk: bytes, is_last: bool, trailers: list[Header] | None) -> None:
        """From filter to filter; each may take its time."""
        if index == len(self._steps):
            self._leave(chunk, is_last, trailers)
            return
        step = self._steps[index]
        if not step.is_passing and step.limit:
            step.buffer += chunk
            if len(step.buffer) > step.limit:
                self._too_large(step)
                if self._is_broken:
                    return
                chunk, step.buffer = bytes(step.buffer), bytearray()
            elif is_last:
                chunk, step.buffer = bytes(step.buffer), bytearray()
            else:
                self._settle_credit()  # it is kept here, and bounded
                self._through(index + 1, b"", False, None)
                return
        if step.is_passing or (not chunk and not is_last):
            self._through(index + 1, chunk, is_last, trailers)
            return

        def take(result: bytes | Fault) -> None:
            if isinstance(result, Fault):
                self._break(result)
            else:
                self._through(index + 1, result, is_last, trailers)

        step.stage.on_body(self._hook, chunk, is_last, take)

    def _too_large(self, step: _Step) -> None:
        fault = Fault(Trouble.TOO_LARGE, f"the body is larger than {step.limit} bytes")
        step.stage.fault(fault)
        if step.stage.policy.fails_open:
            step.is_passing = True
        else:
            self._break(fault)

    def _leave(self, chunk: bytes, is_last: bool, trailers: list[Header] | None) -> None:
        self._is_busy = False
        if self.is_discarding or self._is_broken:
            return
        if chunk or is_last:
            self.on_output(len(chunk) if is_last and trailers is None and not self.body_bytes else None)
            if chunk or trailers is None:
                super().push(memoryview(chunk), len(chunk), end=is_last and trailers is None)
            if trailers is not None:
                super().push_trailers(trailers)
        if not self.held_bytes:
            self._settle_credit()
        self._on_change()
        self._go_on()

    def _break(self, fault: Fault) -> None:
        self._is_broken = True
        self._is_busy = False
        self._queue.clear()
        self._settle_credit()
        self.on_fault(fault)


def _nobody(_: object) -> None:
    """Nobody wants to know."""
