"""Flow records: one for each finished or refused connection, on their way to the control process's access
log.

A bounded queue, sent in batches. When the control process is slow the newest records are lost and counted,
never waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proto.mycelia import worker_pb2 as pb
from transport.reactor import Reactor

Outcome = pb.Flow.Outcome
COMPLETE = pb.Flow.COMPLETE
FAILED = pb.Flow.FAILED
REFUSED = pb.Flow.REFUSED
OPENED = pb.Flow.OPENED

_FLUSH_S = 0.1
_BATCH = 256


class FlowTemplate:
    """What the records of all connections between two ends have in common, encoded once."""

    __slots__ = ("encoded",)

    def __init__(self, **fields: str | bool) -> None:
        self.encoded = pb.Flow(**fields).SerializeToString()  # type: ignore[arg-type]  # checked by protobuf


class FlowQueue:
    """Collects records; `send` gets each batch and says whether there was room for it."""

    def __init__(
        self, reactor: Reactor, send: Callable[[pb.ToControl], bool], *, limit: int, is_on: bool
    ) -> None:
        self._reactor = reactor
        self._send = send
        self._limit = limit
        self._records: list[bytes] = []
        self._dropped = 0
        self._is_flush_due = False
        self.is_on = is_on

    def add(self, template: FlowTemplate, flow: pb.Flow) -> None:
        """`flow` holds what differs from the template; its time is set here."""
        if not self.is_on:
            return
        if len(self._records) >= self._limit:
            self._dropped += 1
            return
        flow.time = time.time()
        self._records.append(template.encoded + flow.SerializeToString())
        if not self._is_flush_due:
            self._is_flush_due = True
            self._reactor.call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Send what there is, as far as the control process takes it."""
        self._is_flush_due = False
        records = self._records
        while records:
            batch = records[:_BATCH]
            message = pb.ToControl(flows=_flows(batch, self._dropped))
            if not self._send(message):
                break
            self._dropped = 0
            del records[:_BATCH]
        if records:
            self._is_flush_due = True
            self._reactor.call_later(_FLUSH_S, self.flush)


def _flows(records: list[bytes], dropped: int) -> pb.Flows:
    """The batch from encoded records: the wire form of a message is a concatenation of its fields."""
    pieces: list[bytes] = []
    for record in records:
        pieces.append(b"\x0a" + _varint(len(record)))  # field 1, length-delimited
        pieces.append(record)
    flows = pb.Flows.FromString(b"".join(pieces))
    flows.dropped = dropped
    return flows


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
