"""Tunnels that others open to a workload: accepted on port 15008, authorised, carried to the application
(facts 4).

Order: request well-formed (the HBONE server), own workload known, destination valid, policy, application
reached, then 200. A refusal before the policy is an early denial; from the policy on, a request counts in the
metrics. A request is tracked before it is authorised, so that a policy change in between is not lost.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from dataplane.state.model import Workload, socket_text
from dataplane.worker.credentials import Credential
from dataplane.worker.flows import COMPLETE, FAILED, REFUSED, FlowTemplate
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.hbone.connect import ConnectRequest, MalformedRequest
from transport.hbone.connection import plain_headers
from transport.hbone.proxy_header import proxy_header
from transport.hbone.relay import Relay
from transport.hbone.server import HboneServerConnection, ServerTrust
from transport.hbone.tunnel import TunnelStream
from ztunnel.state.connection_limits import Gate, Refused
from ztunnel.state.inbound import InboundTarget, Refusal, spoofed_source
from ztunnel.state.rbac import Verdict
from ztunnel.worker.app_connect import AppConnect, connect
from ztunnel.worker.errors import ConnectionLimited, PolicyChanged, PolicyDenied, response_flag
from ztunnel.worker.limit_counts import IS_REFUSED
from ztunnel.worker.plans import InboundPlan

if TYPE_CHECKING:
    from ztunnel.worker.workload import WorkloadProxy

_REFUSED_FLOW = FlowTemplate(is_inbound=True)


class InboundServer:
    """The HBONE server of one workload: HboneServerHandler for all its connections."""

    def __init__(self, proxy: WorkloadProxy) -> None:
        self._proxy = proxy

    def accept(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Take over one accepted TCP connection."""
        own = self._proxy.own_workload()
        if own is None:
            self._proxy.wait_for_own_workload(lambda found: self._with_workload(sock, peer, found))
            return
        self._with_workload(sock, peer, own)

    def _with_workload(self, sock: socket.socket, peer: tuple[str, int], own: Workload | None) -> None:
        if own is None or self._proxy.is_closed:
            self._drop(sock, peer, f"unknown workload {self._proxy.title}")
            return
        credential = self._proxy.shared.credentials.get(own.identity)
        if credential is not None:
            self._serve(sock, credential)
            return
        self._proxy.shared.credentials.want(
            own.identity, lambda found: self._with_credential(sock, peer, found)
        )

    def _with_credential(
        self, sock: socket.socket, peer: tuple[str, int], found: Credential | MeshError
    ) -> None:
        if isinstance(found, MeshError):
            self._drop(sock, peer, found.text, response_flag(found))
        elif self._proxy.is_closed:
            self._drop(sock, peer, f"workload {self._proxy.title} was removed")
        else:
            self._serve(sock, found)

    def _serve(self, sock: socket.socket, credential: Credential) -> None:
        shared = self._proxy.shared
        connection = HboneServerConnection(
            shared.reactor,
            sock,
            ServerTrust(credential.server, credential.identity.trust_domain),
            self,
            buffer=shared.buffer,
            settings=self._proxy.hbone_settings,
        )
        self._proxy.server_connections.add(connection)
        if shared.is_draining:
            connection.drain()

    def _drop(self, sock: socket.socket, peer: tuple[str, int], reason: str, flag: str = "") -> None:
        sock.close()
        self._proxy.release_inbound()
        self._log_refused(peer, ("", 0), reason, flag)

    def _log_refused(
        self, peer: tuple[str, int], local: tuple[str, int], reason: str, flag: str = "", authority: str = ""
    ) -> None:
        self._proxy.shared.flows.add(
            _REFUSED_FLOW,
            pb.Flow(
                outcome=REFUSED,
                src_addr=socket_text(*peer),
                dst_addr=socket_text(*local) if local[0] else "",
                dst_hbone_addr=authority,
                error=reason,
                response_flags=flag,
            ),
        )

    # HboneServerHandler

    def on_established(self, connection: HboneServerConnection) -> None:
        """Note who is connected to what, as the part of each request's plan key that never changes."""
        pump = connection.pump
        connection.note = f"{pump.peer_address[0]} {connection.identity} {socket_text(*pump.local_address)}"

    def on_request(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        proxy = self._proxy
        connection = tunnel.connection
        assert isinstance(connection, HboneServerConnection)
        pump = connection.pump
        own = proxy.own_workload()
        if own is None:
            tunnel.refuse(plain_headers(503))
            self._log_refused(pump.peer_address, pump.local_address, f"unknown workload {proxy.title}")
            return
        plan = proxy.inbound_plan(request, connection, own)
        target = plan.target
        if isinstance(target, Refusal):
            tunnel.refuse(plain_headers(target.status))
            authority = request.authority.decode("ascii", "replace")
            self._log_refused(pump.peer_address, pump.local_address, target.reason, authority=authority)
            return
        proxy.inbound_tunnel(pump.peer_address, tunnel, plan).open(target)

    def on_bad_request(self, connection: HboneServerConnection, request: MalformedRequest) -> None:
        pump = connection.pump
        answer = request.status or "reset"  # a request that is no well-formed HTTP/2 gets no status
        self._log_refused(pump.peer_address, pump.local_address, f"{answer}: {request.reason}")

    def on_closed(self, connection: HboneServerConnection, error: MeshError | None) -> None:
        proxy = self._proxy
        proxy.server_connections.discard(connection)
        proxy.release_inbound()
        if error is not None and not connection.is_established:
            self._log_refused(connection.pump.peer_address, connection.pump.local_address, error.text)


class InboundTunnel(Relay):
    """One tunnel from a peer to the application."""

    __slots__ = (
        "_connect",
        "_counted_down",
        "_counted_up",
        "_gate",
        "_greeting",
        "_peer",
        "_proxy",
        "_refused",
        "_started",
        "_verdict",
        "plan",
    )

    def __init__(
        self, proxy: WorkloadProxy, peer: tuple[str, int], tunnel: TunnelStream, plan: InboundPlan
    ) -> None:
        super().__init__(proxy.shared.reactor, is_reset_kept=proxy.shared.settings.is_reset_kept)
        self.tunnel = tunnel
        tunnel.handler = self
        self.plan = plan
        self._proxy = proxy
        self._peer = peer
        self._started = proxy.shared.reactor.now
        self._connect: AppConnect | None = None
        self._greeting = b""
        self._counted_up = 0
        self._counted_down = 0
        self._verdict: Verdict | None = None  # the one that ended it
        self._gate: Gate | None = None  # that let it in
        self._refused: Refused | None = None  # by a limit
        self._is_peer_ended = tunnel.is_remote_ended

    def open(self, target: InboundTarget) -> None:
        proxy, plan, tunnel = self._proxy, self.plan, self.tunnel
        assert tunnel is not None
        proxy.inbound.add(self)
        plan.series.opened += 1
        if not plan.verdict.is_allowed:
            tunnel.refuse(plain_headers(401))
            self._deny(plan.verdict)
            return
        if plan.gate is not None and not self._is_admitted(plan.gate, tunnel):
            return
        if target.proxy_destination is not None:
            self._greeting = proxy_header(self._peer, target.proxy_destination, plan.identity)
        self._connect = connect(
            self.reactor,
            proxy.network,
            target.dial_address,
            self._on_connected,
            source_ip=spoofed_source(self._peer[0], target, is_spoofing=proxy.network.is_spoofing),
            timeout_s=proxy.shared.settings.connect_timeout_s,
        )

    def _is_admitted(self, gate: Gate, tunnel: TunnelStream) -> bool:
        refused = gate.admit(self.reactor.now)
        if refused is None:
            self._gate = gate
            return True
        self._refused = refused
        self._proxy.shared.limit_counts.count(refused.policy, refused.limit, IS_REFUSED)
        tunnel.refuse(plain_headers(429))
        self._finish(ConnectionLimited(f"connection refused by a limit: {refused}"))
        return False

    def recheck(self, verdict: Verdict) -> None:
        """Policy has changed: end the tunnel if it is not allowed any more (facts 4.7)."""
        if not verdict.is_allowed:
            self._verdict = verdict
            self._finish(
                PolicyChanged(f"connection closed due to policy change: {verdict.reason}"), is_reset=True
            )

    def close(self, error: MeshError) -> None:
        self._finish(error, is_reset=True)

    def count(self) -> None:
        """Add what was copied since the last call to the counters. Request bytes come from the tunnel."""
        series = self.plan.series
        series.received_bytes += self.to_app_bytes - self._counted_up
        series.sent_bytes += self.from_app_bytes - self._counted_down
        self._counted_up, self._counted_down = self.to_app_bytes, self.from_app_bytes

    def describe(self) -> dict[str, str]:
        target = self.plan.target
        actual = socket_text(*target.address) if isinstance(target, InboundTarget) else ""
        return {
            "src": socket_text(*self._peer),
            "srcIdentity": str(self.plan.identity or ""),
            "originalDst": actual,
            "actualDst": actual,
            "protocol": "HBONE",
        }

    def _deny(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._finish(PolicyDenied(f"connection closed due to policy rejection: {verdict.reason}"))

    def _on_connected(self, found: socket.socket | MeshError) -> None:
        tunnel = self.tunnel
        if self._is_over or tunnel is None:
            if isinstance(found, socket.socket):
                found.close()
            return
        if isinstance(found, MeshError):
            tunnel.refuse(plain_headers(503))
            self._finish(found)
            return
        self._app = found
        self._proxy.shared.note_opened(self.plan.flow, self._peer)
        tunnel.accept(self._proxy.accept_headers(self.plan.own))
        self._start(greeting=self._greeting)
        self._greeting = b""

    def _on_over(self, error: MeshError | None) -> None:
        if self._connect is not None:
            self._connect.cancel()
            self._connect = None
        proxy, plan = self._proxy, self.plan
        shared = proxy.shared
        proxy.inbound.discard(self)
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()
        self.count()
        flag = "-" if error is None else response_flag(error)
        plan.series.ended(flag)
        if shared.flows.is_on:
            verdict = self._verdict or plan.verdict
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
                    policy=verdict.policy if self._refused is None else self._refused.title,
                ),
            )
        self.tunnel = None
