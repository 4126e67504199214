"""The registry as a whole: incremental equals at once, little work for little changes, captures, look-ups."""

from __future__ import annotations

from collections.abc import Mapping

from config.compile.resource import (
    ADDRESS,
    Resource,
)
from config.objects import (
    Gateway,
    Meta,
    MtlsMode,
    Namespace,
    PeerAuthentication,
    RateLimitPolicy,
    Ref,
    Resolution,
    ServiceEntry,
)
from config.registry.registry import Registry
from config.registry.review import review
from config.settings import MeshSettings
from proto.istio import workload_pb2 as pb
from tests.config.support import Mesh, entry, istio, namespace, pod, service

SETTINGS = MeshSettings()


# ---- little changes, little work ----


def large(workloads: int, services: int) -> Mesh:
    texts = [namespace(f"ns{n}") for n in range(20)]
    texts += [
        service(
            f"s{n}",
            f"selector: {{app: a{n}}}, ports: [{{port: 80}}], clusterIP: 10.96.{n // 200}.{n % 200}",
            space=f"ns{n % 20}",
        )
        for n in range(services)
    ]
    texts += [
        entry(
            f"w{n}",
            ip=f"10.{n // 40000}.{n // 200 % 200}.{n % 200}",
            labels=f"app: a{n % services}, mycelia.io/node: n{n % 10}",
            space=f"ns{n % services % 20}",
        )
        for n in range(workloads)
    ]
    return Mesh("---\n".join(texts))


def work_of(mesh: Mesh, text: str) -> tuple[int, int]:
    """(compiled, sent) because of one change."""
    before = mesh.registry.compiled
    delta = mesh.apply(text)
    return mesh.registry.compiled - before, len(delta.upserts) + len(delta.removed)


def test_a_change_costs_what_depends_on_it_in_a_mesh_of_ten_thousand() -> None:
    mesh = large(10_000, 1_000)
    assert len(mesh.registry.resources[ADDRESS]) == 11_000
    web = entry("w7", ip="10.200.0.1", labels="app: a7, mycelia.io/node: n7", space="ns7")
    assert work_of(mesh, web) == (1, 1)
    assert work_of(mesh, web) == (0, 0)
    ports = "ports: [{port: 80, targetPort: 8080}]"
    changed = service("s7", f"selector: {{app: a7}}, {ports}, clusterIP: 10.96.0.7", space="ns7")
    assert work_of(mesh, changed) == (11, 11)
    local = service(
        "s7",
        f"selector: {{app: a7}}, {ports}, clusterIP: 10.96.0.7, trafficDistribution: PreferClose",
        space="ns7",
    )
    assert work_of(mesh, local) == (1, 1)
    policy = istio("AuthorizationPolicy", "p", "{selector: {matchLabels: {app: a7}}}", space="ns7")
    assert work_of(mesh, policy) == (11, 11)
    rules = istio(
        "AuthorizationPolicy", "p", "{selector: {matchLabels: {app: a7}}, rules: [{}]}", space="ns7"
    )
    assert work_of(mesh, rules) == (1, 1)
    assert work_of(mesh, istio("AuthorizationPolicy", "q", "{}", space="ns7")) == (1, 1)
    assert work_of(mesh, namespace("ns7", "istio.io/dataplane-mode: ambient"))[1] == 0
    before = mesh.registry.compiled
    delta = mesh.registry.set_captured("n7", [("ns7", "w7")])
    assert (mesh.registry.compiled - before, len(delta.upserts)) == (1, 1)


def test_equal_objects_in_another_order_are_no_change() -> None:
    mesh = Mesh(pod("web", labels="a: b, c: d"))
    assert not mesh.apply(pod("web", labels="c: d, a: b"))


# ---- captures ----


def test_only_the_node_a_workload_is_on_can_say_it_is_captured() -> None:
    mesh = Mesh(
        entry("web", labels="mycelia.io/node: n1"), pod("host", spec="nodeName: n1, hostNetwork: true")
    )
    assert not mesh.registry.set_captured("n2", [("shop", "web")])
    assert mesh.workload("shop/web").tunnel_protocol == pb.NONE
    assert mesh.registry.set_captured("n1", [("shop", "web"), ("shop", "host"), ("shop", "gone")])
    assert mesh.workload("shop/web").tunnel_protocol == pb.HBONE
    assert mesh.workload("shop/host").tunnel_protocol == pb.NONE
    mesh.apply(entry("web", labels="mycelia.io/node: n2"))
    assert mesh.workload("shop/web").tunnel_protocol == pb.HBONE  # both nodes have said so
    mesh.registry.set_captured("n2", [])
    assert mesh.workload("shop/web").tunnel_protocol == pb.NONE


