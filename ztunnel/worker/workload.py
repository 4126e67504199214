"""One enrolled workload: its listeners, pool, open connections and cached plans.

Invariants: sockets of a workload are made in its namespace only; a namespace that is gone makes errors for
this workload and for no other; closing it leaves no socket, timer or descriptor behind.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from dataplane.state.model import Workload
from dataplane.worker.acceptor import Acceptor, Starter
from dataplane.worker.errors import ConnectionDrained
from transport.errors import MeshError
from transport.hbone.connect import ConnectRequest, Headers
from transport.hbone.pool import HbonePool
from transport.hbone.server import HboneServerConnection
from transport.hbone.tunnel import TunnelStream
from transport.netns import NetworkNamespace
from transport.reactor import Timer
from transport.sockets import Listener, begin_connect, open_listener, set_accepted_options
from ztunnel.state.connection_limits import LimitBook
from ztunnel.state.routing import Route
from ztunnel.worker.inbound_hbone import InboundServer, InboundTunnel
from ztunnel.worker.namespace import WorkloadNetwork
from ztunnel.worker.outbound import OutboundTcp, OutboundTunnel, start_outbound
from ztunnel.worker.paced_tunnel import PacedTunnel
from ztunnel.worker.pacing import PaceBook
from ztunnel.worker.passthrough import Passthrough, start_passthrough
from ztunnel.worker.plans import (
    MAX_PLANS,
    InboundPlan,
    OutboundPlan,
    accept_headers,
    plan_inbound_tunnel,
    plan_outbound,
    plan_passthrough,
)
from ztunnel.worker.shared import Shared

_BACKLOG = 1024
_STATE_POLL_S = 0.1

_StateWaiter = tuple[float, Callable[[Workload | None], None]]  # until when, and whom to call


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """What the node agent says about the workload."""

    uid: str
    name: str
    namespace: str
    service_account: str


class WorkloadProxy:
    """Built inert; `open` makes the listeners. Owns the namespace handle."""

    def __init__(self, shared: Shared, info: WorkloadInfo, namespace: NetworkNamespace | None) -> None:
        settings = shared.settings
        self.shared = shared
        self.info = info
        self.title = f"{info.namespace}/{info.name} (service account {info.service_account})"
        self.network = WorkloadNetwork(
            shared.reactor,
            namespace,
            mark=settings.packet_mark,
            is_keepalive_on=settings.is_keepalive_on,
            on_spoof_failed=self._on_spoof_failed,
        )
        self.hbone_settings = settings.hbone()
        self.illegal_ports = frozenset(settings.illegal_ports)
        self.static_destination = _parse_destination(settings.static_destination)
        self.outbound: set[OutboundTunnel | OutboundTcp] = set()
        self.inbound: set[InboundTunnel | Passthrough] = set()
        self.server_connections: set[HboneServerConnection] = set()
        self.is_closed = False
        self.is_draining = False
        self.pool = HbonePool(
            shared.reactor,
            settings.pool(),
            connect=self._connect_peer,
            context_for=shared.credentials.client_context,
            buffer=shared.buffer,
        )
        self._acceptors: list[Acceptor] = []
        self._own: Workload | None = None
        self._generation = -1
        self._outbound_plans: dict[tuple[object, ...], OutboundPlan] = {}
        self.fixed_plans: dict[tuple[str, int], OutboundPlan] = {}  # valid after own_workload()
        self._inbound_plans: dict[tuple[object, ...], InboundPlan] = {}
        self._limits = LimitBook(max(settings.workers, 1))
        self.paces = PaceBook(shared.reactor, shared.limit_counts)
        self._accept_headers: Headers = []
        self._waiting: list[_StateWaiter] = []
        self._state_timer: Timer | None = None

    def open(self) -> None:
        """Open the listeners; all or none. Raises MeshError."""
        settings = self.shared.settings
        server = InboundServer(self)
        plans: dict[str, tuple[int, Starter, Callable[[], None], bool]] = {
            "outbound": (settings.outbound_port, self._on_outbound, self._count_outbound, True),
            "inbound": (settings.inbound_port, self._on_inbound, self._count_inbound, True),
            "hbone": (settings.hbone_port, server.accept, self._count_inbound, False),
        }
        is_transparent = []
        try:
            for name in settings.listeners:
                port, start, count, has_keepalive = plans[name]
                listener = self._listen(port)
                # Accepted sockets inherit these from the listener: that spares five system calls for each.
                set_accepted_options(listener.sock, keepalive=has_keepalive and settings.is_keepalive_on)
                is_transparent.append(listener.is_transparent)
                self._acceptors.append(self._acceptor(listener.sock, start, count))
        except MeshError:
            self._close_acceptors()
            raise
        self.network.is_spoofing = bool(is_transparent) and all(is_transparent)

    def _acceptor(self, sock: socket.socket, start: Starter, count: Callable[[], None]) -> Acceptor:
        shared = self.shared

        def admits() -> bool:
            if shared.open_connections >= shared.settings.max_connections:
                return False
            shared.open_connections += 1
            count()
            return True

        return Acceptor(shared.reactor, sock, start, admits=admits, log=shared.log, label=self.info.uid)

    def _listen(self, port: int) -> Listener:
        settings = self.shared.settings
        address = settings.bind_address
        if address == "::" and not settings.is_ipv6:
            address = "0.0.0.0"
        return open_listener(
            address,
            port,
            namespace=self.network.namespace,
            mark=self.network.mark,
            is_transparent=settings.is_spoofing,
            backlog=_BACKLOG,
        )

    def close(self, error: MeshError) -> None:
        """End everything at once."""
        if self.is_closed:
            return
        self.is_closed = True
        self._close_acceptors()
        for outbound in list(self.outbound):
            outbound.close(error)
        for inbound in list(self.inbound):
            inbound.close(error)
        for connection in list(self.server_connections):
            connection.close(error=error)
        self.pool.close(error)
        self.paces.close()
        if self._state_timer is not None:
            self._state_timer.cancel()
        waiting, self._waiting = self._waiting, []
        for _, callback in waiting:
            callback(None)
        self.network.close()

    def drain(self) -> None:
        """Accept nothing more; open connections go on, HBONE peers are told to go elsewhere (facts 12.3)."""
        if self.is_draining:
            return
        self.is_draining = True
        self._close_acceptors()
        for connection in list(self.server_connections):
            connection.drain()

    def leave(self) -> None:
        """The workload has gone, or is let go: drains, with the connections that it made last."""
        for acceptor in list(self._acceptors):
            acceptor.accept_waiting()
        self.drain()

    @property
    def open_connections(self) -> int:
        """What a drain waits for."""
        return len(self.outbound) + len(self.inbound)

    def end_remaining(self) -> None:
        self.close(ConnectionDrained("connection closed due to connection drain"))

    # The mesh state, as this workload needs it

    def own_workload(self) -> Workload | None:
        """What the control plane says about this workload, if it has said it yet."""
        state = self.shared.state
        if self._generation != state.generation:
            self._refresh(state.generation)
        return self._own

    def _refresh(self, generation: int) -> None:
        self._generation = generation
        self._outbound_plans.clear()
        self.fixed_plans.clear()
        self._inbound_plans.clear()
        info = self.info
        own = self.shared.state.local_workload(
            info.name, info.namespace, info.service_account, self.shared.settings.node
        )
        self._limits.retain(self.shared.state.limits_of(own.uid) if own is not None else ())
        if own is not self._own:
            self._own = own
            self._accept_headers = (
                accept_headers(own, is_baggage_on=self.shared.settings.is_response_baggage_on) if own else []
            )

    def wait_for_own_workload(self, callback: Callable[[Workload | None], None]) -> None:
        """Call back when the workload is known, or with None when it is not in time (facts 3.1: 5 s)."""
        settings = self.shared.settings
        if len(self._waiting) >= settings.max_waiting_for_state or self.is_closed:
            callback(None)
            return
        self._waiting.append((self.shared.reactor.now + settings.state_wait_s, callback))
        if self._state_timer is None:
            self._state_timer = self.shared.reactor.call_later(_STATE_POLL_S, self._look_for_own_workload)

    def _look_for_own_workload(self) -> None:
        self._state_timer = None
        own = self.own_workload()
        now = self.shared.reactor.now
        due: list[_StateWaiter] = []
        left: list[_StateWaiter] = []
        for entry in self._waiting:
            (due if own is not None or entry[0] <= now else left).append(entry)
        self._waiting = left
        if left:
            self._state_timer = self.shared.reactor.call_later(_STATE_POLL_S, self._look_for_own_workload)
        for _, callback in due:
            callback(own)

    def outbound_plan(self, destination: tuple[str, int], decision: Route, source: Workload) -> OutboundPlan:
        """The plan for a decision about `destination`; kept for it where no choice was involved."""
        key = (
            decision.address,
            decision.authority,
            decision.protocol,
            id(decision.workload),
            id(decision.service),
        )
        plan = self._outbound_plans.get(key)
        if plan is None or plan.route.expected_identities != decision.expected_identities:
            if len(self._outbound_plans) >= MAX_PLANS:
                self._outbound_plans.clear()
            plan = plan_outbound(decision, source, self.shared.traffic)
            self._outbound_plans[key] = plan
        if decision.service is None and decision.address[0] == destination[0]:
            # Straight to the address itself: nothing was picked, so the next connection goes the same way.
            if len(self.fixed_plans) >= MAX_PLANS:
                self.fixed_plans.clear()
            self.fixed_plans[destination] = plan
        return plan

    def inbound_plan(
        self,
        request: ConnectRequest,
        connection: HboneServerConnection,
        own: Workload,
    ) -> InboundPlan:
        key = (
            connection.note,
            request.authority,
            request.forwarded_host,
            request.forwarded_network,
            request.baggage,
        )
        plan = self._inbound_plans.get(key)
        if plan is None:
            plan = plan_inbound_tunnel(
                request,
                connection.pump.peer_address[0],
                connection.identity,
                connection.pump.local_address,
                own=own,
                state=self.shared.state,
                settings=self.shared.settings,
                traffic=self.shared.traffic,
            )
            plan = self._keep(key, plan)
        return plan

    def inbound_tunnel(self, peer: tuple[str, int], tunnel: TunnelStream, plan: InboundPlan) -> InboundTunnel:
        if plan.gate is not None and (paced := plan.gate.paced):
            return PacedTunnel(self, peer, tunnel, plan, self.paces.pace(paced))
        return InboundTunnel(self, peer, tunnel, plan)

    def passthrough_plan(self, peer_ip: str, destination: tuple[str, int], own: Workload) -> InboundPlan:
        key = (peer_ip, destination)
        plan = self._inbound_plans.get(key)
        if plan is None:
            plan = plan_passthrough(
                peer_ip,
                destination,
                own=own,
                state=self.shared.state,
                settings=self.shared.settings,
                traffic=self.shared.traffic,
            )
            plan = self._keep(key, plan)
        return plan

    def _note_dry_run(self, plan: InboundPlan) -> None:
        if plan.verdict.dry_run:
            self.shared.log.write(
                "info", "policy_dry_run", workload=self.info.uid, notes=list(plan.verdict.dry_run)
            )

    def _keep(self, key: tuple[object, ...], plan: InboundPlan) -> InboundPlan:
        """With the limits that hold for it."""
        limits = self.shared.state.limits_of(plan.own.uid)
        if limits and plan.connection is not None:
            plan = replace(plan, gate=self._limits.gate(limits, plan.connection, plan.own))
        if len(self._inbound_plans) >= MAX_PLANS:
            self._inbound_plans.clear()
        self._inbound_plans[key] = plan
        self._note_dry_run(plan)
        return plan

    def accept_headers(self, own: Workload) -> Headers:
        if own is self._own:
            return self._accept_headers
        return accept_headers(own, is_baggage_on=self.shared.settings.is_response_baggage_on)

    # Accounting

    def release_outbound(self) -> None:
        self.shared.open_connections -= 1
        self.shared.outbound_sockets -= 1

    def release_inbound(self) -> None:
        self.shared.open_connections -= 1
        self.shared.inbound_sockets -= 1

    def count_traffic(self) -> None:
        """Bring the counters of open connections up to date."""
        for outbound in self.outbound:
            outbound.count()
        for inbound in self.inbound:
            inbound.count()

    def describe(self, limit: int) -> dict[str, object]:
        return {
            "state": "Up",
            "connections": {
                "inbound": [connection.describe() for connection in list(self.inbound)[:limit]],
                "outbound": [connection.describe() for connection in list(self.outbound)[:limit]],
            },
            "openConnections": self.open_connections,
            "pool": self.pool.describe(),
            "info": {
                "name": self.info.name,
                "namespace": self.info.namespace,
                "serviceAccount": self.info.service_account,
            },
        }

    def _count_outbound(self) -> None:
        self.shared.outbound_sockets += 1

    def _count_inbound(self) -> None:
        self.shared.inbound_sockets += 1

    def _on_outbound(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        start_outbound(self, sock, peer)

    def _on_inbound(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        start_passthrough(self, sock, peer)

    def _connect_peer(self, address: tuple[str, int]) -> socket.socket:
        sock = self.network.client_socket(is_ipv6=":" in address[0])
        begin_connect(sock, address)
        return sock

    def _on_spoof_failed(self, address: tuple[str, int]) -> None:
        self.shared.log.limited(
            "warn", "source_not_kept", destination=f"{address[0]}:{address[1]}", workload=self.info.uid
        )

    def _close_acceptors(self) -> None:
        acceptors, self._acceptors = self._acceptors, []
        for acceptor in acceptors:
            acceptor.close()


def _parse_destination(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
