"""The registry: whatever the sequence of changes, it ends where the final objects alone lead."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from config.compile.resource import (
    ADDRESS,
    AUTHORIZATION,
    CONNECTION_LIMITS,
    WAYPOINT_TYPES,
    Delta,
    Resource,
    version_of,
)
from config.objects import (
    AllowedFrom,
    AuthorizationPolicy,
    BackendTarget,
    BackendTlsPolicy,
    BackendTrafficPolicy,
    DestinationRule,
    Endpoint,
    EndpointSlice,
    EntryPort,
    Gateway,
    GatewayClass,
    GrpcRoute,
    HttpRoute,
    Kind,
    LabelExpression,
    LabelOperator,
    Locality,
    MeshObject,
    Meta,
    MtlsMode,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    RateLimitPolicy,
    Ref,
    Resolution,
    Service,
    ServiceEntry,
    ServicePort,
    SliceEndpoint,
    TargetRef,
    TcpRoute,
    TlsRoute,
    TrafficScope,
    VirtualService,
    WorkloadEntry,
)
from config.policy_rules import ConnectionLimit, PolicyAction, PolicyRule
from config.registry.conditions import conditions
from config.registry.registry import Registry
from config.registry.review import review
from config.registry.virtual_addresses import VirtualAddresses
from config.routing_rules import (
    BackendRef,
    Filters,
    GrpcMatch,
    GrpcRule,
    HttpMatch,
    HttpRule,
    Mirror,
    ParentRef,
    PathKind,
    PathMatch,
    StreamRule,
)
from config.settings import MeshSettings
from config.traffic_policies import (
    Balancing,
    Budget,
    LocalitySetting,
    Outliers,
    Policy,
    PolicySet,
    Subset,
    Tls,
)
from config.virtual_routes import (
    Delegate,
    HttpPart,
    RequestMatch,
    StreamPart,
    TextKind,
    TextMatch,
    WeightedTarget,
)
from config.virtual_routes import Mirror as VirtualMirror
from config.virtual_routes import Target as HostTarget

SETTINGS = MeshSettings()


# ---- any mesh, small enough for everything to meet everything ----

# Few names, so that objects meet: most relations need three or four of them to agree.
names = st.sampled_from(["a", "a", "b"])
spaces = st.sampled_from(["shop", "shop", "shop", "istio-system"])
label_maps: st.SearchStrategy[dict[str, str]] = st.fixed_dictionaries(
    {},
    optional={
        "app": st.sampled_from(["web", "web", "db"]),
        "tier": st.just("x"),
        "istio.io/use-waypoint": st.sampled_from(["a", "b", "none"]),
        "istio.io/use-waypoint-namespace": st.just("shop"),
        "istio.io/use-waypoint-canary": st.sampled_from(["a", "b"]),
        "gateway.networking.k8s.io/gateway-name": st.sampled_from(["a", "a", "b"]),
        "topology.istio.io/network": st.sampled_from(["n1", "n2"]),
        "istio.io/waypoint-for": st.sampled_from(["service", "workload", "all"]),
    },
)
selectors = st.sampled_from([{}, {"app": "web"}, {"app": "db"}, {"app": "web", "tier": "x"}])
nodes = st.sampled_from(["", "n1", "n1", "n2"])
addresses = st.sampled_from([("10.0.0.1",), ("10.0.0.2", "fd00::2"), ()])
hosts = st.lists(
    st.sampled_from(["a.shop.svc.cluster.local", "x.example", "y.example"]),
    min_size=1,
    max_size=2,
    unique=True,
)
annotation_maps = st.sampled_from(
    [
        {},
        {"networking.istio.io/traffic-distribution": "PreferClose"},
        {"istio.io/use-waypoint-canary-weight": "10"},
    ]
)


@st.composite
def metas(draw: st.DrawFn, kind: Kind, *, is_namespaced: bool = True) -> Meta:
    space = draw(spaces) if is_namespaced else ""
    name = (
        draw(spaces)
        if kind is Kind.NAMESPACE
        else draw(names if kind is not Kind.NODE else nodes.filter(bool))
    )
    return Meta(
        Ref(kind.value, space, name),
        labels=draw(label_maps),
        annotations=draw(annotation_maps),
        uid=draw(st.sampled_from(["", "u1", "u2"])),
    )


service_ports = st.lists(
    st.builds(
        ServicePort,
        number=st.sampled_from([80, 81]),
        name=st.sampled_from(["", "http"]),
        target=st.sampled_from([8080, "http"]),
    ),
    max_size=2,
).map(tuple)
port_maps = st.sampled_from([{}, {"http": 8080}, {"": 9090, "http": 9091}])
endpoints = st.builds(
    Endpoint, addresses=addresses, hostname=st.sampled_from(["", "h.example"]), ports=port_maps
)
slice_endpoints = st.builds(
    SliceEndpoint,
    addresses=addresses,
    is_ready=st.booleans(),
    pod=st.none() | st.tuples(spaces, names),
    pod_uid=st.sampled_from(["", "u1"]),
)
modes = st.sampled_from(list(MtlsMode))
target_refs = st.sampled_from(
    [
        TargetRef("", "Service", "a"),
        TargetRef("networking.istio.io", "ServiceEntry", "b"),
        TargetRef("gateway.networking.k8s.io", "Gateway", "a"),
        TargetRef("gateway.networking.k8s.io", "GatewayClass", "istio-waypoint"),
        TargetRef("gateway.networking.k8s.io", "HTTPRoute", "a"),
    ]
)

parents = st.lists(
    st.builds(
        ParentRef,
        group=st.just(""),
        kind=st.just("Service"),
        namespace=spaces,
        name=names,
        port=st.sampled_from([0, 80]),
    )
    | st.builds(
        ParentRef,
        group=st.just("networking.istio.io"),
        kind=st.just("ServiceEntry"),
        namespace=spaces,
        name=names,
    ),
    min_size=1,
    max_size=2,
).map(tuple)
backend_refs = st.builds(
    BackendRef, group=st.just(""), kind=st.just("Service"), namespace=spaces, name=names, port=st.just(80)
) | st.builds(
    BackendRef,
    group=st.just("networking.istio.io"),
    kind=st.just("Hostname"),
    namespace=spaces,
    name=st.sampled_from(["a.shop.svc.cluster.local", "x.example"]),
    port=st.sampled_from([0, 80]),
)

mesh_objects: st.SearchStrategy[MeshObject] = st.one_of(
    st.builds(Namespace, metas(Kind.NAMESPACE, is_namespaced=False)),
    st.builds(
        Node, metas(Kind.NODE, is_namespaced=False), st.builds(Locality, st.sampled_from(["eu", "us"]))
    ),
    st.builds(
        Service,
        metas(Kind.SERVICE),
        is_external_name=st.booleans(),
        is_headless=st.booleans(),
        addresses=st.sampled_from([(), ("10.96.0.1",)]),
        ports=service_ports,
        selector=selectors,
        is_unready_published=st.booleans(),
        traffic_scope=st.none() | st.sampled_from(list(TrafficScope)),
    ),
    st.builds(
        Pod,
        metas(Kind.POD),
        addresses=addresses,
        is_finished=st.booleans(),
        is_ready=st.booleans(),
        service_account=names,
        node=nodes,
        is_host_network=st.booleans(),
        named_ports=port_maps,
    ),
    st.builds(WorkloadEntry, metas(Kind.WORKLOAD_ENTRY), endpoints),
    st.builds(
        ServiceEntry,
        metas(Kind.SERVICE_ENTRY),
        hosts=hosts.map(tuple),
        resolution=st.sampled_from(list(Resolution)),
        is_internal=st.booleans(),
        addresses=st.sampled_from([(), ("10.96.0.1",), ("10.0.0.0/8",)]),
        ports=st.sampled_from([(), (EntryPort(80, "http", "HTTP"),)]),
        endpoints=st.lists(endpoints, max_size=2).map(tuple),
        selector=selectors,
    ),
    st.builds(
        EndpointSlice,
        metas(Kind.ENDPOINT_SLICE),
        service=names,
        ports=port_maps,
        endpoints=st.lists(slice_endpoints, max_size=2).map(tuple),
    ),
    st.builds(
        AuthorizationPolicy,
        metas(Kind.AUTHORIZATION_POLICY),
        action=st.sampled_from(list(PolicyAction)),
        selector=selectors,
        targets=st.lists(target_refs, max_size=2, unique=True).map(tuple),
        rules=st.sampled_from([(), (PolicyRule(),)]),
        is_dry_run=st.booleans(),
    ),
    st.builds(
        RateLimitPolicy,
        metas(Kind.RATE_LIMIT_POLICY),
        selector=selectors,
        connections=st.just((ConnectionLimit("l", open=1),)),
    ),
    st.builds(
        RateLimitPolicy,
        metas(Kind.RATE_LIMIT_POLICY),
        targets=st.lists(target_refs, min_size=1, max_size=2, unique=True).map(tuple),
        connections=st.just((ConnectionLimit("l", open=1),)),
    ),
    st.builds(
        PeerAuthentication,
        metas(Kind.PEER_AUTHENTICATION),
        selector=selectors,
        mode=modes,
        port_modes=st.dictionaries(st.sampled_from([80, 90]), modes),
    ),
    st.builds(
        Gateway,
        metas(Kind.GATEWAY),
        class_name=st.sampled_from(["istio-waypoint", "other"]),
        hostname=st.sampled_from(["", "wp.shop.svc.cluster.local"]),
        addresses=st.sampled_from([(), ("10.3.0.1",)]),
        allowed_from=st.sampled_from(list(AllowedFrom)),
        allowed_labels=selectors,
        allowed_expressions=st.sampled_from([(), (LabelExpression("app", LabelOperator.EXISTS),)]),
    ),
    st.builds(
        GatewayClass,
        st.builds(Meta, st.just(Ref("GatewayClass", "", "istio-waypoint")), labels=label_maps),
        controller=st.just("istio.io/mesh-controller"),
    ),
    st.builds(
        HttpRoute,
        metas(Kind.HTTP_ROUTE),
        parents=parents,
        rules=st.lists(
            st.builds(
                HttpRule,
                matches=st.sampled_from(
                    [(HttpMatch(),), (HttpMatch(PathMatch(PathKind.EXACT, "/x")), HttpMatch(method="GET"))]
                ),
                filters=st.builds(
                    Filters,
                    mirrors=st.lists(st.builds(Mirror, backend_refs), max_size=1).map(tuple),
                    unsupported=st.sampled_from([(), (), ("ExtensionRef",)]),
                ),
                backends=st.lists(backend_refs, max_size=2).map(tuple),
            ),
            min_size=1,
            max_size=2,
        ).map(tuple),
    ),
    st.builds(
        GrpcRoute,
        metas(Kind.GRPC_ROUTE),
        parents=parents,
        rules=st.builds(
            GrpcRule, matches=st.just((GrpcMatch(),)), backends=st.lists(backend_refs, max_size=1).map(tuple)
        ).map(lambda rule: (rule,)),
    ),
    st.builds(
        TcpRoute,
        metas(Kind.TCP_ROUTE),
        parents=parents,
        rules=st.builds(StreamRule, backends=backend_refs.map(lambda ref: (ref,))).map(lambda rule: (rule,)),
    ),
    st.builds(
        TlsRoute,
        metas(Kind.TLS_ROUTE),
        parents=parents,
        hostnames=st.sampled_from([(), ("a.shop.svc.cluster.local",)]),
        rules=st.builds(StreamRule, backends=backend_refs.map(lambda ref: (ref,))).map(lambda rule: (rule,)),
    ),
)
hosts_written = st.sampled_from(
    ["a", "a.shop.svc.cluster.local", "*.shop.svc.cluster.local", "x.example", "b"]
)
targets = st.builds(
    HostTarget, host=hosts_written, subset=st.sampled_from(["", "", "v1"]), port=st.sampled_from([0, 80])
)
http_parts = st.builds(
    HttpPart,
    matches=st.sampled_from(
        [(), (RequestMatch(uri=TextMatch(TextKind.PREFIX, "/a")),), (RequestMatch(port=81),)]
    ),
    targets=targets.map(lambda target: (WeightedTarget(target, 1),)),
    delegate=st.none() | st.builds(Delegate, namespace=spaces, name=names),
    mirrors=st.none() | targets.map(lambda target: (VirtualMirror(target),)),
)
policies = st.builds(
    Policy,
    balancing=st.none()
    | st.builds(
        Balancing,
        locality=st.sampled_from([None, LocalitySetting(priorities=("app=web",)), LocalitySetting(False)]),
    ),
    outliers=st.sampled_from([None, Outliers()]),
    tls=st.sampled_from([None, Tls(problem="tls.caCrl"), Tls(bundles=(Ref("Secret", "shop", "a"),))]),
)
policy_sets = st.builds(
    PolicySet, general=policies, ports=st.sampled_from([{}, {80: Policy(budget=Budget())}])
)
traffic = st.one_of(
    st.builds(
        VirtualService,
        metas(Kind.VIRTUAL_SERVICE),
        hosts=st.lists(hosts_written, max_size=2, unique=True).map(tuple),
        is_for_mesh=st.sampled_from([True, True, False]),
        http=st.lists(http_parts, max_size=2).map(tuple),
        tcp=st.sampled_from(
            [(), (StreamPart(targets=(WeightedTarget(HostTarget("b.shop.svc.cluster.local"), 1),)),)]
        ),
        export_to=st.sampled_from([(), (".",)]),
    ),
    st.builds(
        DestinationRule,
        metas(Kind.DESTINATION_RULE),
        host=hosts_written,
        policies=policy_sets,
        has_policies=st.booleans(),
        subsets=st.sampled_from(
            [(), (Subset("v1", {"app": "web"}),), (Subset("v2"), Subset("v1", {"tier": "x"}))]
        ),
        export_to=st.sampled_from([(), (".",)]),
        is_for_workloads=st.sampled_from([False, False, True]),
    ),
)
backend_targets = st.lists(
    st.builds(
        BackendTarget,
        kind=st.sampled_from(["Service", "Service", "ServiceEntry"]),
        name=names,
        section=st.sampled_from(["", "", "http"]),
    ),
    min_size=1,
    max_size=2,
).map(tuple)
backend_policies = st.one_of(
    st.builds(
        BackendTrafficPolicy,
        metas(Kind.BACKEND_TRAFFIC_POLICY),
        targets=backend_targets,
        budget=st.sampled_from([None, Budget()]),
    ),
    st.builds(BackendTlsPolicy, metas(Kind.BACKEND_TLS_POLICY), targets=backend_targets),
)
any_objects = st.one_of(mesh_objects, mesh_objects, traffic, backend_policies)
captures = st.sets(st.tuples(spaces, names), max_size=3)
steps = st.one_of(
    st.tuples(st.just("put"), st.lists(any_objects, min_size=1, max_size=2)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 50), min_size=1, max_size=3)),
    st.tuples(st.just("capture"), st.tuples(nodes, captures)),
)


class Client:
    """What a node proxy holds after the deltas it was sent."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Resource]] = {
            ADDRESS: {},
            AUTHORIZATION: {},
            CONNECTION_LIMITS: {},
            **{type_url: {} for type_url in WAYPOINT_TYPES},
        }

    def take(self, delta: Delta) -> None:
        for resource in delta.upserts:
            self.held[resource.type_url][resource.name] = resource
        for type_url, name in delta.removed:
            del self.held[type_url][name]


