"""The mesh's own view of configuration: what manifests become once they are checked.

Invariants: every value is immutable and complete; an invalid object cannot be built, because only the kinds
of `config.kinds` build them. Addresses are canonical text. Nothing here knows YAML, pydantic or protobuf.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from config.extension_providers import ExtensionProvider
from config.mesh_defaults import MeshDefaults
from config.observing import LoggingStep, MeshObserving, MetricOverride, TracingStep
from config.policy_rules import ConnectionLimit, JwtRule, PolicyAction, PolicyRule, RateLimit
from config.refs import Ref as Ref  # noqa: PLC0414 - what objects are called belongs to them
from config.routing_rules import GrpcRule, HttpRule, ParentRef, StreamRule
from config.traffic_policies import NO_POLICIES, Budget, PolicySet, Subset, Tls
from config.virtual_routes import HttpPart, StreamPart


class Kind(enum.Enum):
    """The kinds the mesh reads, named as in manifests."""

    NAMESPACE = "Namespace"
    NODE = "Node"
    SERVICE_ACCOUNT = "ServiceAccount"
    SERVICE = "Service"
    POD = "Pod"
    ENDPOINT_SLICE = "EndpointSlice"
    WORKLOAD_ENTRY = "WorkloadEntry"
    SERVICE_ENTRY = "ServiceEntry"
    AUTHORIZATION_POLICY = "AuthorizationPolicy"
    PEER_AUTHENTICATION = "PeerAuthentication"
    REQUEST_AUTHENTICATION = "RequestAuthentication"
    RATE_LIMIT_POLICY = "RateLimitPolicy"
    ENVOY_FILTER = "EnvoyFilter"  # read as a RateLimitPolicy
    FILTER_POLICY = "FilterPolicy"
    REGISTRATION_POLICY = "RegistrationPolicy"
    TELEMETRY = "Telemetry"
    GATEWAY = "Gateway"
    GATEWAY_CLASS = "GatewayClass"
    HTTP_ROUTE = "HTTPRoute"
    GRPC_ROUTE = "GRPCRoute"
    TCP_ROUTE = "TCPRoute"
    TLS_ROUTE = "TLSRoute"
    REFERENCE_GRANT = "ReferenceGrant"
    VIRTUAL_SERVICE = "VirtualService"
    DESTINATION_RULE = "DestinationRule"
    BACKEND_TRAFFIC_POLICY = "XBackendTrafficPolicy"
    BACKEND_TLS_POLICY = "BackendTLSPolicy"
    MESH_CONFIG = "ConfigMap"
    SECRET = "Secret"  # noqa: S105 - a kind


ROUTE_KINDS: Final = frozenset({"HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"})


@dataclass(frozen=True, slots=True)
class Owner:
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Meta:
    ref: Ref
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    is_being_deleted: bool = False
    uid: str = ""
    controller: Owner | None = None

    @property
    def namespace(self) -> str:
        return self.ref.namespace

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def age_key(self) -> tuple[bool, datetime | None, str, str]:
        """Sorts oldest first. Files seldom carry a creation time: those without one count as youngest."""
        return (self.created is None, self.created, self.ref.namespace, self.ref.name)


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""

    def __bool__(self) -> bool:
        return bool(self.region or self.zone or self.subzone)


NO_LOCALITY: Final = Locality()


@dataclass(frozen=True, slots=True)
class Namespace:
    meta: Meta


@dataclass(frozen=True, slots=True)
class Node:
    meta: Meta
    locality: Locality


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    meta: Meta


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A TCP port of a Service. `target` is a number, or the name of a container port."""

    number: int
    name: str
    target: int | str
    app_protocol: str = ""


class TrafficScope(enum.Enum):
    """How far a service's traffic prefers to stay."""

    ANYWHERE = "anywhere"
    SAME_ZONE = "PreferSameZone"
    SAME_NODE = "PreferSameNode"
    LOCAL_ONLY = "Local"


