"""The waypoint's data worker: wires port 15008, the proxy core, its decisions and the way to the endpoints.

One order of its own: Listen, once the mesh is known; until then nothing is served. What every worker does is
in dataplane/worker/base.py.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dataplane.state.labels import baggage_of
from dataplane.worker.acceptor import Acceptor
from dataplane.worker.base import DataWorker, named
from dataplane.worker.credentials import Credential
from dataplane.worker.records import RecordQueue
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.pool import HbonePool
from transport.hbone.server import ServerTrust
from transport.reactor import Reactor
from transport.sockets import begin_connect, client_sockets, open_listener, set_accepted_options
from transport.spiffe import SpiffeId
from waypoint.state.place import Place
from waypoint.state.store import WaypointState
from waypoint.worker.authentication import Authentication
from waypoint.worker.authorization import Authorization
from waypoint.worker.checks import CheckSource
from waypoint.worker.custom_authorization import Asking, CustomAuthorization
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.describe import describe_state
from waypoint.worker.dial import Dialler, MeshDialler, TcpDialler, TunnelOrigin
from waypoint.worker.filters.source import Filters
from waypoint.worker.ingress import HboneIngress
from waypoint.worker.memory import MemoryWatch
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.proxy import Proxy, ProxySettings
from waypoint.worker.rate_limits import RateLimits
from waypoint.worker.redis_client import RedisClient
from waypoint.worker.refusals import Refusals
from waypoint.worker.resolver import Resolver, ResolvingDialler
from waypoint.worker.settings import WorkerSettings
from waypoint.worker.telemetry import Telemetry, pack_exchanges
from waypoint.worker.tls_dial import TlsDialler
from waypoint.worker.tracing import RequestTracer
from waypoint.worker.upstreams import Upstreams, UpstreamSettings

_BACKLOG = 1024
_MAX_DUMPED_CONNECTIONS = 1000


class Worker(DataWorker[WorkerSettings]):
    """Built inert with the control process's socket; `run` returns when the worker has drained."""

    _settings: WorkerSettings
    _identity: SpiffeId
    _state: WaypointState
    _origin: TunnelOrigin
    _pool: HbonePool
    _upstreams: Upstreams
    _decider: RoutingDecider
    _proxy: Proxy
    _ingress: HboneIngress
    _memory: MemoryWatch
    _refusals: Refusals
    _records: RecordQueue
    _telemetry: Telemetry

    def __init__(self, reactor: Reactor, control: socket.socket) -> None:
        super().__init__(reactor, control)
        self._acceptor: Acceptor | None = None
        self._orders["listen"] = self._on_listen

    def _read_settings(self, text: str) -> WorkerSettings:
        return WorkerSettings.from_json(text)

    def _start(self, settings: WorkerSettings) -> None:
        reactor = self._reactor
        self._settings = settings
        self._identity = SpiffeId.parse(settings.identity)
        place = Place(
            settings.namespace, settings.gateway, settings.network, settings.node, settings.cluster_id
        )
        self._state = WaypointState(
            place, clock=lambda: reactor.now, random=random.random, environment=os.environ
        )
        buffer = FrameBuffer()
        self._pool = HbonePool(
            reactor,
            settings.pool(),
            connect=self._connect_peer,
            context_for=self.credentials.client_context,
            buffer=buffer,
        )
        self._origin = TunnelOrigin(self._identity, settings.address)
        mesh_dialler = MeshDialler(
            self._pool, self._origin, TcpDialler(reactor, buffer.plain), peer_port=settings.peer_hbone_port
        )
        resolver = Resolver(reactor)
        dialler = TlsDialler(ResolvingDialler(mesh_dialler, resolver, random.random), reactor)
        self._upstreams = Upstreams(reactor, dialler, UpstreamSettings(codec=settings.http_codec))
        self._policy_counts = PolicyCounts()
        self._filters = Filters(self._state, reactor, self._log)
        self._check_sources = self._make_checks(settings, resolver)
        self._decider = RoutingDecider(
            self._state,
            reactor,
            self._upstreams,
            random=random.random,
            wall_clock=time.time,
            check_sources=self._check_sources,
        )
        self._records = RecordQueue(
            reactor,
            self._link.try_send,
            pack_exchanges,
            limit=settings.max_queued_flows,
            is_on=settings.is_access_log_on,
        )
        self._telemetry = Telemetry(self._state, self._records, reactor)
        self._proxy = self._make_proxy(settings, dialler)
        self._memory = MemoryWatch(settings.max_resident_bytes, lambda: reactor.now)
        self._refusals = Refusals(self._log)
        self._ingress = HboneIngress(
            reactor,
            self._proxy,
            self._decider.resolve,
            buffer=buffer,
            settings=settings.hbone(),
            observer=self._refusals,
            may_take_on=lambda: not self._memory.is_short,
        )

    def _make_checks(self, settings: WorkerSettings, resolver: Resolver) -> tuple[CheckSource, ...]:
        state, log, counts = self._state, self._log, self._policy_counts
        return (
            CustomAuthorization(state, log, counts, Asking(self._upstreams, str(self._identity))),
            Authentication(state, time.time),
            Authorization(state, log, counts),
            RateLimits(
                state,
                lambda: self._reactor.now,
                counts,
                workers=max(settings.workers, 1),
                redis=self._redis(settings, resolver),
            ),
            self._filters,
        )

    def _make_proxy(self, settings: WorkerSettings, dialler: Dialler) -> Proxy:
        return Proxy(
            self._reactor,
            self._decider,
            dialler,
            self._upstreams,
            settings=ProxySettings(
                idle_s=settings.client_idle_s, codec=settings.http_codec, limits=settings.limits()
            ),
            observer=self._telemetry,
            tracer=RequestTracer(self._state, random.random, random.getrandbits),
        )

    def _redis(self, settings: WorkerSettings, resolver: Resolver) -> RedisClient | None:
        endpoint = settings.redis()
        return None if endpoint is None else RedisClient(self._reactor, endpoint, resolver, self._log)

    # Resources

    def _apply(
        self, type_url: str, upserts: Sequence[tuple[str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        return self._state.apply(type_url, upserts, removed)

    def _applied(self) -> None:
        """The address book says where this replica stands, MeshConfig how it reads paths."""
        state, settings = self._state, self._settings
        self._proxy.normalization = state.mesh_settings.normalization
        own = state.mesh.workload_by_ip(settings.network, settings.address)
        if own is not None:
            state.stand_at(replace(state.place, locality=own.locality))
            self._origin.baggage = baggage_of(own)

    # Port 15008

    def _on_listen(self, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        error = ""
        if self._acceptor is None and not self._is_draining:
            try:
                self._acceptor = self._listen()
            except MeshError as failure:
                error = str(failure)
        self._link.send(pb.ToControl(workload_result=pb.WorkloadResult(error=error)))

    def _listen(self) -> Acceptor:
        settings = self._settings
        listener = open_listener(
            settings.bind_address or "::", settings.hbone_port, is_transparent=False, backlog=_BACKLOG
        )
        set_accepted_options(listener.sock, keepalive=True)
        return Acceptor(
            self._reactor,
            listener.sock,
            self._on_accepted,
            admits=self._has_room,
            log=self._log,
            label=f"{settings.namespace}/{settings.gateway}",
        )

    def _has_room(self) -> bool:
        """For one more connection."""
        limit = self._settings.max_connections
        return self._ingress.open_connections < limit and not self._memory.is_short

    def _on_accepted(self, sock: socket.socket, peer: tuple[str, int]) -> None:  # noqa: ARG002 - the seam's
        def begin(found: Credential | MeshError) -> None:
            if isinstance(found, MeshError):
                sock.close()
                self._log.limited("error", "no_identity", reason=found.text)
            else:
                self._ingress.accept(sock, ServerTrust(found.server, self._identity.trust_domain))

        self.credentials.want(self._identity, begin)

    def _connect_peer(self, address: tuple[str, int]) -> socket.socket:
        (sock,) = client_sockets(1, is_ipv6=":" in address[0], namespace=None, mark=None, keepalive=True)
        own = self._settings.address
        # Peers are to see the address that the waypoint has in the address book.
        begin_connect(sock, address, own if own and (":" in own) is (":" in address[0]) else None)
        return sock

    # Answers

    def _stats_parts(self, request_id: int) -> Iterator[pb.ToControl | None]:
        others = [
            named("mycelia_worker_pool_connections", self._pool.open_connections),
            named("mycelia_waypoint_client_connections", self._ingress.open_connections),
            named("mycelia_waypoint_upstream_connections", self._upstreams.open_connections),
            named("mycelia_waypoint_rejected_requests_total", self._telemetry.rejected),
            named("mycelia_waypoint_refused_tunnels_total", self._refusals.refused_tunnels),
            named("mycelia_waypoint_failed_handshakes_total", self._refusals.failed_handshakes),
            *self._policy_counts.stats(),
            *self._filters.stats(),
        ]
        yield from self._telemetry.parts(request_id, others)

    def _describe(self) -> dict[str, object]:
        return {
            "clientConnections": self._ingress.open_connections,
            "upstreamConnections": self._upstreams.open_connections,
            "hboneConnections": self._pool.open_connections,
            "isListening": self._acceptor is not None,
            "filters": self._filters.describe(),
            "clients": self._ingress.describe(_MAX_DUMPED_CONNECTIONS),
            **describe_state(self._state, self._reactor.now),
        }

    # The end

    def _flush_records(self) -> None:
        self._records.flush()

    def _begin_drain(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        self._ingress.drain()
        self._proxy.drain()

    def _has_connections(self) -> bool:
        return bool(self._ingress.open_connections or self._proxy.connections or self._proxy.relays)

    def _end_remaining(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        self._proxy.close()
        self._ingress.close()
        self._decider.close()
        for source in self._check_sources:
            source.close()
        self._pool.close(None)