@settings(max_examples=300, deadline=None)
@given(st.lists(any_objects, min_size=5, max_size=25), st.lists(steps, min_size=1, max_size=8))
def test_any_sequence_of_changes_ends_where_the_final_objects_alone_lead(
    beginning: list[MeshObject], changes: list[tuple[str, object]]
) -> None:
    sequence: list[tuple[str, object]] = [("put", beginning), *changes]
    registry, client = Registry(SETTINGS), Client()
    objects: dict[Ref, MeshObject] = {}
    captured: dict[str, set[tuple[str, str]]] = {}
    for verb, argument in sequence:
        if verb == "put":
            assert isinstance(argument, list)
            batch = {each.meta.ref: each for each in argument}
            objects |= batch
            client.take(registry.apply(batch))
        elif verb == "remove":
            assert isinstance(argument, list)
            gone = {sorted(objects)[index % len(objects)] for index in argument if objects}
            for ref in gone:
                del objects[ref]
            client.take(registry.apply({}, sorted(gone)))
        else:
            assert isinstance(argument, tuple)
            node, places = argument
            captured[node] = places
            client.take(registry.set_captured(node, places))
    fresh = Registry(SETTINGS, VirtualAddresses(registry.virtual_addresses.snapshot()))
    for node, places in captured.items():
        fresh.set_captured(node, places)
    fresh.apply(dict(sorted(objects.items())))
    assert registry.resources == fresh.resources
    assert client.held == registry.resources
    assert review(registry) == review(fresh)
    assert conditions(registry) == conditions(fresh)
    for type_url, held in registry.resources.items():
        assert all(each.version == version_of(each.payload) for each in held.values()), type_url
    for name, resource in registry.resources[ADDRESS].items():
        assert resource in registry.find(name)
        for alias in resource.aliases:
            assert resource in registry.find(alias)
