"""The ztunnel's data worker: wires what carries the traffic of the node's workloads.

Orders of its own: AddWorkload, which brings a network namespace, and DelWorkload. What every worker does is
in dataplane/worker/base.py.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence

from dataplane.state.model import Workload
from dataplane.worker.base import DataWorker, named
from dataplane.worker.counters import TrafficTable
from dataplane.worker.errors import ConnectionDrained
from dataplane.worker.flows import FlowQueue
from dataplane.worker.resolver import Resolver
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.hbone.frame_buffer import FrameBuffer
from transport.netns import NetworkNamespace
from transport.reactor import Reactor, Timer
from ztunnel.state.connection_limits import NodeState
from ztunnel.state.routing import RoutingContext
from ztunnel.worker.recheck import PolicyRecheck
from ztunnel.worker.settings import WorkerSettings
from ztunnel.worker.shared import Shared
from ztunnel.worker.tcp_pump import PipeStock
from ztunnel.worker.workload import WorkloadInfo, WorkloadProxy

_MAX_DUMPED_CONNECTIONS = 10_000
# What a workload that has gone has still to say: its last connections. Then they are closed.
_LEAVE_DEADLINE_S = 5.0
_LEAVE_POLL_S = 0.05


class Worker(DataWorker[WorkerSettings]):
    """Built inert with the control process's socket; `run` returns when the worker has drained."""

    _shared: Shared

    def __init__(self, reactor: Reactor, control: socket.socket) -> None:
        super().__init__(reactor, control)
        self._state = NodeState(self._on_workload_change)
        self._proxies: dict[str, WorkloadProxy] = {}
        self._leaving: dict[WorkloadProxy, float] = {}  # until when
        self._recheck = PolicyRecheck(self._slices, self._state, self._every_proxy)
        self._policy_generation = 0
        self._is_selector_change = False
        self._leave_timer: Timer | None = None
        self._orders["del_workload"] = lambda message: self._del_workload(message.del_workload.uid)

    def _read_settings(self, text: str) -> WorkerSettings:
        return WorkerSettings.from_json(text)

    def _start(self, settings: WorkerSettings) -> None:
        reactor = self._reactor
        self._shared = Shared(
            reactor=reactor,
            settings=settings,
            state=self._state,
            routing=RoutingContext(settings.network, random.random, settings.peer_hbone_port),
            credentials=self.credentials,
            traffic=TrafficTable(),
            flows=FlowQueue(
                reactor, self._link.try_send, limit=settings.max_queued_flows, is_on=settings.is_access_log_on
            ),
            log=self._log,
            resolver=Resolver(reactor),
            pipes=PipeStock(),
            buffer=FrameBuffer(),
        )

    # Resources

    def _apply(
        self, type_url: str, upserts: Sequence[tuple[str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        return self._state.apply(type_url, upserts, removed)

    def _applied(self) -> None:
        if self._state.policy_generation != self._policy_generation or self._is_selector_change:
            self._policy_generation = self._state.policy_generation
            self._is_selector_change = False
            self._recheck.start()

    def _on_workload_change(self, old: Workload | None, new: Workload | None) -> None:
        """A new list of policies on a workload of ours counts as a change of policy."""
        if old is not None and new is not None and old.authorization_policies != new.authorization_policies:
            self._is_selector_change = True

    # Workloads

    def _take_descriptor(self, message: pb.ToWorker, descriptor: int) -> None:
        self._add_workload(message.add_workload, descriptor)

    def _add_workload(self, message: pb.AddWorkload, descriptor: int) -> None:
        error = ""
        try:
            namespace = NetworkNamespace(descriptor)
            old = self._proxies.get(message.uid)
            if old is not None and old.network.namespace is not None:
                if old.network.namespace.identity == namespace.identity:
                    namespace.close()  # the same once more: nothing to do
                    self._link.send(pb.ToControl(workload_result=pb.WorkloadResult(uid=message.uid)))
                    return
                self._del_workload(message.uid)
            info = WorkloadInfo(message.uid, message.name, message.namespace, message.service_account)
            proxy = WorkloadProxy(self._shared, info, namespace)
            try:
                proxy.open()
            except MeshError:
                proxy.close(ConnectionDrained("the workload could not be opened"))
                raise
            self._proxies[message.uid] = proxy
            if self._is_draining:
                proxy.drain()
        except MeshError as failure:
            error = str(failure)
        self._link.send(pb.ToControl(workload_result=pb.WorkloadResult(uid=message.uid, error=error)))

    def _del_workload(self, uid: str) -> None:
        """Nothing new is accepted from now on; what is open may end by itself, for a while."""
        proxy = self._proxies.pop(uid, None)
        if proxy is None:
            return
        proxy.leave()
        self._leaving[proxy] = self._reactor.now + _LEAVE_DEADLINE_S
        self._look_at_leaving()

    def _look_at_leaving(self) -> None:
        if self._leave_timer is not None:
            self._leave_timer.cancel()
            self._leave_timer = None
        for proxy, deadline in list(self._leaving.items()):
            if not proxy.open_connections or self._reactor.now >= deadline:
                del self._leaving[proxy]
                proxy.close(ConnectionDrained("connection closed: the workload was removed"))
        if self._leaving:
            self._leave_timer = self._reactor.call_later(_LEAVE_POLL_S, self._look_at_leaving)

    def _every_proxy(self) -> list[WorkloadProxy]:
        return [*self._proxies.values(), *self._leaving]

    # Answers

    def _stats_parts(self, request_id: int) -> Iterator[pb.ToControl | None]:
        for proxy in self._every_proxy():
            proxy.count_traffic()
            yield None
        shared = self._shared
        others = [
            named("istio_tcp_sockets_open", shared.outbound_sockets, "source"),
            named("istio_tcp_sockets_open", shared.inbound_sockets, "destination"),
            named("istio_on_demand_dns_total", shared.on_demand_lookups),
            named("mycelia_worker_policy_closed_connections_total", self._recheck.closed_connections),
            named("mycelia_worker_workloads", len(self._proxies)),
            named(
                "mycelia_worker_pool_connections",
                sum(p.pool.open_connections for p in self._every_proxy()),
            ),
            *shared.limit_counts.stats(),
        ]
        yield from shared.traffic.parts(request_id, others)

    def _describe(self) -> dict[str, object]:
        limit = _MAX_DUMPED_CONNECTIONS // max(len(self._proxies), 1)
        return {
            "workloadState": {uid: proxy.describe(limit) for uid, proxy in self._proxies.items()},
            "openConnections": self._shared.open_connections,
            "connectionLimits": {
                uid: [str(policy) for policy in policies] for uid, policies in self._state.limits().items()
            },
            "stateGeneration": self._state.generation,
        }

    # The end

    def _begin_drain(self) -> None:
        self._shared.is_draining = True
        for proxy in self._proxies.values():
            proxy.drain()

    def _has_connections(self) -> bool:
        return any(proxy.open_connections for proxy in self._every_proxy())

    def _end_remaining(self) -> None:
        for proxy in self._every_proxy():
            proxy.end_remaining()

    def _flush_records(self) -> None:
        self._shared.flows.flush()

    def _release(self) -> None:
        self._shared.resolver.close()
        self._shared.pipes.close()
