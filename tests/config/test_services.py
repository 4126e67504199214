"""Services and ServiceEntries to Services: config-api 1.2, 3, 4, 13; waypoints of 5.3."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from config.compile.protocols import app_protocol
from config.compile.resource import ADDRESS
from config.registry.registry import Registry
from config.registry.virtual_addresses import VirtualAddresses
from config.settings import MeshSettings
from proto.istio import workload_pb2 as pb
from tests.config.support import Mesh, entry, istio, namespace, objects_of, pod, service

WEB = "shop/web.shop.svc.cluster.local"
BALANCING = pb.LoadBalancing
ZONE = [BALANCING.NETWORK, BALANCING.REGION, BALANCING.ZONE]
NEAR = [*ZONE, BALANCING.SUBZONE, BALANCING.NODE]


def vips(found: pb.Service) -> list[str]:
    return [str(ip_address(each.address)) for each in found.addresses]


def test_a_service_has_its_addresses_ports_and_name() -> None:
    mesh = Mesh(
        service(
            "web",
            "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6], "
            "ports: [{name: http, port: 80, targetPort: 8080}, {name: db, port: 3306, targetPort: mysql}]",
        ),
        settings=MeshSettings(network="net"),
    )
    found = mesh.service(WEB)
    assert (found.name, found.namespace, found.hostname) == ("web", "shop", "web.shop.svc.cluster.local")
    assert vips(found) == ["10.96.0.1", "fd00::1"]
    assert [each.network for each in found.addresses] == ["net", "net"]
    assert [(each.service_port, each.target_port, each.app_protocol) for each in found.ports] == [
        (80, 8080, pb.HTTP11),
        (3306, 0, pb.TCP),
    ]
    assert (found.canonical, found.ip_families) == (True, pb.DUAL)


def test_the_cluster_domain_is_part_of_the_name() -> None:
    mesh = Mesh(service("web", "ports: [{port: 80}]"), settings=MeshSettings(cluster_domain="corp"))
    assert mesh.services() == ["shop/web.shop.svc.corp"]


def test_external_names_are_not_there_and_headless_services_have_no_address() -> None:
    mesh = Mesh(
        service("ext", "type: ExternalName, externalName: a.b, selector: {app: web}"),
        service("web", "clusterIP: None, selector: {app: web}"),
        pod("web", labels="app: web"),
    )
    assert mesh.services() == [WEB]
    assert vips(mesh.service(WEB)) == []
    assert list(mesh.workload("shop/web").services) == [WEB]


def test_services_without_an_address_get_one_that_stays() -> None:
    text = service("web", "ports: [{port: 80}]")
    mesh = Mesh(text)
    first = vips(mesh.service(WEB))
    assert first[0].startswith("240.240.")
    assert first[1].startswith("2001:2::")
    mesh.remove("Service", "shop", "web")
    mesh.apply(text)
    assert vips(mesh.service(WEB)) == first
    again = Registry(MeshSettings(), VirtualAddresses(mesh.registry.virtual_addresses.snapshot()))
    again.apply(objects_of(text))
    assert again.resources[ADDRESS][WEB] == mesh.registry.resources[ADDRESS][WEB]


@pytest.mark.parametrize(
    ("spec", "annotations", "namespace_annotations", "mode", "preference"),
    [
        ("", "", "", BALANCING.UNSPECIFIED_MODE, []),
        ("internalTrafficPolicy: Local", "", "", BALANCING.STRICT, [BALANCING.NODE]),
        (
            "internalTrafficPolicy: Local, trafficDistribution: PreferSameZone",
            "",
            "",
            BALANCING.STRICT,
            [BALANCING.NODE],
        ),
        ("trafficDistribution: PreferClose", "", "", BALANCING.FAILOVER, ZONE),
        ("trafficDistribution: PreferSameZone", "", "", BALANCING.FAILOVER, ZONE),
        ("trafficDistribution: PreferSameNode", "", "", BALANCING.FAILOVER, NEAR),
        ("trafficDistribution: Unknown", "PreferClose", "PreferClose", BALANCING.UNSPECIFIED_MODE, []),
        ("", "prefersamenode", "PreferClose", BALANCING.FAILOVER, NEAR),
        ("", "", "PREFERCLOSE", BALANCING.FAILOVER, ZONE),
        ("", "Unknown", "PreferClose", BALANCING.UNSPECIFIED_MODE, []),
    ],
)
def test_traffic_distribution_comes_from_the_nearest_source(
    spec: str, annotations: str, namespace_annotations: str, mode: int, preference: list[int]
) -> None:
    key = "networking.istio.io/traffic-distribution"
    mesh = Mesh(
        namespace("shop", annotations=f"{key}: {namespace_annotations}" if namespace_annotations else ""),
        service("web", spec, annotations=f"{key}: {annotations}" if annotations else ""),
    )
    balancing = mesh.service(WEB).load_balancing
    assert (balancing.mode, list(balancing.routing_preference)) == (mode, preference)


def test_a_namespaces_traffic_distribution_reaches_its_services_when_it_changes() -> None:
    mesh = Mesh(namespace("shop"), service("web", ""))
    mesh.apply(namespace("shop", annotations="networking.istio.io/traffic-distribution: PreferClose"))
    assert mesh.service(WEB).load_balancing.mode == BALANCING.FAILOVER


def test_unready_endpoints_count_where_the_service_says_so() -> None:
    mesh = Mesh(service("web", "publishNotReadyAddresses: true"))
    assert mesh.service(WEB).load_balancing.health_policy == BALANCING.ALLOW_ALL


@pytest.mark.parametrize(
    ("number", "name", "explicit", "expected"),
    [
        (80, "http", "", pb.HTTP11),
        (80, "HTTP-web", "", pb.HTTP11),
        (80, "http2-x", "", pb.HTTP2),
        (80, "grpc", "", pb.GRPC),
        (80, "grpc-web-x", "", pb.HTTP11),
        (80, "https", "", pb.TLS),
        (80, "tls-x", "", pb.TLS),
        (80, "redis", "", pb.TCP),
        (80, "web", "", pb.UNKNOWN),
        (80, "", "", pb.UNKNOWN),
        (25, "", "", pb.TCP),
        (53, "web", "", pb.TCP),
        (3306, "", "", pb.TCP),
        (27017, "x", "", pb.TCP),
        (3306, "http", "", pb.HTTP11),
        (80, "tcp", "http", pb.HTTP11),
        (80, "http", "kubernetes.io/h2c", pb.HTTP2),
        (80, "http", "kubernetes.io/ws", pb.HTTP11),
        (80, "http", "kubernetes.io/wss", pb.TLS),
        (80, "http", "example.com/own", pb.UNKNOWN),
    ],
)
def test_application_protocols(number: int, name: str, explicit: str, expected: int) -> None:
    assert app_protocol(number, name, explicit) == expected


# ---- ServiceEntry ----


def test_a_passing_entry_sends_to_the_address_that_was_asked_for() -> None:
    mesh = Mesh(
        istio(
            "ServiceEntry",
            "any",
            "{hosts: ['*.example.com'], addresses: [10.9.0.0/16, 'fd00::/64', 10.8.0.1], resolution: NONE, "
            "ports: [{number: 443, name: tls, protocol: TLS}], subjectAltNames: ['spiffe://td/ns/a/sa/b']}",
        )
    )
    found = mesh.service("shop/*.example.com")
    assert found.load_balancing.mode == BALANCING.PASSTHROUGH
    assert found.load_balancing.health_policy == BALANCING.ALLOW_ALL
    assert [(each.HasField("length"), each.length) for each in found.addresses] == [
        (True, 16),
        (True, 64),
        (False, 0),
    ]
    assert list(found.subject_alt_names) == ["spiffe://td/ns/a/sa/b"]
    assert [(each.service_port, each.target_port, each.app_protocol) for each in found.ports] == [
        (443, 443, pb.TLS)
    ]


@pytest.mark.parametrize(
    ("spec", "metadata", "status", "expected"),
    [
        ("{hosts: [a.b], resolution: STATIC}", "", "", "auto"),
        ("{hosts: [a.b], resolution: NONE}", "", "", []),
        ("{hosts: [a.b], resolution: DNS, addresses: [10.0.0.9]}", "", "", ["10.0.0.9"]),
        (
            "{hosts: [a.b], resolution: DNS}",
            'labels: {networking.istio.io/enable-autoallocate-ip: "false"}',
            "",
            [],
        ),
        (
            "{hosts: [a.b], resolution: DNS}",
            "",
            "{addresses: [{value: 240.240.9.9, host: a.b}]}",
            ["240.240.9.9"],
        ),
        ("{hosts: [a.b], resolution: DNS}", "", "{addresses: [{value: 240.240.9.9, host: b.c}]}", "auto"),
    ],
)
def test_who_gets_an_automatic_address(
    spec: str, metadata: str, status: str, expected: str | list[str]
) -> None:
    text = istio("ServiceEntry", "x", spec, metadata=metadata)
    mesh = Mesh(text + (f"status: {status}\n" if status else ""))
    found = vips(mesh.service("shop/a.b"))
    if expected == "auto":
        assert [ip_address(each) in pool for each, pool in zip(found, POOLS, strict=True)] == [True, True]
    else:
        assert found == expected


POOLS = [ip_network("240.240.0.0/16"), ip_network("2001:2::/48")]


def test_automatic_addresses_run_out_with_a_note_and_are_taken_back_from_the_gone() -> None:
    table = VirtualAddresses(numbers=2)
    in_use = {"a", "b"}
    first, second = table.addresses("a", in_use.__contains__), table.addresses("b", in_use.__contains__)
    assert first != second
    with pytest.raises(Exception, match="all 2 automatic addresses are in use"):
        table.addresses("c", in_use.__contains__)
    in_use.discard("a")
    assert table.addresses("c", in_use.__contains__) == first
    assert table.addresses("b", in_use.__contains__) == second


def test_a_service_has_its_hostname_before_any_entry() -> None:
    mesh = Mesh(
        service("web", "selector: {app: web}, ports: [{port: 80}]"),
        istio(
            "ServiceEntry",
            "thief",
            "{hosts: [web.shop.svc.cluster.local], resolution: STATIC, endpoints: [{address: 6.6.6.6}], "
            "ports: [{number: 80, name: http}]}",
        ),
        pod("web", labels="app: web"),
    )
    assert mesh.service(WEB).name == "web"
    assert list(mesh.workload("shop/thief/6.6.6.6").services) == []
    assert any(
        "ServiceEntry shop/thief: Conflicted: Service shop/web already has the host" in n
        for n in mesh.notes()
    )
    mesh.remove("Service", "shop", "web")
    assert mesh.service(WEB).name == "thief"
    assert list(mesh.workload("shop/thief/6.6.6.6").services) == [WEB]
    mesh.apply(service("web", "selector: {app: web}, ports: [{port: 80}]"))
    assert mesh.service(WEB).name == "web"
    assert list(mesh.workload("shop/thief/6.6.6.6").services) == []


def test_one_entry_per_hostname_is_canonical_over_all_namespaces() -> None:
    spec = "{hosts: [a.b], resolution: DNS}"
    mesh = Mesh(
        istio("ServiceEntry", "young", spec, space="bank"),
        istio("ServiceEntry", "old", spec, metadata='creationTimestamp: "2020-01-01T00:00:00Z"'),
    )
    assert (mesh.service("shop/a.b").canonical, mesh.service("bank/a.b").canonical) == (True, False)
    mesh.remove("ServiceEntry", "shop", "old")
    assert mesh.service("bank/a.b").canonical


def test_an_entry_on_a_services_address_is_second_to_the_service() -> None:
    thief = istio(
        "ServiceEntry", "thief", "{hosts: [x.b], addresses: [10.96.0.1], resolution: STATIC}", space="bank"
    )
    mesh = Mesh(thief)
    assert mesh.service("bank/x.b").canonical
    mesh.apply(service("web", "clusterIP: 10.96.0.1"))
    assert (mesh.service("bank/x.b").canonical, mesh.service(WEB).canonical) == (False, True)
    mesh.remove("Service", "shop", "web")
    assert mesh.service("bank/x.b").canonical


def test_dynamic_dns_waits_for_a_waypoint() -> None:
    assert Mesh(istio("ServiceEntry", "x", "{hosts: ['*.b'], resolution: DYNAMIC_DNS}")).services() == []


# ---- waypoints ----


def gateway(
    name: str = "wp",
    *,
    space: str = "shop",
    traffic: str = "",
    allowed: str = "",
    address: str = "{type: Hostname, value: wp.shop.svc.cluster.local}",
    class_name: str = "istio-waypoint",
) -> str:
    labels = f"labels: {{istio.io/waypoint-for: {traffic}}}" if traffic else ""
    routes = f", allowedRoutes: {{namespaces: {{{allowed}}}}}" if allowed else ""
    listener = f"{{name: mesh, port: 15008, protocol: HBONE{routes}}}"
    spec = f"{{gatewayClassName: {class_name}, listeners: [{listener}]}}"
    return (
        istio("Gateway", name, spec, space=space, metadata=labels) + f"status: {{addresses: [{address}]}}\n"
    )


USE = "istio.io/use-waypoint: wp"


def waypoint_of(mesh: Mesh) -> str:
    found = mesh.service(WEB)
    if not found.HasField("waypoint"):
        return ""
    destination = found.waypoint
    assert destination.hbone_mtls_port == 15008
    if destination.HasField("hostname"):
        return f"{destination.hostname.namespace}/{destination.hostname.hostname}"
    return str(ip_address(destination.address.address))


def test_a_waypoint_is_published_by_its_hostname_or_else_its_address() -> None:
    mesh = Mesh(gateway(), service("web", "", labels=USE))
    assert waypoint_of(mesh) == "shop/wp.shop.svc.cluster.local"
    mesh.apply(gateway(address="{type: IPAddress, value: 10.3.3.3}"))
    assert waypoint_of(mesh) == "10.3.3.3"


@pytest.mark.parametrize(
    ("gateways", "labels", "namespace_labels", "expected", "reason"),
    [
        ([gateway()], "", USE, "shop/wp.shop.svc.cluster.local", ""),
        ([gateway()], "istio.io/use-waypoint: none", USE, "", ""),
        ([], USE, "", "", "WaypointIsNotReady: label istio.io/use-waypoint: there is no waypoint shop/wp"),
        ([gateway(address="")], USE, "", "", "WaypointIsNotReady: waypoint shop/wp has no address yet"),
        ([gateway(class_name="nginx")], USE, "", "", "WaypointIsNotReady"),
        ([gateway()], "istio.io/use-waypoint: other", USE, "", "there is no waypoint shop/other"),
        (
            [gateway(traffic="workload")],
            USE,
            "",
            "",
            "UnsupportedTrafficType: waypoint shop/wp is for traffic of type workload",
        ),
        ([gateway(traffic="workload")], "", USE, "", ""),
        ([gateway(traffic="all")], USE, "", "shop/wp.shop.svc.cluster.local", ""),
        (
            [gateway(space="edge")],
            f"{USE}, istio.io/use-waypoint-namespace: edge",
            "",
            "",
            "AttachmentDenied",
        ),
        (
            [gateway(space="edge", allowed="from: All")],
            f"{USE}, istio.io/use-waypoint-namespace: edge",
            "",
            "edge/wp.shop.svc.cluster.local",
            "",
        ),
        (
            [gateway(space="edge", allowed="from: Selector, selector: {matchLabels: {team: a}}")],
            f"{USE}, istio.io/use-waypoint-namespace: edge",
            "team: a",
            "edge/wp.shop.svc.cluster.local",
            "",
        ),
        (
            [
                gateway(
                    space="edge",
                    allowed="from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}",
                )
            ],
            f"{USE}, istio.io/use-waypoint-namespace: edge",
            "",
            "edge/wp.shop.svc.cluster.local",
            "",
        ),
        (
            [gateway(space="edge", allowed="from: Selector, selector: {matchLabels: {team: b}}")],
            f"{USE}, istio.io/use-waypoint-namespace: edge",
            "team: a",
            "",
            "AttachmentDenied",
        ),
        ([gateway()], "gateway.networking.k8s.io/gateway-name: wp", USE, "", ""),
    ],
)
def test_waypoints_of_services(
    gateways: list[str], labels: str, namespace_labels: str, expected: str, reason: str
) -> None:
    mesh = Mesh(*gateways, namespace("shop", namespace_labels), service("web", "", labels=labels))
    assert waypoint_of(mesh) == expected
    notes = mesh.notes()
    assert any(reason in note for note in notes) if reason else notes == []


def test_a_waypoint_that_comes_and_goes_reaches_whoever_looked_for_it() -> None:
    mesh = Mesh(service("web", "", labels=USE))
    assert waypoint_of(mesh) == ""
    mesh.apply(gateway())
    assert waypoint_of(mesh) != ""
    assert mesh.notes() == []
    mesh.remove("Gateway", "shop", "wp")
    assert waypoint_of(mesh) == ""


def test_workloads_use_waypoints_for_workloads() -> None:
    mesh = Mesh(gateway(traffic="workload"), pod("p", labels=USE), entry("e", ip="10.0.0.2", labels=USE))
    assert mesh.workload("shop/p").waypoint.hostname.hostname == "wp.shop.svc.cluster.local"
    assert mesh.workload("shop/e").HasField("waypoint")
    mesh.apply(gateway(traffic="service"))
    assert not mesh.workload("shop/p").HasField("waypoint")
    assert sum("UnsupportedTrafficType" in note for note in mesh.notes()) == 2


def test_ingress_through_the_waypoint_is_the_objects_label_before_the_namespaces() -> None:
    mesh = Mesh(
        gateway(), namespace("shop", 'istio.io/ingress-use-waypoint: "true"'), service("web", "", labels=USE)
    )
    assert mesh.service(WEB).ingress_use_waypoint
    mesh.apply(service("web", "", labels=f'{USE}, istio.io/ingress-use-waypoint: "false"'))
    assert not mesh.service(WEB).ingress_use_waypoint
