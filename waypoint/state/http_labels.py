"""The labels of a waypoint's metrics, in Istio's names and order (waypoint-facts 12). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dataplane.state.labels import (
    LABEL_NAMES,
    NOBODY,
    RESPONSE_FLAGS_INDEX,
    UNKNOWN,
    PeerLabels,
    labels_of,
    traffic_labels,
)
from dataplane.state.model import Service, Workload
from transport.spiffe import SpiffeId

REPORTER: Final = "waypoint"
# The four of locality come last in the common labels; HTTP metrics have none.
_LOCALITIES: Final = 4
_PROTOCOL_INDEX: Final = LABEL_NAMES.index("request_protocol")
HTTP_LABEL_NAMES: Final = (
    *LABEL_NAMES[: _PROTOCOL_INDEX + 1],
    "response_code",
    "grpc_response_status",
    *LABEL_NAMES[_PROTOCOL_INDEX + 1 : -_LOCALITIES],
)
# Of messages within calls that may still be open: neither a status nor flags.
MESSAGE_LABEL_NAMES: Final = (
    *LABEL_NAMES[: _PROTOCOL_INDEX + 1],
    *LABEL_NAMES[RESPONSE_FLAGS_INDEX + 1 : -_LOCALITIES],
)
# Upper bounds of every histogram's buckets, milliseconds or octets; the last bucket has none.
BOUNDS: Final = (
    *(0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0),
    *(60_000.0, 300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0),
)


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """`status` 0: no response began. `grpc_status` is the header's value, empty where there was none."""

    status: int
    flag: str
    grpc_status: bytes
    is_grpc: bool


def http_labels(
    source: PeerLabels,
    principal: SpiffeId | None,
    service: Service | None,
    destination: Workload | None,
    facts: HttpFacts,
) -> tuple[str, ...]:
    """In the order of `HTTP_LABEL_NAMES`. The client's namespace is its certificate's, where it has one."""
    common = _common(source, principal, service, destination)
    grpc = facts.grpc_status.decode("ascii", "replace")[:16] if facts.is_grpc else ""
    return (
        *common[:_PROTOCOL_INDEX],
        "grpc" if facts.is_grpc else "http",
        str(facts.status),
        grpc,
        facts.flag,
        *common[RESPONSE_FLAGS_INDEX + 1 : -_LOCALITIES],
    )


def tcp_labels(
    source: Workload | None,
    principal: SpiffeId | None,
    service: Service | None,
    destination: Workload | None,
) -> tuple[str, ...]:
    """In the order of `LABEL_NAMES`."""
    peer = labels_of(source) if source is not None else NOBODY
    return _common(peer, principal, service, destination)


def message_labels(
    source: Workload | None,
    principal: SpiffeId | None,
    service: Service | None,
    destination: Workload | None,
) -> tuple[str, ...]:
    """In the order of `MESSAGE_LABEL_NAMES`."""
    peer = labels_of(source) if source is not None else NOBODY
    common = _common(peer, principal, service, destination)
    return (
        *common[:_PROTOCOL_INDEX],
        "grpc",
        *common[RESPONSE_FLAGS_INDEX + 1 : -_LOCALITIES],
    )


def _common(
    source: PeerLabels, principal: SpiffeId | None, service: Service | None, destination: Workload | None
) -> tuple[str, ...]:
    labels = traffic_labels(
        REPORTER,
        source,
        principal,
        service=service,
        destination=labels_of(destination) if destination is not None else NOBODY,
        destination_principal=None if destination is None else destination.identity,
        is_mtls=principal is not None,
    )
    if principal is None:
        return labels
    namespace = LABEL_NAMES.index("source_workload_namespace")
    return (*labels[:namespace], principal.namespace or UNKNOWN, *labels[namespace + 1 :])
