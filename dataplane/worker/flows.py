"""Flow records: one for each finished or refused connection, on their way to the control process's access
log."""

from __future__ import annotations

import time
from collections.abc import Callable

from dataplane.worker.records import RecordQueue, joined
from proto.mycelia import worker_pb2 as pb
from transport.reactor import Reactor

Outcome = pb.Flow.Outcome
COMPLETE = pb.Flow.COMPLETE
FAILED = pb.Flow.FAILED
REFUSED = pb.Flow.REFUSED
OPENED = pb.Flow.OPENED


class FlowTemplate:
    """What the records of all connections between two ends have in common, encoded once."""

    __slots__ = ("encoded",)

    def __init__(self, **fields: str | bool) -> None:
        self.encoded = pb.Flow(**fields).SerializeToString()  # type: ignore[arg-type]  # checked by protobuf


class FlowQueue(RecordQueue):
    """Collects records; `send` gets each batch and says whether there was room for it."""

    def __init__(
        self, reactor: Reactor, send: Callable[[pb.ToControl], bool], *, limit: int, is_on: bool
    ) -> None:
        super().__init__(reactor, send, _pack, limit=limit, is_on=is_on)

    def add(self, template: FlowTemplate, flow: pb.Flow) -> None:
        """`flow` holds what differs from the template; its time is set here."""
        if not self.is_on or not self.has_room:
            return
        flow.time = time.time()
        self.put(template.encoded + flow.SerializeToString())


def _pack(records: list[bytes], dropped: int) -> pb.ToControl:
    flows = pb.Flows.FromString(joined(records))
    flows.dropped = dropped
    return pb.ToControl(flows=flows)