@dataclass(frozen=True, slots=True)
class Service:
    meta: Meta
    is_external_name: bool = False
    is_headless: bool = False
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    is_unready_published: bool = False
    traffic_scope: TrafficScope | None = None  # None: not said in the spec
    ip_families: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    meta: Meta
    addresses: tuple[str, ...] = ()
    is_finished: bool = False
    is_ready: bool = True
    service_account: str = "default"
    node: str = ""
    is_host_network: bool = False
    named_ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    addresses: tuple[str, ...]
    is_ready: bool
    pod: tuple[str, str] | None = None  # (namespace, name) of the targeted pod
    pod_uid: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    meta: Meta
    service: str
    ports: Mapping[str, int] = field(default_factory=dict)  # port name -> number
    endpoints: tuple[SliceEndpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The spec of a WorkloadEntry, also used inline by a ServiceEntry."""

    addresses: tuple[str, ...] = ()
    hostname: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    locality: Locality = NO_LOCALITY
    weight: int | None = None
    service_account: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    meta: Meta  # labels: the metadata's and the spec's, the spec's winning
    endpoint: Endpoint
    is_ready: bool = True


class Resolution(enum.Enum):
    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"


@dataclass(frozen=True, slots=True)
class EntryPort:
    number: int
    name: str
    protocol: str
    target: int = 0


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    meta: Meta
    hosts: tuple[str, ...]
    resolution: Resolution
    is_internal: bool = False
    addresses: tuple[str, ...] = ()  # IP or CIDR
    status_addresses: tuple[tuple[str, str], ...] = ()  # (host or empty, address), allocated by another
    ports: tuple[EntryPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    subject_alt_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetRef:
    group: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    meta: Meta
    action: PolicyAction = PolicyAction.ALLOW
    selector: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[TargetRef, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    is_dry_run: bool = False
    provider: str = ""  # of action CUSTOM


@dataclass(frozen=True, slots=True)
class RequestAuthentication:
    meta: Meta
    selector: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[TargetRef, ...] = ()
    rules: tuple[JwtRule, ...] = ()


@dataclass(frozen=True, slots=True)
class RateLimitPolicy:
    """`limits` are for waypoints and `connections` for node proxies: of `targets`, else of the workloads that
    `selector` selects, else of all in the namespace (of the mesh, from the root namespace).
    """

    meta: Meta
    targets: tuple[TargetRef, ...] = ()
    limits: tuple[RateLimit, ...] = ()
    tells: bool = True
    failure_mode: str = "Local"
    answer_headers: tuple[tuple[str, str], ...] = ()  # on answers to what is over the limit
    selector: Mapping[str, str] = field(default_factory=dict)
    connections: tuple[ConnectionLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class FilterPolicy:
    """`config` is a JSON object as text; sizes in bytes."""

    meta: Meta
    targets: tuple[TargetRef, ...] = ()
    source: str = ""
    config: str = "{}"
    in_worker: bool = False
    deadline_ms: int = 0
    fails_open: bool = False
    whole_body_bytes: int = 0
    memory_bytes: int = 0
    order: int = 0


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """What nodes may register in its namespace. `nodes`, `accounts` and values of labels: a name, `prefix*`
    or `*`; `networks`: CIDR blocks that hold all addresses. Labels that are not listed are not allowed.
    """

    meta: Meta
    nodes: tuple[str, ...]
    accounts: tuple[str, ...]
    networks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    network_names: tuple[
        str, ...
    ] = ()  # that may be named, beside the one that the workload would have anyway


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Without targets and selector it is for its namespace, in the root namespace for the mesh."""

    meta: Meta
    selector: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[TargetRef, ...] = ()
    logging: tuple[LoggingStep, ...] = ()
    tracing: tuple[TracingStep, ...] = ()
    overrides: tuple[MetricOverride, ...] = ()
    metric_providers: tuple[str, ...] = ()

    @property
    def is_general(self) -> bool:
        return not self.targets and not self.selector


class MtlsMode(enum.Enum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    meta: Meta
    selector: Mapping[str, str] = field(default_factory=dict)
    mode: MtlsMode = MtlsMode.UNSET
    port_modes: Mapping[int, MtlsMode] = field(default_factory=dict)


class AllowedFrom(enum.Enum):
    """Which namespaces may enrol objects in a waypoint."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class LabelOperator(enum.Enum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class LabelExpression:
    key: str
    operator: LabelOperator
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gateway:
    """The part of a Gateway that says where a waypoint is and whom it serves."""

    meta: Meta
    class_name: str
    hostname: str = ""
    addresses: tuple[str, ...] = ()
    port: int = 15008
    allowed_from: AllowedFrom = AllowedFrom.SAME
    allowed_labels: Mapping[str, str] = field(default_factory=dict)
    allowed_expressions: tuple[LabelExpression, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayClass:
    meta: Meta
    controller: str


@dataclass(frozen=True, slots=True)
class HttpRoute:
    meta: Meta
    parents: tuple[ParentRef, ...] = ()
    rules: tuple[HttpRule, ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcRoute:
    meta: Meta
    parents: tuple[ParentRef, ...] = ()
    rules: tuple[GrpcRule, ...] = ()


@dataclass(frozen=True, slots=True)
class TcpRoute:
    meta: Meta
    parents: tuple[ParentRef, ...] = ()
    rules: tuple[StreamRule, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsRoute:
    """Without hostnames: every connection."""

    meta: Meta
    parents: tuple[ParentRef, ...] = ()
    hostnames: tuple[str, ...] = ()
    rules: tuple[StreamRule, ...] = ()


Route = HttpRoute | GrpcRoute | TcpRoute | TlsRoute


@dataclass(frozen=True, slots=True)
class ReferenceGrant:
    meta: Meta
    sources: tuple[tuple[str, str, str], ...] = ()  # (group, kind, namespace)
    targets: tuple[tuple[str, str, str], ...] = ()  # (group, kind, name or empty for all)


@dataclass(frozen=True, slots=True)
class VirtualService:
    """Routes of services by their hosts; without hosts a delegate, whose routes others take over.

    `export_to` is as written: empty or `*` for everybody, `.` for its own namespace.
    """

    meta: Meta
    hosts: tuple[str, ...] = ()
    is_for_mesh: bool = True
    http: tuple[HttpPart, ...] = ()
    tls: tuple[StreamPart, ...] = ()
    tcp: tuple[StreamPart, ...] = ()
    export_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DestinationRule:
    """How traffic to a host is treated. One for certain workloads only is for sidecars."""

    meta: Meta
    host: str
    policies: PolicySet = NO_POLICIES
    has_policies: bool = False
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    is_for_workloads: bool = False


@dataclass(frozen=True, slots=True)
class BackendTarget:
    """A Service or ServiceEntry of the policy's namespace; `section` is a port's name, empty for all."""

    kind: str
    name: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class BackendTrafficPolicy:
    meta: Meta
    targets: tuple[BackendTarget, ...] = ()
    budget: Budget | None = None
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendTlsPolicy:
    meta: Meta
    targets: tuple[BackendTarget, ...] = ()
    tls: Tls = field(default_factory=Tls)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Certificates and a key, of a ConfigMap or Secret; `problem` says why none can be used."""

    meta: Meta
    roots_pem: str = ""
    chain_pem: str = ""
    key_pem: str = field(default="", repr=False)
    crl_pem: str = ""
    problem: str = ""


BackendPolicy = BackendTrafficPolicy | BackendTlsPolicy


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What holds for the whole mesh, if it is of the root namespace. Each provider has a name of its own."""

    meta: Meta
    providers: tuple[ExtensionProvider, ...] = ()
    observing: MeshObserving = field(default_factory=MeshObserving)
    defaults: MeshDefaults = field(default_factory=MeshDefaults)

    def provider(self, name: str) -> ExtensionProvider | None:
        return next((each for each in self.providers if each.name == name), None)


MeshObject = (
    Namespace
    | Node
    | ServiceAccount
    | Service
    | Pod
    | EndpointSlice
    | WorkloadEntry
    | ServiceEntry
    | AuthorizationPolicy
    | PeerAuthentication
    | RequestAuthentication
    | RateLimitPolicy
    | FilterPolicy
    | RegistrationPolicy
    | Telemetry
    | Gateway
    | GatewayClass
    | HttpRoute
    | GrpcRoute
    | TcpRoute
    | TlsRoute
    | ReferenceGrant
    | VirtualService
    | DestinationRule
    | BackendTrafficPolicy
    | BackendTlsPolicy
    | TlsMaterial
    | MeshConfig
)
