"""Stand-ins for the parts of the control process that a test is not about."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dataplane.control.workers import WorkerPool
from proto.mycelia import worker_pb2 as pb
from transport.netns import NetworkNamespace
from transport.spiffe import SpiffeId


class NoEvents:
    """Worker events that nobody needs."""

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]:
        return iter(())

    def on_up(self, index: int) -> None: ...
    def on_lost(self, index: int) -> None: ...
    def on_message(self, index: int, message: pb.ToControl) -> None: ...


class RecordingPool(WorkerPool):
    """A pool without processes: it remembers what it would have sent and closes the descriptors."""

    def __init__(self, *live: int) -> None:
        super().__init__(len(live), NoEvents(), lambda _: ("false",))
        self.workers = set(live)
        self.sent: list[tuple[int | None, pb.ToWorker]] = []

    @property
    def live(self) -> frozenset[int]:
        return frozenset(self.workers)

    def broadcast(self, message: pb.ToWorker) -> None:
        self.sent.append((None, message))

    def send(self, index: int, message: pb.ToWorker, descriptor: int | None = None) -> None:
        if descriptor is not None:
            os.close(descriptor)
        self.sent.append((index, message))

    def taken(self) -> list[tuple[int | None, str, str]]:
        """(worker, kind, uid) of what was sent since the last call."""
        sent, self.sent = self.sent, []
        summary: list[tuple[int | None, str, str]] = []
        for index, message in sent:
            kind = message.WhichOneof("message")
            assert kind is not None
            summary.append((index, kind, str(getattr(getattr(message, kind), "uid", ""))))
        return summary


class Identities:
    """Remembers which identities are wanted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def want(self, identity: SpiffeId) -> None:
        self.calls.append(("want", identity.service_account))

    def forget(self, identity: SpiffeId) -> None:
        self.calls.append(("forget", identity.service_account))


def namespace(number: int = 0) -> NetworkNamespace:
    """A real handle (on our own namespace) that pretends to be on another one."""
    made = NetworkNamespace.current()
    if number:
        made.identity = (0, number)
    return made
