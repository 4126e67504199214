"""The control plane's metrics. Names and help are documented in docs/configuration.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from config.access import wall_clock
from config.control_plane import ControlPlane
from config.registry.object_views import WAYPOINT_SERVICE
from telemetry.metrics import Description, Kind, Labels, MetricSet, Number

CA_REMAINING = Description(
    "mycelia_ca_certificate_remaining_seconds",
    Kind.GAUGE,
    "Seconds until the first of the CA's certificates expires",
    unit="seconds",
)
OBJECTS = Description("mycelia_config_objects", Kind.GAUGE, "Objects in force", ("kind",))
PROBLEMS = Description("mycelia_config_problems", Kind.GAUGE, "Problems of manifests", ("severity",))
KEPT = Description("mycelia_config_kept_objects", Kind.GAUGE, "Objects whose last good version is in force")
RESOURCES = Description("mycelia_config_resources", Kind.GAUGE, "Compiled resources", ("type",))
COMPILED = Description("mycelia_config_compilations", Kind.COUNTER, "Resources compiled")
CLIENTS = Description("mycelia_xds_clients", Kind.GAUGE, "Open xDS streams", ("node",))
RESPONSES = Description("mycelia_xds_responses", Kind.COUNTER, "xDS responses sent")
SENT = Description("mycelia_xds_resources", Kind.COUNTER, "Resources sent in xDS responses")
ACKS = Description("mycelia_xds_acks", Kind.COUNTER, "xDS responses accepted by clients")
NACKS = Description("mycelia_xds_nacks", Kind.COUNTER, "xDS responses refused by clients")
NODES = Description("mycelia_nodes_attending", Kind.GAUGE, "Node agents connected")
WORKLOADS = Description(
    "mycelia_node_workloads", Kind.GAUGE, "Workloads that node agents report", ("node", "state")
)

REGISTRATIONS = Description(
    "mycelia_registrations", Kind.GAUGE, "Workloads that nodes register", ("node", "state")
)


def make_metrics(plane: ControlPlane) -> MetricSet:
    metrics = MetricSet()
    metrics.add_source(CA_REMAINING, lambda: {(): _ca_remaining_s(plane)})
    metrics.add_source(
        OBJECTS,
        lambda: _count(ref.kind for ref in plane.registry.index.objects if ref.kind != WAYPOINT_SERVICE),
    )
    metrics.add_source(PROBLEMS, lambda: _count(each.severity.value for each in plane.problems()))
    metrics.add_source(KEPT, lambda: {(): sum(each.is_kept for each in plane.sourced.values())})
    metrics.add_source(
        RESOURCES, lambda: {(url,): len(held) for url, held in plane.registry.resources.items()}
    )
    metrics.add_source(COMPILED, lambda: {(): plane.registry.compiled})
    metrics.add_source(CLIENTS, lambda: _count(client.node for client in plane.xds.clients))
    metrics.add_source(RESPONSES, lambda: {(): plane.xds.totals.responses})
    metrics.add_source(SENT, lambda: {(): plane.xds.totals.resources})
    metrics.add_source(ACKS, lambda: {(): plane.xds.totals.acks})
    metrics.add_source(NACKS, lambda: {(): plane.xds.totals.nacks})
    metrics.add_source(NODES, lambda: {(): len(plane.nodes.attending)})
    metrics.add_source(WORKLOADS, lambda: _workloads(plane))
    metrics.add_source(REGISTRATIONS, lambda: _registrations(plane))
    return metrics


def _ca_remaining_s(plane: ControlPlane) -> float:
    return round((plane.authority.dates.not_after - wall_clock()).total_seconds(), 1)


def _count(words: Iterable[str]) -> Mapping[Labels, Number]:
    return {(word,): number for word, number in sorted(Counter(words).items())}


def _workloads(plane: ControlPlane) -> Mapping[Labels, Number]:
    counts: Counter[Labels] = Counter()
    for node in plane.nodes.book.nodes():
        for each in plane.nodes.book.attached(node):
            counts[(node, "captured" if each.is_captured else "attached")] += 1
    return dict(counts)


def _registrations(plane: ControlPlane) -> Mapping[Labels, Number]:
    """An expired lease is a state of its own."""
    registrations = plane.nodes.registrations
    counts: Counter[Labels] = Counter()
    for claim in registrations.claims():
        state = claim.verdict.state.name.lower()
        counts[(claim.node, "expired" if registrations.is_expired(claim.node) else state)] += 1
    return dict(counts)
