"""What is the same for all connections between two ends, worked out once: decision, labels, log fields,
headers.

Plans are pure functions of the mesh state and are dropped when its generation changes, so that a new
connection always meets the present policy; a connection costs one look-up. The caches are bounded and start
anew when full.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.state import labels
from dataplane.state.labels import baggage_of
from dataplane.state.model import Service, Workload, socket_text
from dataplane.state.policy import Connection
from dataplane.state.store import MeshState
from dataplane.worker.counters import TrafficSeries, TrafficTable
from dataplane.worker.flows import FlowTemplate
from transport.hbone.baggage import Baggage, parse_baggage
from transport.hbone.connect import ConnectRequest, Headers, RequestTemplate
from transport.hbone.connection import plain_headers
from transport.hbone.pool import PoolKey
from transport.spiffe import SpiffeId
from ztunnel.state.connection_limits import Gate
from ztunnel.state.inbound import InboundTarget, Refusal, resolve_inbound
from ztunnel.state.rbac import Verdict, authorize
from ztunnel.state.routing import Protocol, Route
from ztunnel.worker.settings import WorkerSettings

MAX_PLANS = 8192


@dataclass(frozen=True, slots=True)
class OutboundPlan:
    """One way from this workload to one destination."""

    route: Route  # kept alive: the cache's key holds identities of its parts
    key: PoolKey
    template: RequestTemplate
    series: TrafficSeries
    flow: FlowTemplate


def plan_outbound(route: Route, source: Workload, traffic: TrafficTable) -> OutboundPlan:
    """For a route with an address; of a TCP route, `key` and `template` are of no meaning."""
    is_hbone = route.protocol is not Protocol.TCP
    destination = route.workload
    key = PoolKey(
        source.identity,
        route.expected_identities,
        route.address,
        source.addresses[0] if source.addresses else "",
    )
    template = RequestTemplate(
        route.authority or "",
        baggage=baggage_of(source),
        service_host=route.service.hostname if route.service is not None else "",
    )
    values = labels.traffic_labels(
        labels.REPORTER_SOURCE,
        labels.labels_of(source),
        source.identity if is_hbone else None,
        service=route.service,
        destination=labels.labels_of(destination) if destination is not None else labels.NOBODY,
        destination_principal=destination.identity if destination is not None else None,
        is_mtls=is_hbone,
    )
    flow = FlowTemplate(
        is_inbound=False,
        **_end("src", source, source.identity if is_hbone else None),
        **_end("dst", destination, destination.identity if is_hbone and destination is not None else None),
        dst_addr=socket_text(*route.address),
        dst_hbone_addr=route.authority or "",
        dst_service=route.service.hostname if route.service is not None else "",
    )
    return OutboundPlan(route, key, template, traffic.series(values), flow)


@dataclass(frozen=True, slots=True)
class InboundPlan:
    """The decision on one kind of inbound connection: who asks for what at which of our addresses."""

    own: Workload
    target: InboundTarget | Refusal
    connection: Connection | None  # what policies look at; None with a Refusal
    verdict: Verdict
    series: TrafficSeries
    flow: FlowTemplate
    identity: SpiffeId | None
    gate: Gate | None = None  # the limits that it falls under, if any


_NO_VERDICT = Verdict(is_allowed=False)


def plan_inbound_tunnel(
    request: ConnectRequest,
    peer_ip: str,
    identity: SpiffeId | None,
    local: tuple[str, int],
    *,
    own: Workload,
    state: MeshState,
    settings: WorkerSettings,
    traffic: TrafficTable,
) -> InboundPlan:
    """A CONNECT request (facts 4.1-4.3, 4.8)."""
    target = resolve_inbound(
        request.authority,
        local[0],
        own,
        state,
        settings.network,
        is_localhost_tunnel=settings.is_localhost_app_tunnel,
        illegal_ports=frozenset(settings.illegal_ports),
    )
    service: Service | None = None
    connection: Connection | None = None
    verdict = _NO_VERDICT
    if isinstance(target, InboundTarget):
        connection = Connection(peer_ip, identity, *target.address)
        verdict = authorize(connection, own, state)
        service = labels.guess_service(
            own,
            state,
            target.address[1],
            forwarded_host=request.forwarded_host or None,
            authority_service=target.service,
        )
    source = labels.guess_source(state, settings.network, peer_ip, request.forwarded_network or None)
    baggage = parse_baggage(request.baggage) if source is None and settings.is_response_baggage_on else None
    return _inbound_plan(
        own,
        source,
        baggage,
        target=target,
        connection=connection,
        verdict=verdict,
        service=service,
        identity=identity,
        dst_addr=local,
        dst_hbone_addr=request.authority.decode("ascii", "replace"),
        traffic=traffic,
    )


def plan_passthrough(
    peer_ip: str,
    destination: tuple[str, int],
    *,
    own: Workload,
    state: MeshState,
    settings: WorkerSettings,
    traffic: TrafficTable,
) -> InboundPlan:
    """A plaintext connection that was redirected to us (facts 4.5)."""
    connection = Connection(peer_ip, None, *destination)
    return _inbound_plan(
        own,
        labels.guess_source(state, settings.network, peer_ip),
        None,
        target=InboundTarget(destination),
        connection=connection,
        verdict=authorize(connection, own, state),
        service=labels.guess_service(own, state, destination[1]),
        identity=None,
        dst_addr=destination,
        dst_hbone_addr="",
        traffic=traffic,
    )


def _inbound_plan(
    own: Workload,
    source: Workload | None,
    baggage: Baggage | None,
    *,
    target: InboundTarget | Refusal,
    connection: Connection | None,
    verdict: Verdict,
    service: Service | None,
    identity: SpiffeId | None,
    dst_addr: tuple[str, int],
    dst_hbone_addr: str,
    traffic: TrafficTable,
) -> InboundPlan:
    values = labels.traffic_labels(
        labels.REPORTER_DESTINATION,
        _source_labels(source, baggage, identity),
        identity,
        service=service,
        destination=labels.labels_of(own),
        destination_principal=own.identity,
        is_mtls=identity is not None,
    )
    flow = FlowTemplate(
        is_inbound=True,
        **(_end("src", source, identity) if source is not None else _unknown_source(baggage, identity)),
        **_end("dst", own, own.identity if identity is not None else None),
        dst_addr=socket_text(*dst_addr),
        dst_hbone_addr=dst_hbone_addr,
        dst_service=service.hostname if service is not None else "",
    )
    return InboundPlan(own, target, connection, verdict, traffic.series(values), flow, identity)


def _source_labels(
    source: Workload | None, baggage: Baggage | None, identity: SpiffeId | None
) -> labels.PeerLabels:
    if source is not None:
        return labels.labels_of(source)
    if baggage is not None:
        return labels.labels_of_baggage(
            workload=baggage.workload_name,
            canonical_service=baggage.service_name,
            canonical_revision=baggage.revision,
            namespace=baggage.namespace,
            cluster=baggage.cluster_id,
            region=baggage.region,
            zone=baggage.zone,
        )
    if identity is not None:
        return labels.labels_of_baggage(namespace=identity.namespace)
    return labels.NOBODY


def _end(prefix: str, workload: Workload | None, identity: SpiffeId | None) -> dict[str, str]:
    """The log fields of one end."""
    fields = {f"{prefix}_identity": "" if identity is None else str(identity)}
    if workload is not None:
        fields[f"{prefix}_workload"] = workload.name or workload.canonical_name
        fields[f"{prefix}_namespace"] = workload.namespace
        fields[f"{prefix}_cluster"] = workload.cluster_id
    return fields


def _unknown_source(baggage: Baggage | None, identity: SpiffeId | None) -> dict[str, str]:
    fields = {"src_identity": "" if identity is None else str(identity)}
    if baggage is not None:
        fields["src_workload"] = baggage.service_name
        fields["src_namespace"] = baggage.namespace
        fields["src_cluster"] = baggage.cluster_id
    elif identity is not None:
        fields["src_namespace"] = identity.namespace
    return fields


def accept_headers(own: Workload, *, is_baggage_on: bool) -> Headers:
    """The headers of a 200."""
    return plain_headers(200, [(b"baggage", baggage_of(own))] if is_baggage_on else None)
