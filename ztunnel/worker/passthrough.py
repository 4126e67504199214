"""Plaintext connections to a workload, captured on port 15006 (facts 4.5): authorised without an identity,
then carried to where they were going, from the client's own address.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from dataplane.state.model import Workload, socket_text
from dataplane.worker.flows import COMPLETE, FAILED, REFUSED, FlowTemplate
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.sockets import original_destination
from ztunnel.state.connection_limits import Gate, Refused
from ztunnel.state.inbound import InboundTarget, is_illegal_inbound, spoofed_source
from ztunnel.state.rbac import Verdict
from ztunnel.worker.app_connect import AppConnect, connect
from ztunnel.worker.errors import (
    ConnectionLimited,
    PolicyChanged,
    PolicyDenied,
    SelfCall,
    UnknownSource,
    response_flag,
)
from ztunnel.worker.limit_counts import IS_REFUSED
from ztunnel.worker.paced_pump import PacedPump
from ztunnel.worker.plans import InboundPlan
from ztunnel.worker.tcp_pump import TcpPump, reset_at_close

if TYPE_CHECKING:
    from ztunnel.worker.workload import WorkloadProxy

_REFUSED_FLOW = FlowTemplate(is_inbound=True)


def start_passthrough(proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int]) -> None:
    """Take over one captured connection."""
    try:
        destination = proxy.static_destination or original_destination(sock, is_ipv6=":" in peer[0])
    except MeshError as error:
        _refuse(proxy, sock, peer, ("", 0), error)
        return
    if is_illegal_inbound(destination, proxy.illegal_ports):
        _refuse(proxy, sock, peer, destination, SelfCall(f"port {destination[1]} is the proxy's own"))
        return
    own = proxy.own_workload()
    if own is None:
        proxy.wait_for_own_workload(lambda found: _begin(proxy, sock, peer, destination, found))
        return
    _begin(proxy, sock, peer, destination, own)


def _begin(
    proxy: WorkloadProxy,
    sock: socket.socket,
    peer: tuple[str, int],
    destination: tuple[str, int],
    own: Workload | None,
) -> None:
    if own is None or proxy.is_closed:
        _refuse(proxy, sock, peer, destination, UnknownSource(f"unknown workload {proxy.title}"))
        return
    Passthrough(proxy, sock, peer, proxy.passthrough_plan(peer[0], destination, own)).open()


def _refuse(
    proxy: WorkloadProxy,
    sock: socket.socket,
    peer: tuple[str, int],
    destination: tuple[str, int],
    error: MeshError,
) -> None:
    sock.close()
    proxy.release_inbound()
    proxy.shared.flows.add(
        _REFUSED_FLOW,
        pb.Flow(
            outcome=REFUSED,
            src_addr=socket_text(*peer),
            dst_addr=socket_text(*destination) if destination[0] else "",
            error=error.text,
        ),
    )


class Passthrough:
    """One plaintext connection to the application."""

    __slots__ = (
        "_app",
        "_connect",
        "_counted_down",
        "_counted_up",
        "_gate",
        "_is_over",
        "_peer",
        "_proxy",
        "_pump",
        "_refused",
        "_started",
        "_verdict",
        "plan",
    )

    def __init__(
        self, proxy: WorkloadProxy, sock: socket.socket, peer: tuple[str, int], plan: InboundPlan
    ) -> None:
        self.plan = plan
        self._proxy = proxy
        self._app: socket.socket | None = sock
        self._peer = peer
        self._started = proxy.shared.reactor.now
        self._connect: AppConnect | None = None
        self._pump: TcpPump | None = None
        self._counted_up = 0
        self._counted_down = 0
        self._is_over = False
        self._verdict: Verdict | None = None
        self._gate: Gate | None = None  # that let it in
        self._refused: Refused | None = None  # by a limit

    def open(self) -> None:
        proxy, plan = self._proxy, self.plan
        proxy.inbound.add(self)
        plan.series.opened += 1
        if not plan.verdict.is_allowed:
            self._verdict = plan.verdict
            self._on_over(PolicyDenied(f"connection closed due to policy rejection: {plan.verdict.reason}"))
            return
        if plan.gate is not None and not self._is_admitted(plan.gate):
            return
        target = plan.target
        assert isinstance(target, InboundTarget)
        self._connect = connect(
            proxy.shared.reactor,
            proxy.network,
            target.address,
            self._on_connected,
            source_ip=spoofed_source(self._peer[0], target, is_spoofing=proxy.network.is_spoofing),
            timeout_s=proxy.shared.settings.connect_timeout_s,
        )

    def _is_admitted(self, gate: Gate) -> bool:
        """Else the client gets a reset: plaintext has no other way to say no."""
        shared = self._proxy.shared
        refused = gate.admit(shared.reactor.now)
        if refused is None:
            self._gate = gate
            return True
        self._refused = refused
        shared.limit_counts.count(refused.policy, refused.limit, IS_REFUSED)
        if self._app is not None:
            reset_at_close(self._app)
        self._on_over(ConnectionLimited(f"connection refused by a limit: {refused}"))
        return False

    def recheck(self, verdict: Verdict) -> None:
        """Policy has changed: end the connection if it is not allowed any more (facts 4.7)."""
        if not verdict.is_allowed:
            self._verdict = verdict
            self.close(PolicyChanged(f"connection closed due to policy change: {verdict.reason}"))

    def close(self, error: MeshError) -> None:
        if self._pump is not None:
            self._pump.close(error, is_reset=True)
            return
        if self._connect is not None:
            self._connect.cancel()
        self._on_over(error)

    def count(self) -> None:
        if self._pump is not None:
            series = self.plan.series
            series.received_bytes += self._pump.up_bytes - self._counted_up
            series.sent_bytes += self._pump.down_bytes - self._counted_down
            self._counted_up, self._counted_down = self._pump.up_bytes, self._pump.down_bytes

    def describe(self) -> dict[str, str]:
        target = self.plan.target
        actual = socket_text(*target.address) if isinstance(target, InboundTarget) else ""
        return {
            "src": socket_text(*self._peer),
            "originalDst": actual,
            "actualDst": actual,
            "protocol": "TCP",
        }

    def _on_connected(self, found: socket.socket | MeshError) -> None:
        app = self._app
        assert app is not None
        if isinstance(found, MeshError):
            self._on_over(found)
            return
        shared = self._proxy.shared
        shared.note_opened(self.plan.flow, self._peer)
        self._app = None
        paced = self._gate.paced if self._gate is not None else ()
        if paced:
            self._pump = PacedPump(
                shared.reactor,
                app,
                found,
                self._on_over,
                buffer=shared.buffer.plain,
                pipes=shared.pipes,
                pace=self._proxy.paces.pace(paced),
                is_reset_kept=shared.settings.is_reset_kept,
            )
            return
        self._pump = TcpPump(
            shared.reactor,
            app,
            found,
            self._on_over,
            buffer=shared.buffer.plain,
            pipes=shared.pipes,
            is_reset_kept=shared.settings.is_reset_kept,
        )

    def _on_over(self, error: MeshError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._app is not None:
            self._app.close()
        proxy, plan = self._proxy, self.plan
        shared = proxy.shared
        proxy.inbound.discard(self)
        proxy.release_inbound()
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()
        self.count()
        flag = response_flag(error)
        plan.series.ended(flag)
        verdict = self._verdict or plan.verdict
        shared.flows.add(
            plan.flow,
            pb.Flow(
                outcome=COMPLETE if error is None else FAILED,
                src_addr=socket_text(*self._peer),
                bytes_sent=self._counted_down,
                bytes_received=self._counted_up,
                duration_s=shared.reactor.now - self._started,
                error="" if error is None else error.text,
                response_flags=flag,
                policy=verdict.policy if self._refused is None else self._refused.title,
            ),
        )
        self._pump = None
