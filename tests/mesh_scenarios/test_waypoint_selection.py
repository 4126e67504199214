"""Which waypoint a connection goes through: one scenario for each rule (config-api 5.3).

The server's answer says who asked it: the client itself, or a waypoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh, Waypoint, namespace, waypoint_documents
from tests.kit.shop import USE_WAYPOINT, peers, serve, service_document

pytestmark = pytest.mark.namespaces

_numbers = itertools.count(100)


@pytest.fixture(name="mesh", scope="module")
def _mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(name="client", scope="module")
def _client(mesh: Mesh) -> Workload:
    return mesh.add("client", "alpha")


@pytest.fixture(name="gate", scope="module")
def _gate(mesh: Mesh) -> Waypoint:
    return mesh.add_waypoint("gate", "beta")


@pytest.fixture(name="server", scope="module")
def _server(mesh: Mesh) -> Workload:
    server = mesh.add("server", "beta")
    serve(mesh, server, "server")
    return server


def add_service(mesh: Mesh, server: Workload, **labels: str) -> tuple[str, str]:
    """A service of that one server; returns its manifest's name and its address."""
    number = next(_numbers)
    name, vip = f"service-{number}", f"10.78.1.{number}"
    named = {key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()}
    mesh.apply(name, service_document(name, (vip,), {"app": server.name}, labels=named))
    return name, vip


def goes_through(mesh: Mesh, client: Workload, host: str, who: Workload) -> None:
    """Waits until requests to `host` come from `who`, and then stay so."""
    expected = {who.ipv4}
    mesh.wait(f"requests to {host} from {who.name}", lambda: peers(mesh, client, host) == expected)
    assert peers(mesh, client, host, 5) == expected


def use(name: str) -> Mapping[str, str]:
    return {"istio.io__use_waypoint": name}


def test_a_services_label_enrols_it(mesh: Mesh, client: Workload, gate: Waypoint, server: Workload) -> None:
    _, vip = add_service(mesh, server, **use("gate"))
    goes_through(mesh, client, vip, gate.workload)


def test_without_a_label_there_is_no_waypoint(
    mesh: Mesh, client: Workload, gate: Waypoint, server: Workload
) -> None:
    _, vip = add_service(mesh, server)
    goes_through(mesh, client, vip, client)


def test_a_namespaces_label_enrols_its_services_but_not_one_that_says_none(
    mesh: Mesh, client: Workload, gate: Waypoint, server: Workload
) -> None:
    _, inheriting = add_service(mesh, server)
    _, refusing = add_service(mesh, server, **use("none"))
    goes_through(mesh, client, inheriting, client)
    document = namespace("default", is_ambient=True)
    labels = {**document["metadata"]["labels"], USE_WAYPOINT: "gate"}
    mesh.apply("ambient", {**document, "metadata": {"name": "default", "labels": labels}})
    goes_through(mesh, client, inheriting, gate.workload)
    goes_through(mesh, client, refusing, client)
    mesh.apply("ambient", document)
    goes_through(mesh, client, inheriting, client)


def test_a_waypoint_that_does_not_exist_leaves_traffic_as_it_was(
    mesh: Mesh, client: Workload, server: Workload
) -> None:
    _, vip = add_service(mesh, server, **use("nowhere"))
    goes_through(mesh, client, vip, client)


def test_a_workloads_label_is_for_its_own_address_and_not_for_services(
    mesh: Mesh, client: Workload, gate: Waypoint
) -> None:
    direct = mesh.add("direct", "beta", labels={USE_WAYPOINT: "gate"})
    serve(mesh, direct, "direct")
    goes_through(mesh, client, direct.ipv4, gate.workload)
    _, vip = add_service(mesh, direct)
    goes_through(mesh, client, vip, client)


def test_a_waypoint_for_services_takes_no_workload_traffic(
    mesh: Mesh, client: Workload, server: Workload
) -> None:
    only = mesh.add_waypoint("services-only", "beta")
    gateway, *others = waypoint_documents(only.workload, "default")
    metadata = {**gateway["metadata"], "labels": {"istio.io/waypoint-for": "service"}}
    mesh.apply("services-only", {**gateway, "metadata": metadata}, *others)
    _, vip = add_service(mesh, server, **use("services-only"))
    goes_through(mesh, client, vip, only.workload)
    direct = mesh.add("direct", "beta", labels={USE_WAYPOINT: "services-only"})
    serve(mesh, direct, "direct")
    goes_through(mesh, client, direct.ipv4, client)


def test_another_namespaces_waypoint_must_allow_it(mesh: Mesh, client: Workload, gate: Waypoint) -> None:
    mesh.apply("other", namespace("other", is_ambient=True))
    server = mesh.add("elsewhere", "beta", namespace="other")
    serve(mesh, server, "elsewhere")
    labels = {USE_WAYPOINT: "gate", "istio.io/use-waypoint-namespace": "default"}
    vip = "10.78.1.90"
    selector = {"app": server.name}
    document = service_document("elsewhere", (vip,), selector, labels=labels, namespace="other")
    mesh.apply("elsewhere-service", document)
    goes_through(mesh, client, vip, client)
    gateway, *others = waypoint_documents(gate.workload, "default")
    (listener,) = gateway["spec"]["listeners"]
    allowed = {**listener, "allowedRoutes": {"namespaces": {"from": "All"}}}
    mesh.apply("gate", {**gateway, "spec": {**gateway["spec"], "listeners": [allowed]}}, *others)
    goes_through(mesh, client, vip, gate.workload)
    mesh.apply("gate", gateway, *others)
    goes_through(mesh, client, vip, client)


def test_a_canary_gets_its_share_of_new_connections(
    mesh: Mesh, client: Workload, gate: Waypoint, server: Workload
) -> None:
    canary = mesh.add_waypoint("canary", "alpha")
    name, vip = add_service(mesh, server, **use("gate"))
    document = service_document(
        name,
        (vip,),
        {"app": server.name},
        labels={USE_WAYPOINT: "gate", "istio.io/use-waypoint-canary": "canary"},
    )
    document["metadata"]["annotations"] = {"istio.io/use-waypoint-canary-weight": "50"}
    mesh.apply(name, document)
    both = {gate.workload.ipv4, canary.workload.ipv4}
    mesh.wait("both waypoints", lambda: peers(mesh, client, vip, 20) == both)
    document["metadata"]["annotations"] = {"istio.io/use-waypoint-canary-weight": "100"}
    mesh.apply(name, document)
    # A few through the canary may be chance as long as both have a share.
    mesh.wait("the canary alone", lambda: peers(mesh, client, vip, 20) == {canary.workload.ipv4})
