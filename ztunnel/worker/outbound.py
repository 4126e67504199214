"""Connections that a workload makes: captured on port 15001, routed, carried on (facts 3).

Whatever goes wrong before there is a route is an early denial: one REFUSED record, no traffic metrics.
Afterwards every connection counts as opened, and once as closed with its flag.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.state.model import Workload, socket_text
from dataplane.worker.credentials import Credential
from dataplane.worker.flows import COMPLETE, FAILED, REFUSED, FlowTemplate
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.hbone.connect import Headers, new_traceparent
from transport.hbone.relay import Relay
from transport.hbone.tunnel import TunnelStream
from transport.sockets import original_destination
from ztunnel.state.inbound import is_self_call
from ztunnel.state.routing import NoRoute, Protocol, Route, route
from ztunnel.worker.app_connect import AppConnect, connect
from ztunnel.worker.errors import (
    NoRouteFound,
    RouteUnsupported,
    SelfCall,
    UnknownSource,
    response_flag,
)
from ztunnel.worker.plans import OutboundPlan
from ztunnel.worker.tcp_pump import TcpPump

if TYPE_CHECKING:
    from ztunnel.worker.workload import WorkloadProxy

_REFUSED_FLOW = FlowTemplate(is_inbound=False)


@dataclass(slots=True)
class Captured:
    """A connection before it has a route. `release` or `refuse` ends it."""

    proxy: WorkloadProxy
    sock: socket.socket
    peer: tuple[str, int]
    destination: tuple[str, int]

    def release(self) -> None:
        self.sock.close()
        self.proxy.release_outbound()

    def refuse(self, error: MeshError) -> None:
        """Close it and say so in the log."""
        self.release()
        self.proxy.shared.flows.add(
            _REFUSED_FLOW,
            pb.Flow(
                outcome=REFUSED,
                src_addr=socket_text(*self.peer),
                dst_addr=socket_text(*self.destination) if self.destination[0] else "",
                error=error.text,
                response_flags=response_flag(error),
            ),
        )


def start_outbound(proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int]) -> None:
    """Take over one captured connection."""
    try:
        destination = proxy.static_destination or original_destination(sock, is_ipv6=":" in peer[0])
    except MeshError as error:
        Captured(proxy, sock, peer, ("", 0)).refuse(error)
        return
    source = proxy.own_workload()
    plan = proxy.fixed_plans.get(destination)
    if plan is not None:
        _follow(proxy, sock, peer, plan)
        return
    captured = Captured(proxy, sock, peer, destination)
    if is_self_call(destination, proxy.illegal_ports):
        captured.refuse(SelfCall(f"{socket_text(*destination)} is one of the proxy's own ports"))
    elif source is None:
        proxy.wait_for_own_workload(lambda own: _begin(captured, own))
    else:
        _begin(captured, source)


def _begin(captured: Captured, source: Workload | None) -> None:
    proxy = captured.proxy
    if source is None:
        error = UnknownSource(
            f"unknown source: no workload {proxy.title} on this node",
            next_step="see whether the control plane announces it",
        )
        captured.refuse(error)
        return
    shared = proxy.shared
    decision = route(source, captured.destination, shared.state, shared.routing)
    if isinstance(decision, NoRoute):
        captured.refuse(NoRouteFound(decision.text))
        return
    if decision.hostname_to_resolve:
        shared.on_demand_lookups += 1
        shared.resolver.resolve(
            decision.hostname_to_resolve,
            lambda found: _go_resolved(captured, source, decision, found),
            is_ipv6_preferred=decision.is_ipv6_preferred,
        )
        return
    _go(captured, source, decision)


def _go_resolved(captured: Captured, source: Workload, decision: Route, found: str | MeshError) -> None:
    if isinstance(found, MeshError):
        captured.refuse(found)
    else:
        _go(captured, source, decision.with_ip(found))


def _go(captured: Captured, source: Workload, decision: Route) -> None:
    proxy = captured.proxy
    if proxy.is_closed:
        captured.release()
    elif decision.protocol is not Protocol.DOUBLE_HBONE:
        plan = proxy.outbound_plan(captured.destination, decision, source)
        _follow(proxy, captured.sock, captured.peer, plan)
    else:
        destination = socket_text(*captured.destination)
        captured.refuse(
            RouteUnsupported(f"{destination} is in another network: double HBONE is not supported")
        )


def _follow(proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int], plan: OutboundPlan) -> None:
    if plan.route.protocol is Protocol.HBONE:
        OutboundTunnel(proxy, sock, peer, plan).open()
    else:
        OutboundTcp(proxy, sock, peer, plan).open()


class OutboundTunnel(Relay):
    """One captured connection that goes through the pool."""

    __slots__ = ("_counted_down", "_counted_up", "_peer", "_plan", "_proxy", "_started", "headers", "repeats")

    def __init__(
        self, proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int], plan: OutboundPlan
    ) -> None:
        super().__init__(proxy.shared.reactor, is_reset_kept=proxy.shared.settings.is_reset_kept)
        self._app = sock
        self._proxy = proxy
        self._peer = peer
        self._plan = plan
        self._started = proxy.shared.reactor.now
        self._counted_up = 0
        self._counted_down = 0
        self.headers: Headers = []
        self.repeats = 0
        plan.series.opened += 1
        proxy.outbound.add(self)

    def open(self) -> None:
        key = self._plan.key
        self.headers = self._plan.template.headers(*self._peer, new_traceparent())
        credentials = self._proxy.shared.credentials
        # No identity, no traffic: a pooled connection outlives its certificate, new tunnels on it must not.
        if credentials.get(key.source) is None or not self._proxy.pool.open_now(key, self):
            credentials.want(key.source, self._on_credential)

    def _on_credential(self, found: Credential | MeshError) -> None:
        if self._is_over:
            return
        if isinstance(found, MeshError):
            self._finish(found)
        else:
            self._proxy.pool.open(self._plan.key, self)

    def close(self, error: MeshError) -> None:
        """End it from our side: drain, removal."""
        if self._registration is None and not self._is_over:
            self._proxy.pool.cancel(self._plan.key, self)
        self._finish(error, is_reset=True)

    def count(self) -> None:
        """Add what was copied since the last call to the counters."""
        series = self._plan.series
        series.received_bytes += self.from_app_bytes - self._counted_up
        series.sent_bytes += self.to_app_bytes - self._counted_down
        self._counted_up, self._counted_down = self.from_app_bytes, self.to_app_bytes

    def describe(self) -> dict[str, str]:
        plan = self._plan
        return {
            "src": socket_text(*self._peer),
            "originalDst": plan.route.authority or "",
            "actualDst": socket_text(*plan.route.address),
            "protocol": "HBONE",
        }

    # ClientTunnelHandler

    def on_tunnel_open(self, tunnel: TunnelStream, headers: Headers) -> None:  # noqa: ARG002 - not needed here
        self.headers = []
        self.tunnel = tunnel
        self._proxy.shared.note_opened(self._plan.flow, self._peer)
        self._start(read_now=True)

    def on_tunnel_failed(self, error: MeshError) -> None:
        if not self._is_over and not self._proxy.pool.repeat(self._plan.key, self, error):
            self.tunnel = None
            self._finish(error)

    # Relay

    def _on_over(self, error: MeshError | None) -> None:
        proxy, plan = self._proxy, self._plan
        shared = proxy.shared
        proxy.outbound.discard(self)
        proxy.release_outbound()
        self.count()
        flag = "-" if error is None else response_flag(error)
        plan.series.ended(flag)
        if shared.flows.is_on:
            shared.flows.add(
                plan.flow,
                pb.Flow(
                    outcome=COMPLETE if error is None else FAILED,
                    src_addr=socket_text(*self._peer),
                    bytes_sent=self.from_app_bytes,
                    bytes_received=self.to_app_bytes,
                    duration_s=shared.reactor.now - self._started,
                    error="" if error is None else error.text,
                    response_flags=flag,
                ),
            )


class OutboundTcp:
    """One captured connection to a destination without a tunnel."""

    __slots__ = (
        "_app",
        "_connect",
        "_counted_down",
        "_counted_up",
        "_is_over",
        "_peer",
        "_plan",
        "_proxy",
        "_pump",
        "_started",
    )

    def __init__(
        self, proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int], plan: OutboundPlan
    ) -> None:
        self._proxy = proxy
        self._app: socket.socket | None = sock
        self._peer = peer
        self._plan = plan
        self._started = proxy.shared.reactor.now
        self._connect: AppConnect | None = None
        self._pump: TcpPump | None = None
        self._counted_up = 0
        self._counted_down = 0
        self._is_over = False
        plan.series.opened += 1
        proxy.outbound.add(self)

    def open(self) -> None:
        proxy = self._proxy
        self._connect = connect(
            proxy.shared.reactor,
            proxy.network,
            self._plan.route.address,
            self._on_connected,
            source_ip=None,
            timeout_s=proxy.shared.settings.connect_timeout_s,
        )

    def _on_connected(self, found: socket.socket | MeshError) -> None:
        app = self._app
        assert app is not None
        if isinstance(found, MeshError):
            self._on_over(found)
            return
        shared = self._proxy.shared
        shared.note_opened(self._plan.flow, self._peer)
        self._app = None
        self._pump = TcpPump(
            shared.reactor,
            app,
            found,
            self._on_over,
            buffer=shared.buffer.plain,
            pipes=shared.pipes,
            is_reset_kept=shared.settings.is_reset_kept,
        )

    def close(self, error: MeshError) -> None:
        if self._pump is not None:
            self._pump.close(error, is_reset=True)
            return
        if self._connect is not None:
            self._connect.cancel()
        self._on_over(error)

    def count(self) -> None:
        if self._pump is not None:
            series = self._plan.series
            series.received_bytes += self._pump.up_bytes - self._counted_up
            series.sent_bytes += self._pump.down_bytes - self._counted_down
            self._counted_up, self._counted_down = self._pump.up_bytes, self._pump.down_bytes

    def describe(self) -> dict[str, str]:
        address = socket_text(*self._plan.route.address)
        return {
            "src": socket_text(*self._peer),
            "originalDst": address,
            "actualDst": address,
            "protocol": "TCP",
        }

    def _on_over(self, error: MeshError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._app is not None:
            self._app.close()
        proxy, plan = self._proxy, self._plan
        shared = proxy.shared
        proxy.outbound.discard(self)
        proxy.release_outbound()
        self.count()
        flag = response_flag(error)
        plan.series.ended(flag)
        shared.flows.add(
            plan.flow,
            pb.Flow(
                outcome=COMPLETE if error is None else FAILED,
                src_addr=socket_text(*self._peer),
                bytes_sent=self._counted_up,
                bytes_received=self._counted_down,
                duration_s=shared.reactor.now - self._started,
                error="" if error is None else error.text,
                response_flags=flag,
            ),
        )
        self._pump = None
