"""The agent's link to the control plane: reports what is attached, takes orders (proto/mycelia/node.proto).

Invariants: a report is sent at once after connecting and after each change of what it says; orders are
handed on whole; nothing here stops the agent: without the control plane it goes on with the orders it has,
and tries again with a bounded backoff for ever. Token and root are read anew at each attempt.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio
from google.protobuf.message import DecodeError

from node.attachment import CaptureOrder
from node.errors import BadSettingError, ControlPlaneError
from node.waypoints.order import WaypointOrder, orders_from
from proto.mycelia import node_pb2
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.grpc.channel import BidiStream, ChannelSettings, open_channel
from transport.grpc.tls import TlsTrust

METHOD = "/mycelia.node.NodeService/Attend"
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 15.0
RENEW_EVERY_S = 10.0  # a lease lives a minute
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_REGISTRATIONS: Mapping[int, str] = {
    node_pb2.REGISTERED: "registered",
    node_pb2.REFUSED: "refused",
    node_pb2.SHADOWED: "shadowed",
}

log = get_logger("node.control_plane")


@dataclass(frozen=True, slots=True)
class LinkSettings:
    host: str
    port: int
    root_cert: Path
    token_file: Path


class ControlPlaneLink:
    """`report` gives the present report, `wait_change` returns when it may be another, `apply` takes
    orders.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        report: Callable[[], node_pb2.NodeReport],
        wait_change: Callable[[], Awaitable[None]],
        apply: Callable[[Orders], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._report = report
        self._wait_change = wait_change
        self._apply = apply
        self._backoff_s = BACKOFF_FIRST_S
        self._has_lease = False
        self.problem = "not connected yet"  # empty while orders arrive

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            problem = "the control plane ended the call"
            try:
                await self._attend()
            except* MeshError as group:
                problem = "; ".join(sorted({str(error) for error in _leaves(group)}))
            if problem != self.problem:
                log.warning("control_plane_lost", problem=problem)
            self.problem = problem
            await trio.sleep(self._backoff_s * random.uniform(0.8, 1.2))
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_LAST_S)

    async def _attend(self) -> None:
        """One connection, from the first report to its end."""
        settings = self._settings
        trust = TlsTrust(roots_pem=_read(settings.root_cert, "root certificate"))
        token = _read(settings.token_file, "node token").strip()
        channel_settings = ChannelSettings(
            settings.host, settings.port, tls=trust, max_message_bytes=MAX_MESSAGE_BYTES
        )
        metadata = [("authorization", f"Bearer {token}")]
        async with (
            open_channel(channel_settings) as channel,
            channel.stream(METHOD, metadata=metadata) as call,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._send_reports, call)
            await self._take_orders(call)
            nursery.cancel_scope.cancel()

    async def _send_reports(self, call: BidiStream) -> None:
        sent: bytes | None = None
        while True:
            packed = self._report().SerializeToString(deterministic=True)
            if packed != sent:
                await call.send(packed)
                sent = packed
                continue
            with trio.move_on_after(RENEW_EVERY_S) as idle:
                await self._wait_change()
            if idle.cancelled_caught and self._has_lease:
                sent = None  # the same again renews the lease

    async def _take_orders(self, call: BidiStream) -> None:
        while (message := await call.receive()) is not None:
            orders = parse_orders(message)
            self._has_lease = orders.has_lease
            self._backoff_s = BACKOFF_FIRST_S
            if self.problem:
                log.info("control_plane_connected", orders=len(orders.captures))
                self.problem = ""
            await self._apply(orders)


@dataclass(frozen=True, slots=True)
class Orders:
    """All that the control plane wishes of this node, by uid and by key."""

    captures: Mapping[str, CaptureOrder]
    waypoints: Mapping[str, WaypointOrder]
    has_lease: bool = False  # workloads are registered, which is to be renewed


def parse_orders(message: bytes) -> Orders:
    """Raises ControlPlaneError."""
    try:
        orders = node_pb2.NodeOrders.FromString(message)
    except DecodeError as error:
        raise ControlPlaneError("orders of the control plane cannot be decoded") from error
    captures = {
        order.uid: CaptureOrder(
            order.capture,
            order.reason,
            _REGISTRATIONS.get(order.registration, ""),
            order.registration_problem,
        )
        for order in orders.orders
    }
    return Orders(captures, orders_from(list(orders.waypoints)), orders.lease_seconds > 0)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadSettingError(
            f"cannot read the {what} {path}: {reason}",
            next_step="copy root-cert.pem and the token of this node from the control plane",
        ) from error


def _leaves(group: BaseExceptionGroup[MeshError]) -> Iterator[MeshError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
