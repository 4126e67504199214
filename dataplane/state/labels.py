"""Telemetry labels of a connection (facts 11.2) and the guess of what an inbound connection meant
(facts 4.8).

A label tuple has `len(LABEL_NAMES)` strings in the documented order; the four locality labels are
always there and empty where nothing is known (the exposition leaves them out). A missing value
elsewhere is `unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.state.model import Service, Workload
from dataplane.state.store import MeshState
from transport.hbone.baggage import Baggage, encode_baggage
from transport.spiffe import SpiffeId

LABEL_NAMES = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)
RESPONSE_FLAGS_INDEX = LABEL_NAMES.index("response_flags")
UNKNOWN = "unknown"

# Response flags (facts 11.2).
NO_FLAG = "-"
DENY = "DENY"
RATE_LIMITED = "RL"
CONNECT = "CONNECT"
TLS_FAILURE = "TLS_FAILURE"
H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"
NETWORK_POLICY = "NETWORK_POLICY"
IDENTITY_ERROR = "IDENTITY_ERROR"
CERT_REVOKED = "CERT_REVOKED"

REPORTER_SOURCE = "source"
REPORTER_DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class PeerLabels:
    """One end of a connection as telemetry names it; empty means unknown."""

    workload: str = ""
    canonical_service: str = ""
    canonical_revision: str = ""
    namespace: str = ""
    app: str = ""
    version: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""


NOBODY = PeerLabels()


def labels_of(workload: Workload) -> PeerLabels:
    """A workload of the address book."""
    locality = workload.locality
    return PeerLabels(
        workload.workload_name,
        workload.canonical_name,
        workload.canonical_revision,
        workload.namespace,
        workload.canonical_name,
        workload.canonical_revision,
        workload.cluster_id,
        locality.region,
        locality.zone,
    )


def labels_of_baggage(
    *,
    workload: str = "",
    canonical_service: str = "",
    canonical_revision: str = "",
    namespace: str = "",
    cluster: str = "",
    region: str = "",
    zone: str = "",
) -> PeerLabels:
    """A peer that only its baggage describes; `app` is then the workload's name (facts 11.2)."""
    return PeerLabels(
        workload,
        canonical_service,
        canonical_revision,
        namespace,
        workload,
        canonical_revision,
        cluster,
        region,
        zone,
    )


def traffic_labels(
    reporter: str,
    source: PeerLabels,
    source_principal: SpiffeId | None,
    *,
    service: Service | None,
    destination: PeerLabels,
    destination_principal: SpiffeId | None,
    is_mtls: bool,
    flags: str = NO_FLAG,
) -> tuple[str, ...]:
    """The common labels of one connection, in the order of `LABEL_NAMES`."""
    return (
        reporter,
        source.workload or UNKNOWN,
        source.canonical_service or UNKNOWN,
        source.canonical_revision or UNKNOWN,
        source.namespace or UNKNOWN,
        UNKNOWN if source_principal is None else str(source_principal),
        source.app or UNKNOWN,
        source.version or UNKNOWN,
        source.cluster or UNKNOWN,
        UNKNOWN if service is None else service.hostname,
        UNKNOWN if service is None else service.namespace or UNKNOWN,
        UNKNOWN if service is None else service.name or UNKNOWN,
        destination.workload or UNKNOWN,
        destination.canonical_service or UNKNOWN,
        destination.canonical_revision or UNKNOWN,
        destination.namespace or UNKNOWN,
        UNKNOWN if destination_principal is None else str(destination_principal),
        destination.app or UNKNOWN,
        destination.version or UNKNOWN,
        destination.cluster or UNKNOWN,
        "tcp",
        flags,
        "mutual_tls" if is_mtls else UNKNOWN,
        source.region,
        source.zone,
        destination.region,
        destination.zone,
    )


def with_flags(labels: tuple[str, ...], flags: str) -> tuple[str, ...]:
    """The same labels with the final response flags."""
    if labels[RESPONSE_FLAGS_INDEX] == flags:
        return labels
    return (*labels[:RESPONSE_FLAGS_INDEX], flags, *labels[RESPONSE_FLAGS_INDEX + 1 :])


def guess_source(
    state: MeshState, network: str, peer_ip: str, forwarded_network: str | None = None
) -> Workload | None:
    """The source workload by its address, unless the request says it comes from another network."""
    if forwarded_network is not None and forwarded_network.lower() != network.lower():
        return None
    return state.workload_by_ip(network, peer_ip)


def guess_service(
    own: Workload,
    state: MeshState,
    port: int,
    *,
    forwarded_host: str | None = None,
    authority_service: Service | None = None,
) -> Service | None:
    """The service an inbound connection was meant for (facts 4.8)."""
    if forwarded_host:
        if authority_service is not None and authority_service.hostname == forwarded_host:
            return authority_service
        for key in own.services:
            service = state.services.get(key)
            if service is not None and service.hostname == forwarded_host:
                return service
    if authority_service is not None:
        return authority_service
    for key, ports in own.services.items():
        service = state.services.get(key)
        if service is not None and (port in ports.values() or port in service.ports.values()):
            return service
    return None


def baggage_of(workload: Workload) -> bytes:
    """The `baggage` header that describes a workload."""
    return encode_baggage(
        Baggage(
            cluster_id=workload.cluster_id,
            namespace=workload.namespace,
            workload_type=workload.workload_type.name.lower(),
            workload_name=workload.workload_name,
            service_name=workload.canonical_name,
            revision=workload.canonical_revision,
            region=workload.locality.region,
            zone=workload.locality.zone,
        )
    )
