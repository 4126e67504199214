"""Requests through a waypoint: real ztunnels on both sides, a real waypoint process between them."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.lab.network import Place, Workload
from tests.kit.mesh import ROOT, SOCKET_S, Mesh, Waypoint
from tests.kit.shop import PORT, USE_WAYPOINT, Answer, ask, serve, service_document

pytestmark = pytest.mark.namespaces


@pytest.fixture(name="mesh", scope="module")
def _mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(name="client", scope="module")
def _client(mesh: Mesh) -> Workload:
    return mesh.add("client", "alpha")


@pytest.fixture(name="waypoint", scope="module")
def _waypoint(mesh: Mesh) -> Waypoint:
    return mesh.add_waypoint("gate", "beta", MYCELIA_ACCESS_LOG="json")


class Shop:
    """A service with two versions behind it, enrolled in the waypoint by its label."""

    def __init__(self, mesh: Mesh, waypoint: str) -> None:
        self.mesh = mesh
        self.members = [
            mesh.add(f"shop-{version}", "beta", labels={"shop": "yes"}) for version in ("v1", "v2")
        ]
        for version, member in zip(("v1", "v2"), self.members, strict=True):
            serve(mesh, member, version)
        self.vip = "10.78.0.50"
        self.vip6 = "fd78::50"
        mesh.apply("shop", shop_document("shop", (self.vip, self.vip6), waypoint))

    def ask(self, client: Place, path: str = "/", **headers: str) -> Answer:
        return ask(self.mesh, client, self.vip, path, **headers)


def shop_document(name: str, vips: tuple[str, ...], waypoint: str) -> dict[str, Any]:
    return service_document(name, vips, {"shop": "yes"}, labels={USE_WAYPOINT: waypoint})


@pytest.fixture(name="shop", scope="module")
def _shop(mesh: Mesh, waypoint: Waypoint, client: Workload) -> Shop:
    shop = Shop(mesh, waypoint.name)

    def is_enrolled() -> bool:
        try:
            return "x-envoy-upstream-service-time" in shop.ask(client).headers
        except OSError:
            return False

    mesh.wait("requests through the waypoint", is_enrolled)
    return shop


def test_requests_pass_the_waypoint_and_each_side_sees_its_neighbour(
    mesh: Mesh, client: Workload, waypoint: Waypoint, shop: Shop
) -> None:
    answer = shop.ask(client, "/a?b=c")
    assert (answer.status, answer.told["target"]) == (200, "/a?b=c")
    assert answer.headers["server"] == "mycelia"
    assert answer.peer == waypoint.workload.ipv4
    identity = f"spiffe://cluster.local/ns/default/sa/{waypoint.name}"
    outbound = mesh.wait_access_log("alpha", src_workload=client.name, dst_workload=waypoint.name)
    assert outbound["dst.identity"] == identity


def test_requests_of_one_connection_reach_both_endpoints(client: Workload, shop: Shop) -> None:
    connection = http.client.HTTPConnection(shop.vip, PORT, timeout=SOCKET_S)
    with shop.mesh.lab.entered(client):
        connection.connect()
    seen = set()
    for _ in range(40):
        connection.request("GET", "/")
        seen.add(json.loads(connection.getresponse().read())["name"])
    connection.close()
    assert seen == {"v1", "v2"}


def test_a_route_decides_by_header(mesh: Mesh, client: Workload, shop: Shop) -> None:
    for version, member in zip(("v1", "v2"), shop.members, strict=True):
        document = shop_document(f"shop-{version}", (f"10.78.0.5{version[1]}",), "none")
        document["spec"]["selector"] = {"app": member.name}
        mesh.apply(f"shop-{version}", document)
    rules = [
        {
            "matches": [{"headers": [{"name": "x-version", "value": "2"}]}],
            "backendRefs": [{"name": "shop-v2", "port": PORT}],
        },
        {"backendRefs": [{"name": "shop-v1", "port": PORT}]},
    ]
    mesh.apply(
        "route",
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "shop", "namespace": "default"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "shop"}], "rules": rules},
        },
    )
    headers = {"x-version": "2"}
    mesh.wait("the route", lambda: all(shop.ask(client, **headers).told["name"] == "v2" for _ in range(5)))
    assert {shop.ask(client).told["name"] for _ in range(10)} == {"v1"}
    mesh.withdraw("route")
    mesh.wait("no route", lambda: {shop.ask(client).told["name"] for _ in range(10)} == {"v1", "v2"})


def test_a_request_in_flight_survives_the_drain(
    mesh: Mesh, client: Workload, waypoint: Waypoint, shop: Shop
) -> None:
    process = waypoint.process
    assert process is not None
    connection = http.client.HTTPConnection(shop.vip, PORT, timeout=SOCKET_S)
    with mesh.lab.entered(client):
        connection.connect()
    connection.request("GET", "/slow")
    mesh.wait(
        "the request at the application", lambda: any("/slow" in text(mesh, each) for each in shop.members)
    )
    process.send_signal(signal.SIGTERM)
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["target"] == "/slow"
    connection.close()
    assert process.wait(SOCKET_S) == 0
    identity = f"spiffe://cluster.local/ns/default/sa/{waypoint.name}"
    inbound = mesh.wait_access_log("beta", src_identity=identity)
    assert inbound["src.workload"] == waypoint.name
    mesh.start_waypoint(waypoint, MYCELIA_ACCESS_LOG="json")
    mesh.wait("the waypoint again", lambda: mesh.is_ready(waypoint.workload))
    mesh.wait("requests again", lambda: shop.ask(client).status == 200)


def text(mesh: Mesh, workload: Workload) -> str:
    path = mesh.directory / f"{workload.name}-http.log"
    return path.read_text() if path.exists() else ""


def test_metrics_and_log_name_client_service_and_endpoint(
    mesh: Mesh, client: Workload, waypoint: Waypoint, shop: Shop
) -> None:
    shop.ask(client, "/counted")

    def counted() -> str:
        _, text = mesh.get(waypoint.workload, ("127.0.0.1", 15020), "/metrics")
        return next((line for line in text.splitlines() if line.startswith("istio_requests_total{")), "")

    line = mesh.wait("the metric", counted)
    for label in (
        'reporter="waypoint"',
        f'source_workload="{client.name}"',
        f'source_principal="spiffe://cluster.local/ns/default/sa/{client.name}"',
        'destination_service_name="shop"',
        'destination_workload="shop-v',
        'response_code="200"',
        'connection_security_policy="mutual_tls"',
    ):
        assert label in line
    logged = mesh.wait(
        "the access log",
        lambda: [
            json.loads(each)
            for each in (waypoint.folder / "log").read_text().splitlines()
            if '"/counted"' in each
        ],
    )
    assert logged[0]["response_code"] == 200
    assert logged[0]["source_principal"] == f"spiffe://cluster.local/ns/default/sa/{client.name}"
    assert logged[0]["upstream_cluster"].startswith("default/shop.default.svc.cluster.local:80")


def test_the_dump_shows_routes_and_endpoints(
    mesh: Mesh, waypoint: Waypoint, shop: Shop, client: Workload
) -> None:
    shop.ask(client)
    status, body = mesh.get(waypoint.workload, ("127.0.0.1", 15000), "/config_dump")
    dump = json.loads(body)
    assert status == 200
    assert any(each["hostname"].startswith("shop.") for each in dump["routes"])
    (worker,) = dump["workers"]
    assert any(len(cluster["hosts"]) == 2 for cluster in worker["clusters"])


def test_a_waypoint_without_a_name_says_so_in_one_line() -> None:

    done = subprocess.run(
        [sys.executable, "-m", "waypoint"],
        cwd=ROOT,
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("waypoint: MYCELIA_WAYPOINT is not set")
    assert len(done.stderr.splitlines()) == 1
