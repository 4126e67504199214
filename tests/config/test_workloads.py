"""Pods, WorkloadEntries, inline endpoints, slices to Workloads: config-api 1, 13; ztunnel-facts 5.6, 5.10."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from config.settings import MeshSettings
from proto.istio import workload_pb2 as pb
from tests.config.support import Mesh, entry, istio, namespace, pod, service

WEB = "app: web"
NODE = (
    "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: eu, "
    "topology.kubernetes.io/zone: eu-1, topology.istio.io/subzone: rack-7}}\n"
)


def slice_(name: str, body: str, *, labels: str = "kubernetes.io/service-name: web") -> str:
    return (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
        f"metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n{body}\n"
    )


def addresses(workload: pb.Workload) -> list[str]:
    return [str(ip_address(packed)) for packed in workload.addresses]


def test_a_pod_is_a_workload_with_all_its_addresses() -> None:
    mesh = Mesh(
        pod("web", ip="10.0.0.1", status="podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]", spec="nodeName: n1")
    )
    workload = mesh.workload("Kubernetes//Pod/shop/web")
    assert addresses(workload) == ["10.0.0.1", "fd00::1"]
    assert (workload.node, workload.service_account, workload.trust_domain) == ("n1", "default", "")
    assert (workload.cluster_id, workload.network) == ("Kubernetes", "")
    assert (workload.workload_type, workload.status) == (pb.POD, pb.HEALTHY)
    assert workload.tunnel_protocol == pb.NONE


def test_a_workload_entry_is_a_workload_with_its_annotated_addresses() -> None:
    text = entry("web", labels="mycelia.io/node: n2", spec="serviceAccount: vm, weight: 0, network: net")
    text = text.replace("labels:", "annotations: {mycelia.io/addresses: 'fd00::1, 10.0.0.1'}, labels:")
    workload = Mesh(text).workload("Kubernetes/networking.istio.io/WorkloadEntry/shop/web")
    assert addresses(workload) == ["10.0.0.1", "fd00::1"]
    assert (workload.node, workload.service_account, workload.network) == ("n2", "vm", "net")
    assert (workload.HasField("capacity"), workload.capacity.value) == (True, 0)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pods_are_not_there(phase: str) -> None:
    assert Mesh(pod("web", status=f"phase: {phase}")).uids() == []


def test_pods_without_address_are_not_there() -> None:
    assert Mesh(pod("web", ip="")).uids() == []


@pytest.mark.parametrize(
    ("status", "metadata", "expected"),
    [
        ("conditions: [{type: Ready, status: 'True'}]", "", pb.HEALTHY),
        ("conditions: [{type: Ready, status: 'False'}]", "", pb.UNHEALTHY),
        ("conditions: [{type: Ready, status: Unknown}]", "", pb.UNHEALTHY),
        ("conditions: [{type: Initialized, status: 'True'}]", "", pb.HEALTHY),
        ("phase: Pending", "", pb.HEALTHY),
        (
            "conditions: [{type: Ready, status: 'True'}]",
            "deletionTimestamp: 2026-01-01T00:00:00Z",
            pb.UNHEALTHY,
        ),
    ],
)
def test_health_is_readiness_and_not_being_deleted(status: str, metadata: str, expected: int) -> None:
    mesh = Mesh(pod("web", status=status, metadata=metadata))
    assert mesh.workload("shop/web").status == expected


def test_the_trust_domain_is_sent_when_it_is_not_the_default() -> None:
    mesh = Mesh(pod("web"), settings=MeshSettings(trust_domain="prod", cluster_id="c1", network="n"))
    workload = mesh.workload("c1//Pod/shop/web")
    assert (workload.trust_domain, workload.cluster_id, workload.network) == ("prod", "c1", "n")


@pytest.mark.parametrize(
    ("pod_labels", "namespace_labels", "root_labels", "expected"),
    [
        ("topology.istio.io/network: a", "topology.istio.io/network: b", "topology.istio.io/network: c", "a"),
        ("", "topology.istio.io/network: b", "topology.istio.io/network: c", "b"),
        ("", "", "topology.istio.io/network: c", "c"),
        ("", "", "", "default-net"),
    ],
)
def test_the_network_is_the_nearest_label(
    pod_labels: str, namespace_labels: str, root_labels: str, expected: str
) -> None:
    mesh = Mesh(
        pod("web", labels=pod_labels),
        namespace("shop", namespace_labels),
        namespace("istio-system", root_labels),
        settings=MeshSettings(network="default-net"),
    )
    assert mesh.workload("shop/web").network == expected


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ("", "web-1", "latest"),
        ("app: a, version: v1", "a", "v1"),
        ("app.kubernetes.io/name: b, app: a, app.kubernetes.io/version: v2, version: v1", "b", "v2"),
        (
            (
                "service.istio.io/canonical-name: c, app.kubernetes.io/name: b, "
                "service.istio.io/canonical-revision: v3, version: v1"
            ),
            "c",
            "v3",
        ),
    ],
)
def test_canonical_names(labels: str, name: str, revision: str) -> None:
    workload = Mesh(pod("web-1", labels=labels)).workload("shop/web-1")
    assert (workload.canonical_name, workload.canonical_revision) == (name, revision)


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        ("", "", "web-5d4f-abc"),
        ("{kind: ReplicaSet, name: web-5d4f, controller: true}", "pod-template-hash: 5d4f", "web"),
        ("{kind: ReplicaSet, name: web-5d4f, controller: true}", "", "web-5d4f"),
        ("{kind: StatefulSet, name: db, controller: true}", "", "db"),
        ("{kind: Job, name: backup-29012345, controller: true}", "", "backup"),
        ("{kind: Job, name: migrate, controller: true}", "", "migrate"),
        ("{kind: ReplicaSet, name: web-5d4f}", "pod-template-hash: 5d4f", "web-5d4f-abc"),
        ("{kind: StatefulSet, name: db, controller: true}", "service.istio.io/workload-name: own", "own"),
    ],
)
def test_workload_names(owner: str, labels: str, expected: str) -> None:
    mesh = Mesh(pod("web-5d4f-abc", labels=labels, metadata=f"ownerReferences: [{owner}]" if owner else ""))
    assert mesh.workload("shop/web-5d4f-abc").workload_name == expected


def test_locality_is_the_nodes_unless_labels_say_otherwise() -> None:
    mesh = Mesh(
        NODE,
        pod("plain", ip="10.0.0.1", spec="nodeName: n1"),
        pod("labelled", ip="10.0.0.2", spec="nodeName: n1", labels="istio-locality: us.us-1.r"),
        pod("subzone", ip="10.0.0.3", spec="nodeName: n1", labels="topology.istio.io/subzone: s"),
        pod("nowhere", ip="10.0.0.4"),
        entry("vm", ip="10.0.0.5", labels="mycelia.io/node: n1"),
        entry("placed", ip="10.0.0.6", labels="mycelia.io/node: n1", spec="locality: us/us-2"),
    )

    def locality(name: str) -> tuple[str, str, str]:
        place = mesh.workload(f"shop/{name}").locality
        return place.region, place.zone, place.subzone

    assert locality("plain") == ("eu", "eu-1", "rack-7")
    assert locality("labelled") == ("us", "us-1", "r")
    assert locality("subzone") == ("eu", "eu-1", "s")
    assert locality("nowhere") == ("", "", "")
    assert locality("vm") == ("eu", "eu-1", "rack-7")
    assert locality("placed") == ("us", "us-2", "")
    mesh.remove("Node", "", "n1")
    assert locality("plain") == ("", "", "")


@pytest.mark.parametrize(
    ("annotations", "labels", "spec", "protocol", "is_native"),
    [
        ("", "", "", pb.NONE, False),
        ("ambient.istio.io/redirection: enabled", "", "", pb.HBONE, False),
        ("ambient.istio.io/redirection: disabled", "", "", pb.NONE, False),
        ("", "networking.istio.io/tunnel: http", "", pb.HBONE, True),
        ("", "istio.io/dataplane-mode: ambient", "", pb.NONE, False),
        ("ambient.istio.io/redirection: enabled", "", "hostNetwork: true", pb.NONE, False),
    ],
)
def test_what_is_announced_as_tunnelled(
    annotations: str, labels: str, spec: str, protocol: int, is_native: bool
) -> None:
    workload = Mesh(pod("web", annotations=annotations, labels=labels, spec=spec)).workload("shop/web")
    assert (workload.tunnel_protocol, workload.native_tunnel) == (protocol, is_native)


def test_host_network_pods_are_marked() -> None:
    assert Mesh(pod("web", spec="hostNetwork: true")).workload("shop/web").network_mode == pb.HOST_NETWORK


# ---- services of a workload ----


def ports_of(workload: pb.Workload) -> dict[str, dict[int, int]]:
    return {
        name: {port.service_port: port.target_port for port in ports.ports}
        for name, ports in workload.services.items()
    }


def test_selected_workloads_list_the_service_with_their_own_port_numbers() -> None:
    mesh = Mesh(
        service(
            "web", "selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81}]"
        ),
        pod(
            "p1", ip="10.0.0.1", labels=WEB, spec="containers: [{ports: [{name: http, containerPort: 8080}]}]"
        ),
        pod(
            "p2", ip="10.0.0.2", labels=WEB, spec="containers: [{ports: [{name: http, containerPort: 9090}]}]"
        ),
        pod("p3", ip="10.0.0.3", labels=WEB),
        pod("p4", ip="10.0.0.4", labels="app: other"),
        pod("p5", ip="10.0.0.5", labels=WEB, space="bank"),
    )
    web = "shop/web.shop.svc.cluster.local"
    assert ports_of(mesh.workload("shop/p1")) == {web: {80: 8080, 81: 81}}
    assert ports_of(mesh.workload("shop/p2")) == {web: {80: 9090, 81: 81}}
    assert ports_of(mesh.workload("shop/p3")) == {web: {81: 81}}
    assert ports_of(mesh.workload("shop/p4")) == {}
    assert ports_of(mesh.workload("bank/p5")) == {}
    assert mesh.notes() == [
        (
            "Pod shop/p3: TargetPortNotFound: has no port named http, which Service shop/web targets; "
            "the port is left out here"
        )
    ]
    assert [port.target_port for port in mesh.service(web).ports] == [0, 81]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("initContainers: [{restartPolicy: Always, ports: [{name: http, containerPort: 1}]}]", {80: 1}),
        ("initContainers: [{ports: [{name: http, containerPort: 1}]}]", {}),
        ("containers: [{ports: [{name: http, containerPort: 1, protocol: UDP}]}]", {}),
    ],
)
def test_named_ports_are_of_tcp_and_of_containers_that_stay(spec: str, expected: dict[int, int]) -> None:
    mesh = Mesh(
        service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}]"),
        pod("web", labels=WEB, spec=spec),
    )
    assert ports_of(mesh.workload("shop/web"))["shop/web.shop.svc.cluster.local"] == expected


def test_workload_entries_answer_named_ports_by_their_port_map() -> None:
    mesh = Mesh(
        service("web", "selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}]"),
        entry("web", labels=WEB, spec="ports: {http: 8080}"),
    )
    assert ports_of(mesh.workload("shop/web")) == {"shop/web.shop.svc.cluster.local": {80: 8080}}


def test_a_services_end_takes_it_from_its_workloads() -> None:
    mesh = Mesh(service("web", "selector: {app: web}, ports: [{port: 80}]"), pod("web", labels=WEB))
    delta = mesh.remove("Service", "shop", "web")
    assert [name for _, name in delta.removed] == ["shop/web.shop.svc.cluster.local"]
    assert [each.name for each in delta.upserts] == ["Kubernetes//Pod/shop/web"]
    assert ports_of(mesh.workload("shop/web")) == {}


def test_unready_workloads_are_sent_again_when_their_service_begins_to_take_them() -> None:
    """A node proxy has dropped them for good (ztunnel-facts 5.9)."""
    unready = "conditions: [{type: Ready, status: 'False'}]"
    mesh = Mesh(
        service("web", "selector: {app: web}, ports: [{port: 80}]"),
        pod("up", labels=WEB),
        pod("down", ip="10.0.0.2", labels=WEB, status=unready),
    )
    delta = mesh.apply(
        service("web", "selector: {app: web}, ports: [{port: 80}], publishNotReadyAddresses: true")
    )
    assert [each.name for each in delta.upserts] == [
        "Kubernetes//Pod/shop/down",
        "shop/web.shop.svc.cluster.local",
    ]


# ---- EndpointSlices ----


def test_slice_addresses_without_pod_are_plain_workloads() -> None:
    mesh = Mesh(
        namespace("shop", "istio.io/use-waypoint: none"),
        service("web", "ports: [{name: a, port: 80}, {name: b, port: 81}]"),
        slice_(
            "s1",
            "addressType: IPv4\nendpoints: [{addresses: [10.1.0.1], nodeName: n1}, "
            "{addresses: [10.1.0.2], conditions: {ready: false}}]\n"
            "ports: [{name: a, port: 8080}, {name: u, port: 9, protocol: UDP}]",
        ),
        istio("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"),
    )
    workload = mesh.workload("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s1/10.1.0.1")
    assert ports_of(workload) == {"shop/web.shop.svc.cluster.local": {80: 8080}}
    assert (workload.network_mode, workload.status, workload.node) == (pb.HOST_NETWORK, pb.HEALTHY, "")
    assert (list(workload.authorization_policies), workload.HasField("locality")) == ([], False)
    assert mesh.workload("shop/s1/10.1.0.2").status == pb.UNHEALTHY


def test_a_slice_that_names_a_pod_makes_the_pod_serve() -> None:
    text = slice_(
        "s1",
        "addressType: IPv4\n"
        "endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: web, namespace: shop, uid: u1}}]\n"
        "ports: [{name: '', port: 8080}]",
    )
    mesh = Mesh(service("web", "ports: [{port: 80}]"), text)
    alone = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s1/10.0.0.1"
    assert mesh.uids() == [alone]
    mesh.apply(pod("web", metadata="uid: u1"))
    assert mesh.uids() == ["Kubernetes//Pod/shop/web"]
    assert ports_of(mesh.workload("shop/web")) == {"shop/web.shop.svc.cluster.local": {80: 8080}}
    # Another pod of the same name is not the one that was meant.
    mesh.apply(pod("web", metadata="uid: u2", ip="10.0.0.9"))
    assert mesh.uids() == ["Kubernetes//Pod/shop/web", alone]
    assert ports_of(mesh.workload("Pod/shop/web")) == {}
    mesh.remove("Pod", "shop", "web")
    assert mesh.uids() == [alone]
    mesh.remove("EndpointSlice", "shop", "s1")
    assert mesh.uids() == []


def test_slices_of_a_service_with_a_selector_say_nothing_new() -> None:
    mesh = Mesh(
        service("web", "selector: {app: web}, ports: [{port: 80}]"),
        slice_(
            "s1", "addressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}]\nports: [{name: '', port: 8080}]"
        ),
    )
    assert ports_of(mesh.workload("shop/s1/10.1.0.1")) == {}


def test_slices_of_names_have_no_part() -> None:
    mesh = Mesh(slice_("s1", "addressType: FQDN\nendpoints: [{addresses: [a.example.com]}]"))
    assert mesh.uids() == []


# ---- ServiceEntry ----


def test_inline_endpoints_are_workloads_that_serve_every_host() -> None:
    mesh = Mesh(
        istio(
            "ServiceEntry",
            "db",
            "{hosts: [a.db, b.db], resolution: STATIC, location: MESH_INTERNAL, "
            "ports: [{number: 5432, name: pg, protocol: TCP, targetPort: 5433}, {number: 80, name: http}], "
            "endpoints: [{address: 10.2.0.1, ports: {http: 8080}, "
            "labels: {app: db, networking.istio.io/tunnel: http}, "
            "serviceAccount: db, locality: eu/eu-1, weight: 3}]}",
        ),
        istio("AuthorizationPolicy", "p", "{selector: {matchLabels: {app: db}}}"),
    )
    workload = mesh.workload("Kubernetes/networking.istio.io/ServiceEntry/shop/db/10.2.0.1")
    assert ports_of(workload) == {"shop/a.db": {5432: 5433, 80: 8080}, "shop/b.db": {5432: 5433, 80: 8080}}
    assert (workload.service_account, workload.capacity.value, workload.locality.zone) == ("db", 3, "eu-1")
    assert (workload.tunnel_protocol, workload.native_tunnel) == (pb.HBONE, True)
    assert list(workload.authorization_policies) == ["shop/p"]


def test_external_endpoints_have_no_policies() -> None:
    mesh = Mesh(
        istio("ServiceEntry", "db", "{hosts: [a.db], resolution: STATIC, endpoints: [{address: 10.2.0.1}]}"),
        istio("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"),
    )
    assert list(mesh.workload("shop/db/10.2.0.1").authorization_policies) == []


def test_dns_entries_without_endpoints_lead_to_their_hosts() -> None:
    ports = "ports: [{number: 443, name: tls}]"
    mesh = Mesh(
        istio("ServiceEntry", "ext", f"{{hosts: [a.example.com, b.example.com], resolution: DNS, {ports}}}")
    )
    workload = mesh.workload("shop/ext/a.example.com")
    assert (workload.hostname, addresses(workload)) == ("a.example.com", [])
    assert ports_of(workload) == {"shop/a.example.com": {443: 443}}
    assert len(mesh.uids()) == 2


def test_dns_endpoints_are_workloads_with_a_hostname() -> None:
    mesh = Mesh(
        istio(
            "ServiceEntry",
            "ext",
            "{hosts: [a.b], resolution: DNS, endpoints: [{address: eu.b}, {address: us.b}]}",
        )
    )
    assert [each.hostname for each in mesh.workloads()] == ["eu.b", "us.b"]


def test_entries_select_pods_and_workload_entries_by_the_name_of_the_port() -> None:
    mesh = Mesh(
        istio(
            "ServiceEntry",
            "se",
            "{hosts: [a.b], resolution: STATIC, workloadSelector: {labels: {app: web}}, "
            "ports: [{number: 80, name: http, targetPort: 81}, {number: 90, name: other}]}",
        ),
        pod("p", labels=WEB, spec="containers: [{ports: [{name: http, containerPort: 8080}]}]"),
        entry("w", ip="10.0.0.2", labels=WEB),
    )
    assert ports_of(mesh.workload("Pod/shop/p")) == {"shop/a.b": {80: 8080, 90: 90}}
    assert ports_of(mesh.workload("shop/w")) == {"shop/a.b": {80: 81, 90: 90}}
