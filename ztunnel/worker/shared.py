"""What all workloads of one worker share: built once by the worker, handed to each proxy."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.state.model import socket_text
from dataplane.worker.counters import TrafficTable
from dataplane.worker.credentials import CredentialStore
from dataplane.worker.flows import OPENED, FlowQueue, FlowTemplate
from dataplane.worker.log import WorkerLog
from dataplane.worker.resolver import Resolver
from proto.mycelia import worker_pb2 as pb
from transport.hbone.frame_buffer import FrameBuffer
from transport.reactor import Reactor
from ztunnel.state.connection_limits import NodeState
from ztunnel.state.routing import RoutingContext
from ztunnel.worker.limit_counts import LimitCounts
from ztunnel.worker.settings import WorkerSettings
from ztunnel.worker.tcp_pump import PipeStock


@dataclass(slots=True)
class Shared:
    """`open_connections` counts what `max_connections` bounds; the two sockets counters are the gauge of
    facts 11.2.
    """

    reactor: Reactor
    settings: WorkerSettings
    state: NodeState
    routing: RoutingContext
    credentials: CredentialStore
    traffic: TrafficTable
    flows: FlowQueue
    log: WorkerLog
    resolver: Resolver
    pipes: PipeStock
    buffer: FrameBuffer
    limit_counts: LimitCounts = field(default_factory=LimitCounts)
    is_draining: bool = False
    open_connections: int = 0
    outbound_sockets: int = 0
    inbound_sockets: int = 0
    on_demand_lookups: int = 0

    def note_opened(self, flow: FlowTemplate, peer: tuple[str, int]) -> None:
        """A record of a connection that begins; at level debug only (facts 11.4)."""
        if self.log.is_debug_on:
            self.flows.add(flow, pb.Flow(outcome=OPENED, src_addr=socket_text(*peer)))
