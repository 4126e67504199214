"""NodeService: node agents report what is attached and hear what to capture (proto/mycelia/node.proto)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from google.protobuf.message import DecodeError

from config.access import NodeAuthenticator, calling_node, require_node, wall_clock
from config.calls import cancel_when_draining, next_message, send_message
from config.compile.resource import Delta
from config.errors import ReportRejected, StateUnwritable
from config.nodes.book import NodeBook, read_report
from config.nodes.waypoints import read_waypoints, words
from config.registry.registry import Registry
from config.state_files import SAVE_RETRY_S, read_json, write_json
from proto.mycelia import node_pb2 as pb
from telemetry.logging import get_logger
from transport.grpc.server import CallContext, ServerStream, StreamHandler
from transport.grpc.status import GrpcError, GrpcStatus

METHOD: Final = "/mycelia.node.NodeService/Attend"
MAX_REPORT_BYTES: Final = 4 * 1024 * 1024

log = get_logger("nodes")


@dataclass(slots=True)
class Attendance:
    """One agent's stream. `is_owed` makes an answer go out even if the orders are the same."""

    node: str
    peer: str
    since: dt.datetime
    is_owed: bool = False
    sent: bytes | None = None
    wake: trio.Event = field(default_factory=trio.Event)


class NodeService:
    """`on_delta` is told what a report changed for the data plane."""

    def __init__(
        self,
        registry: Registry,
        nodes: NodeAuthenticator,
        file: Path,
        on_delta: Callable[[Delta], None],
        *,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        self._registry = registry
        self._nodes = nodes
        self._file = file
        self._on_delta = on_delta
        self._now = now
        self._saving = trio.Lock()
        self._saved = 0
        self._reports = 0
        self.book = NodeBook()
        self.attending: dict[int, Attendance] = {}
        self.save_problem = ""
        self._save_failed = trio.Event()

    @property
    def handlers(self) -> dict[str, StreamHandler]:
        """For GrpcServer's `streams`."""
        return {METHOD: self.attend}

    @property
    def request_limits(self) -> dict[str, int]:
        """For GrpcServer's `request_limits`."""
        return {METHOD: MAX_REPORT_BYTES}

    def restore(self) -> None:
        """Takes up what nodes said before this process started. Raises StateDamaged."""
        self.book = NodeBook.restore(read_json(self._file))
        for node in self.book.nodes():
            self._tell(node)

    def registry_changed(self) -> None:
        """Lets agents know if their orders are others now. Never blocks."""
        for attendance in self.attending.values():
            attendance.wake.set()

    async def attend(self, stream: ServerStream, context: CallContext) -> None:
        node = calling_node(self._nodes, context, self._now)
        attendance = Attendance(node, context.peer_address[0], self._now())
        self.attending[id(attendance)] = attendance
        log.info("node_connected", node=node, peer=attendance.peer)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_orders, stream, attendance)
                nursery.start_soon(cancel_when_draining, context, nursery.cancel_scope)
                while (message := await next_message(stream)) is not None:
                    await self._take_report(message, attendance)
                nursery.cancel_scope.cancel()
        finally:
            del self.attending[id(attendance)]
            log.info("node_gone", node=node, peer=attendance.peer)

    async def _take_report(self, message: bytes, attendance: Attendance) -> None:
        try:
            report = pb.NodeReport.FromString(message)
            workloads, waypoints = read_report(report), read_waypoints(report)
        except DecodeError as error:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "the report cannot be decoded") from error
        except ReportRejected as error:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, error.text) from error
        require_node(report.node, attendance.node)
        before = self.book.captured(attendance.node)
        self.book.report(attendance.node, workloads, waypoints)
        self._reports += 1
        # On disk first: what others were told must outlive this process.
        await self._save()
        captured = self.book.captured(attendance.node)
        self._tell(attendance.node)
        for place in sorted(captured ^ before):
            event = "workload_captured" if place in captured else "workload_released"
            log.info(event, node=attendance.node, namespace=place[0], name=place[1])
        attendance.is_owed = True
        attendance.wake.set()

    def _tell(self, node: str) -> None:
        """Takes the node's word into the registry, and what that changes to the data plane."""
        for delta in (
            self._registry.set_captured(node, self.book.captured(node)),
            self._registry.waypoints_said(node, words(self.book.waypoints(node))),
        ):
            if delta:
                self._on_delta(delta)

    async def keep_saved(self) -> None:
        """Tries again what could not be written, until cancelled."""
        while True:
            await self._save_failed.wait()
            self._save_failed = trio.Event()
            await trio.sleep(SAVE_RETRY_S)
            await self._save()

    async def _save(self) -> None:
        mine = self._reports
        async with self._saving:
            if self._saved >= mine:
                return  # somebody who waited less saved this report along with his
            covered, snapshot = self._reports, self.book.snapshot()
            try:
                await trio.to_thread.run_sync(write_json, self._file, snapshot)
            except StateUnwritable as error:
                # The mesh goes on; only a restart now would forget what was captured.
                if error.text != self.save_problem:
                    self.save_problem = error.text
                    log.error("captured_not_saved", error=error.text)  # noqa: TRY400 - no traceback
                self._save_failed.set()
                return
            if self.save_problem:
                log.info("captured_saved_again")
            self._saved, self.save_problem = covered, ""

    async def _give_orders(self, stream: ServerStream, attendance: Attendance) -> None:
        while True:
            await attendance.wake.wait()
            attendance.wake = trio.Event()
            if not attendance.is_owed and attendance.sent is None:
                continue  # no report yet
            orders = self.book.orders(attendance.node, self._registry)
            packed = orders.SerializeToString(deterministic=True)
            if attendance.is_owed or packed != attendance.sent:
                attendance.is_owed, attendance.sent = False, packed
                await send_message(stream, packed)
