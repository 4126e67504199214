"""A data worker: takes orders from the control process and wires what carries the traffic.

Life: Hello; Configure; then resources, credentials and workloads in any order; Synced; Drain at the end.
Orders are worked off in order and, where they are long, in slices between passes. A control process that goes
away takes no connection with it: the worker stops accepting (a successor shares its ports) and ends with its
last connection.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from itertools import islice

from dataplane.state.model import Workload
from dataplane.state.store import MeshState
from dataplane.worker.counters import TrafficTable
from dataplane.worker.credentials import CredentialStore
from dataplane.worker.errors import ConnectionDrained
from dataplane.worker.flows import FlowQueue
from dataplane.worker.link import ControlLink
from dataplane.worker.log import WorkerLog
from dataplane.worker.resolver import Resolver
from dataplane.worker.slices import SliceRunner
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.hbone.frame_buffer import FrameBuffer
from transport.netns import NetworkNamespace
from transport.reactor import Reactor, Registration, Timer
from transport.spiffe import SpiffeId
from ztunnel.state.routing import RoutingContext
from ztunnel.worker.recheck import PolicyRecheck
from ztunnel.worker.settings import WorkerSettings
from ztunnel.worker.shared import Shared
from ztunnel.worker.tcp_pump import PipeStock
from ztunnel.worker.workload import WorkloadInfo, WorkloadProxy

_RESOURCES_PER_STEP = 10
_MAX_DUMPED_CONNECTIONS = 10_000
# After so many collections of the youngest objects, what updates have left behind is taken out of the
# collector's sight before a middle collection would look at all of it, for tens of milliseconds.
_YOUNG_ROUNDS = 5
_DRAIN_POLL_S = 0.1
_ORPHAN_DEADLINE_S = 3600.0


class Worker:
    """Built inert with the control process's socket; `run` returns when the worker has drained."""

    def __init__(self, reactor: Reactor, control: socket.socket) -> None:
        self._reactor = reactor
        self._link = ControlLink(
            reactor, control, on_message=self._on_message, on_closed=self._on_control_gone
        )
        self._log = WorkerLog(self._link.try_send, lambda: reactor.now)
        self._slices = SliceRunner(reactor)
        self._state = MeshState(self._on_workload_change)
        self._proxies: dict[str, WorkloadProxy] = {}
        self._recheck = PolicyRecheck(self._slices, self._state, self._proxies.values)
        self._policy_generation = 0
        self._shared: Shared | None = None
        self._drain_deadline: float | None = None
        self._drain_timer: Timer | None = None
        self._is_selector_change = False
        self._orders: dict[str, Callable[[Shared, pb.ToWorker], None]] = {
            "resources": self._on_resources,
            "del_workload": self._on_del_workload,
            "credential": self._on_credential,
            "credential_failed": self._on_credential_failed,
            "forget_credential": self._on_forget_credential,
            "stats_request": self._on_stats_request,
            "dump_request": self._on_dump_request,
            "drain": self._on_drain,
            "set_log_level": self._on_set_log_level,
            "synced": self._on_synced,
        }

    def drain(self) -> None:
        """Accept nothing more and end with the last connection; the control process may set a deadline."""
        self._start_drain(_ORPHAN_DEADLINE_S)

    def run(self) -> None:
        self._reactor.on_callback_error = self._on_callback_error
        self._link.send(pb.ToControl(hello=pb.Hello(pid=os.getpid())))
        self._reactor.run()
        self._link.finish()

    # Orders

    def _on_message(self, message: pb.ToWorker, descriptor: int | None) -> None:
        kind = message.WhichOneof("message")
        if kind == "configure":
            self._configure(message.configure)
        elif self._shared is None:
            if descriptor is not None:
                os.close(descriptor)
            self._log.write("error", "order_before_configure", kind=kind)
        elif descriptor is not None:
            self._add_workload(message.add_workload, descriptor)
        elif kind in self._orders:
            self._orders[kind](self._shared, message)
        else:
            self._log.write("warn", "unknown_order", kind=str(kind))

    def _on_resources(self, shared: Shared, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        self._link.hold()  # what follows builds on them
        self._slices.add(self._apply(message.resources))

    def _on_del_workload(self, shared: Shared, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        self._del_workload(message.del_workload.uid)

    def _on_credential(self, shared: Shared, message: pb.ToWorker) -> None:
        credential = message.credential
        identity = SpiffeId.parse(credential.spiffe_id)
        try:
            shared.credentials.put(
                identity,
                list(credential.chain_pem),
                credential.key_pem,
                credential.roots_pem,
                credential.not_after,
            )
        except MeshError as error:
            self._log.write("error", "credential_unusable", identity=credential.spiffe_id, reason=error.text)
            shared.credentials.put_failure(identity, error.text)

    def _on_credential_failed(self, shared: Shared, message: pb.ToWorker) -> None:
        failed = message.credential_failed
        shared.credentials.put_failure(SpiffeId.parse(failed.spiffe_id), failed.error)

    def _on_forget_credential(self, shared: Shared, message: pb.ToWorker) -> None:
        shared.credentials.forget(SpiffeId.parse(message.forget_credential.spiffe_id))

    def _on_stats_request(self, shared: Shared, message: pb.ToWorker) -> None:
        self._slices.add(self._stats(shared, message.stats_request.id))

    def _on_drain(self, shared: Shared, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        self._start_drain(message.drain.deadline_s)

    def _on_set_log_level(self, shared: Shared, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        if not self._log.set_level(message.set_log_level.level):
            self._log.write("warn", "unknown_log_level", wanted=message.set_log_level.level)

    def _on_synced(self, shared: Shared, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        """What is here now lives long: the collector need not look at it again (DESIGN 4). Without a
        collection before it, which would be a pause.
        """
        gc.freeze()

    def _configure(self, message: pb.Configure) -> None:
        settings = WorkerSettings.from_json(message.settings_json)
        reactor = self._reactor
        self._log.set_level(settings.log_level)
        if self._shared is not None:
            self._log.write("warn", "configured_twice")
            return
        self._shared = Shared(
            reactor=reactor,
            settings=settings,
            state=self._state,
            routing=RoutingContext(settings.network, random.random, settings.peer_hbone_port),
            credentials=CredentialStore(reactor, ask=self._ask_credential, wait_s=settings.credential_wait_s),
            traffic=TrafficTable(),
            flows=FlowQueue(
                reactor, self._link.try_send, limit=settings.max_queued_flows, is_on=settings.is_access_log_on
            ),
            log=self._log,
            resolver=Resolver(reactor),
            pipes=PipeStock(),
            buffer=FrameBuffer(),
        )

    def _apply(self, batch: pb.Resources) -> Iterator[None]:
        """One batch in steps of a few resources; every step leaves the state whole."""
        upserts = ((resource.name, resource.value) for resource in batch.upserts)
        while chunk := list(islice(upserts, _RESOURCES_PER_STEP)):
            self._report_rejected(self._state.apply(batch.type_url, chunk, ()))
            yield
        removed = iter(batch.removed)
        while names := list(islice(removed, _RESOURCES_PER_STEP)):
            self._state.apply(batch.type_url, (), names)
            yield
        if self._state.policy_generation != self._policy_generation or self._is_selector_change:
            self._policy_generation = self._state.policy_generation
            self._is_selector_change = False
            self._recheck.start()
        if gc.get_count()[1] >= _YOUNG_ROUNDS:
            gc.freeze()
        self._link.go_on()

    def _report_rejected(self, rejected: dict[str, str]) -> None:
        for name, reason in rejected.items():
            self._log.limited("warn", "resource_rejected", name=name, reason=reason)

    def _on_workload_change(self, old: Workload | None, new: Workload | None) -> None:
        """A new list of policies on a workload of ours counts as a change of policy."""
        if old is not None and new is not None and old.authorization_policies != new.authorization_policies:
            self._is_selector_change = True

    def _add_workload(self, message: pb.AddWorkload, descriptor: int) -> None:
        assert self._shared is not None
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
            if self._drain_deadline is not None:
                proxy.drain()
        except MeshError as failure:
            error = str(failure)
        self._link.send(pb.ToControl(workload_result=pb.WorkloadResult(uid=message.uid, error=error)))

    def _del_workload(self, uid: str) -> None:
        proxy = self._proxies.pop(uid, None)
        if proxy is not None:
            proxy.close(ConnectionDrained("connection closed: the workload was removed"))

    def _ask_credential(self, identity: SpiffeId) -> None:
        self._link.send(pb.ToControl(credential_wanted=pb.CredentialWanted(spiffe_id=str(identity))))

    # Answers

    def _stats(self, shared: Shared, request_id: int) -> Iterator[None]:
        for proxy in list(self._proxies.values()):
            proxy.count_traffic()
            yield
        named = [
            _named("istio_tcp_sockets_open", shared.outbound_sockets, "source"),
            _named("istio_tcp_sockets_open", shared.inbound_sockets, "destination"),
            _named("istio_on_demand_dns_total", shared.on_demand_lookups),
            _named("mycelia_worker_policy_closed_connections_total", self._recheck.closed_connections),
            _named("mycelia_worker_workloads", len(self._proxies)),
            _named(
                "mycelia_worker_pool_connections",
                sum(p.pool.open_connections for p in self._proxies.values()),
            ),
        ]
        for part in shared.traffic.parts(request_id, named):
            self._link.send(part)
            yield

    def _on_dump_request(self, shared: Shared, message: pb.ToWorker) -> None:
        limit = _MAX_DUMPED_CONNECTIONS // max(len(self._proxies), 1)
        content = {
            "pid": os.getpid(),
            "workloadState": {uid: proxy.describe(limit) for uid, proxy in self._proxies.items()},
            "certificates": shared.credentials.describe(),
            "openConnections": shared.open_connections,
            "stateGeneration": self._state.generation,
        }
        self._link.send(pb.ToControl(dump=pb.Dump(id=message.dump_request.id, json=json.dumps(content))))

    # The end

    def _start_drain(self, deadline_s: float) -> None:
        deadline = self._reactor.now + deadline_s
        if self._drain_deadline is not None:
            self._drain_deadline = min(self._drain_deadline, deadline)
            return
        self._drain_deadline = deadline
        if self._shared is not None:
            self._shared.is_draining = True
        for proxy in self._proxies.values():
            proxy.drain()
        self._look_at_drain()

    def _look_at_drain(self) -> None:
        assert self._drain_deadline is not None
        is_late = self._reactor.now >= self._drain_deadline
        if is_late:
            for proxy in self._proxies.values():
                proxy.end_remaining()
        if is_late or not any(proxy.open_connections for proxy in self._proxies.values()):
            self._finish_drain()
            return
        self._drain_timer = self._reactor.call_later(_DRAIN_POLL_S, self._look_at_drain)

    def _finish_drain(self) -> None:
        for proxy in self._proxies.values():
            proxy.end_remaining()
        if self._shared is not None:
            self._shared.flows.flush()
        self._link.send(pb.ToControl(drained=pb.Drained()))
        # One more pass, for what the connections have still to say to their peers.
        self._reactor.call_later(_DRAIN_POLL_S, self._reactor.stop)

    def _on_control_gone(self, reason: str) -> None:
        self._log.write("error", "control_process_gone", reason=reason)
        self.drain()

    def close(self) -> None:
        """Release everything; for tests that build a worker in their own process."""
        for proxy in self._proxies.values():
            proxy.end_remaining()
        if self._shared is not None:
            self._shared.resolver.close()
            self._shared.pipes.close()
        self._link.close()
        self._slices.close()

    def _on_callback_error(self, error: BaseException, registration: Registration | None) -> None:
        place = ""
        trace = error.__traceback__
        while trace is not None:
            place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
            trace = trace.tb_next
        self._log.limited(
            "error", "defect", error=repr(error), place=place, fd=registration.fd if registration else -1
        )


def _named(name: str, value: float, *labels: str) -> pb.Stats.Named:
    return pb.Stats.Named(name=name, labels=labels, value=value)
