"""The waypoint's port: when workers may open it, and whether all have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from dataplane.control.readiness import Readiness
from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger

LISTENING = "port 15008"
RETRY_S = 1.0


class Listeners:
    """Implements Places. Nothing is served before the mesh is known and a certificate is there: what a route
    or a policy would have forbidden must not slip through.
    """

    def __init__(
        self,
        readiness: Readiness,
        is_open: Callable[[], bool],
        broadcast: Callable[[pb.ToWorker], None],
        live: Callable[[], frozenset[int]],
    ) -> None:
        self.problem = ""
        self._readiness = readiness
        self._is_open = is_open
        self._broadcast = broadcast
        self._live = live
        self._listening: set[int] = set()
        self._is_closed = False
        self._retry = trio.Event()
        self._log = get_logger("listeners")

    def open(self) -> None:
        """From now on workers listen."""
        self._broadcast(pb.ToWorker(listen=pb.Listen()))

    def close(self) -> None:
        """Workers take nothing new any more: whoever asks is to choose another replica."""
        self._is_closed = True
        self._look()

    async def run(self) -> None:
        """Tries again where a worker could not listen, until cancelled."""
        while True:
            await self._retry.wait()
            self._retry = trio.Event()
            await trio.sleep(RETRY_S)
            if self._is_open():
                self.open()

    # Places

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]:
        self._listening.discard(index)
        if self._is_open():
            yield pb.ToWorker(listen=pb.Listen()), None

    def on_up(self) -> None:
        self._look()

    def on_lost(self, index: int) -> None:
        self._listening.discard(index)
        self._look()

    def on_result(self, index: int, result: pb.WorkloadResult) -> None:
        if result.error:
            if result.error != self.problem:
                self._log.error("not_listening", worker=index, reason=result.error)
            self.problem = result.error
            self._listening.discard(index)
            self._retry.set()
        else:
            self.problem = ""
            self._listening.add(index)
        self._look()

    def _look(self) -> None:
        live = self._live()
        if live and live <= self._listening and not self._is_closed:
            self._readiness.done(LISTENING)
        else:
            self._readiness.undone(LISTENING)