def test_the_ca_hears_who_runs_where() -> None:
    mesh = Mesh(
        entry("web", labels="mycelia.io/node: n1", spec="serviceAccount: web"),
        pod("done", ip="10.0.0.2", spec="nodeName: n1, serviceAccountName: job", status="phase: Succeeded"),
        pod("floating", ip="10.0.0.3", spec="serviceAccountName: floating"),
    )
    running = mesh.registry.is_running_on
    assert running("shop", "web", "n1")
    assert not running("shop", "web", "n2")
    assert not running("bank", "web", "n1")
    assert not running("shop", "job", "n1")
    assert not running("shop", "floating", "")


# ---- look-ups and review ----


def test_look_ups_by_uid_address_hostname_and_virtual_address() -> None:
    mesh = Mesh(
        service("web", "clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]"),
        entry("web", labels="app: web, mycelia.io/node: n1"),
        settings=MeshSettings(network="net"),
    )
    uid = "Kubernetes/networking.istio.io/WorkloadEntry/shop/web"
    name = "shop/web.shop.svc.cluster.local"

    def found(key: str) -> list[str]:
        return [each.name for each in mesh.registry.find(key)]

    assert found(uid) == [uid]
    assert found("net/10.0.0.1") == [uid]
    assert found(name) == [name, uid]
    assert found("net/10.96.0.1") == [name, uid]
    assert found("/10.0.0.1") == []
    assert [each.name for each in mesh.registry.on_node("n1")] == [uid]
    mesh.remove("WorkloadEntry", "shop", "web")
    assert found("net/10.0.0.1") == []


def test_the_review_tells_what_is_odd_about_the_whole() -> None:
    mesh = Mesh(
        namespace("bank", "istio.io/use-waypoint: wp"),
        entry("a"),
        entry("b"),
        service("s1", "clusterIP: 10.96.0.1, selector: {app: none}"),
        service("s2", "clusterIP: 10.96.0.1"),
        istio("AuthorizationPolicy", "p", "{selector: {matchLabels: {app: none}}}"),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
        "metadata: {name: s, namespace: bank, labels: {kubernetes.io/service-name: nobody}}\n",
    )
    texts = [f"{note.ref}: {note.text}" for note in review(mesh.registry)]
    assert texts == [
        "AuthorizationPolicy shop/p: its selector finds no workload",
        "EndpointSlice bank/s: there is no Service bank/nobody",
        "Namespace bank: label istio.io/use-waypoint: there is no waypoint bank/wp; traffic goes without one",
        "Namespace shop: is used but not declared: it has no labels, so nothing in it is captured",
        "Service shop/s1: its service address 10.96.0.1 is also that of Service shop/s2",
        "Service shop/s1: its selector finds no workload",
        "Service shop/s2: its service address 10.96.0.1 is also that of Service shop/s1",
        "WorkloadEntry shop/a: its workload address 10.0.0.1 is also that of WorkloadEntry shop/b",
        "WorkloadEntry shop/a: has no label mycelia.io/node: no node can capture it or speak for it",
        "WorkloadEntry shop/b: its workload address 10.0.0.1 is also that of WorkloadEntry shop/a",
        "WorkloadEntry shop/b: has no label mycelia.io/node: no node can capture it or speak for it",
    ]


def test_versions_are_the_same_in_every_process() -> None:
    mesh = Mesh(entry("web", labels="mycelia.io/node: n1", spec="serviceAccount: web"))
    held: Mapping[str, Resource] = mesh.registry.resources[ADDRESS]
    (resource,) = held.values()
    assert resource.version == "19e8de6808b2bbad"


def test_a_limit_of_connections_is_not_taken_for_a_peer_authentication() -> None:
    peer = PeerAuthentication(Meta(Ref("PeerAuthentication", "shop", "strict")), mode=MtlsMode.STRICT)
    limit = RateLimitPolicy(Meta(Ref("RateLimitPolicy", "shop", "calm")))
    registry = Registry(SETTINGS)
    registry.apply({each.meta.ref: each for each in (peer, limit)})
    assert not [note for note in review(registry) if note.ref == limit.meta.ref]


def test_an_entry_has_its_host_before_a_waypoint_of_that_name() -> None:
    entry = ServiceEntry(
        Meta(Ref("ServiceEntry", "shop", "a")), ("a.shop.svc.cluster.local",), Resolution.NONE
    )
    gateway = Gateway(Meta(Ref("Gateway", "shop", "a")), "istio-waypoint")
    space = Namespace(Meta(Ref("Namespace", "", "shop")))
    registry = Registry(SETTINGS)
    registry.apply({each.meta.ref: each for each in (space, entry, gateway)})
    assert list(registry.resources[ADDRESS]) == ["shop/a.shop.svc.cluster.local"]
