"""NodeService: node agents report what is attached and hear what to capture (proto/mycelia/node.proto)."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from google.protobuf.message import DecodeError

from config.access import NodeAuthenticator, calling_node, require_node, wall_clock
from config.calls import cancel_when_draining, next_message, send_message
from config.compile.resource import Delta
from config.errors import ReportRejected, StateDamaged, StateUnwritable
from config.nodes.book import NodeBook, read_report
from config.nodes.registrations import LEASE_S, NOTHING, Registrations, State
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
        lease_s: float = LEASE_S,
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
        self.registrations = Registrations(registry, lease_s)
        self._leases_changed = trio.Event()
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
        data = read_json(self._file)
        self.book = NodeBook.restore(data)
        said = {node: tuple(self.book.attached(node)) for node in self.book.nodes()}
        leases = data.get("registrations") if isinstance(data, dict) else None
        try:
            self.registrations.restore(leases, said, trio.current_time())
        except (KeyError, TypeError, ValueError) as error:
            raise StateDamaged(
                f"the leases in {self._file.name} are not of this program",
                next_step="restore it, or remove it: nodes report again when they connect",
            ) from error
        for node in self.book.nodes():
            self._tell(node, set())

    def registry_changed(self) -> None:
        """Lets agents know if their orders are others now. Never blocks."""
        self._settle()
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
        node = attendance.node
        before = self.book.captured(node)
        is_new = not self.book.says(node, workloads, waypoints)
        self.book.report(node, workloads, waypoints)
        if is_new:  # else it only renews leases
            self._reports += 1
            # On disk first: what others were told must outlive this process.
            await self._save()
        captured = self.book.captured(node)
        was_expired = self.registrations.is_expired(node)
        self.registrations.report(node, self.book.attached(node), trio.current_time())
        self._leases_changed.set()
        if is_new or was_expired:
            self._tell(node, before, is_alone=not was_expired)
        for place in sorted(captured ^ before):
            event = "workload_captured" if place in captured else "workload_released"
            log.info(event, node=attendance.node, namespace=place[0], name=place[1])
        attendance.is_owed = True
        attendance.wake.set()

    def _tell(self, node: str, before: set[tuple[str, str]], *, is_alone: bool = False) -> None:
        """Takes the node's word into the registry, and what that changes to the data plane.

        What was captured `before` counts as captured until its registration is gone, and a new one comes as
        captured: nobody is told of either as a workload that takes plaintext. `is_alone`: only this node's
        words have changed.
        """
        captured = self.book.captured(node)
        self._publish(self._registry.set_captured(node, captured | before))
        self._publish(self.registrations.settle(node if is_alone else None))
        self._publish(self._registry.set_captured(node, captured))
        self._publish(self._registry.waypoints_said(node, words(self.book.waypoints(node))))

    def _settle(self) -> None:
        self._publish(self.registrations.settle())

    def _publish(self, delta: Delta) -> None:
        if delta:
            self._on_delta(delta)

    async def keep_leases(self) -> None:
        """Ends the leases of nodes that are silent for too long, until cancelled."""
        while True:
            self._leases_changed = trio.Event()
            deadline = self.registrations.deadline()
            with trio.move_on_at(deadline if deadline is not None else math.inf):
                await self._leases_changed.wait()
                continue
            await self._end_leases()

    async def _end_leases(self) -> None:
        now, live = trio.current_time(), self.registrations.live()
        forgotten = self.registrations.tick(now)
        expired = live - self.registrations.live()
        self.book.forget_registered(forgotten)
        for node in forgotten:
            self.registrations.report(node, (), now)
        for event, nodes in (("lease_expired", expired), ("registrations_forgotten", forgotten)):
            for node in sorted(nodes):
                log.warning(event, node=node)
        self._reports += 1
        await self._save()
        for node in forgotten:
            self._tell(node, set())
        self.registry_changed()

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
            covered = self._reports
            snapshot = {**self.book.snapshot(), "registrations": self.registrations.snapshot()}
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
            orders = self._orders(attendance.node)
            packed = orders.SerializeToString(deterministic=True)
            if attendance.is_owed or packed != attendance.sent:
                attendance.is_owed, attendance.sent = False, packed
                await send_message(stream, packed)

    def _orders(self, node: str) -> pb.NodeOrders:
        orders = self.book.orders(node, self._registry)
        for order in orders.orders:
            verdict = self.registrations.verdict(node, order.uid)
            if verdict is NOTHING:
                continue
            order.registration = pb.RegistrationState.Value(verdict.state.name)
            order.registration_problem = verdict.problem
            if verdict.state is State.REFUSED:
                order.reason = f"registration refused: {verdict.problem}"
            orders.lease_seconds = max(1, int(self.registrations.lease_s))
        return orders
