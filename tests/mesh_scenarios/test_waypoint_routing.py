"""Manifests in, behaviour out: routes, subsets, faults and changes under load through a real waypoint."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import SOCKET_S, Mesh, workload_documents
from tests.kit.shop import PORT, serve
from tests.mesh_scenarios.test_waypoint import Shop, shop_document

pytestmark = pytest.mark.namespaces

HOST = "shop.default.svc.cluster.local"
Document = dict[str, Any]


@pytest.fixture(name="mesh", scope="module")
def _mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(name="client", scope="module")
def _client(mesh: Mesh) -> Workload:
    return mesh.add("client", "alpha")


@pytest.fixture(name="shop", scope="module")
def _shop(mesh: Mesh, client: Workload) -> Shop:
    waypoint = mesh.add_waypoint("gate", "beta", MYCELIA_ACCESS_LOG="json")
    shop = Shop(mesh, waypoint.name)
    mesh.wait("requests through the waypoint", lambda: passes(shop, client))
    return shop


def passes(shop: Shop, client: Workload) -> bool:
    try:
        return "x-envoy-upstream-service-time" in shop.ask(client).headers
    except OSError:
        return False


def virtual_service(*routes: Document) -> Document:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"hosts": [HOST], "http": list(routes)},
    }


def destination_rule(shop: Shop, **policy: Any) -> Document:
    subsets = [
        {"name": version, "labels": {"app": member.name}}
        for version, member in zip(("v1", "v2"), shop.members, strict=True)
    ]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"host": HOST, "subsets": subsets, "trafficPolicy": policy},
    }


def to(subset: str, weight: int = 100) -> Document:
    return {"destination": {"host": HOST, "subset": subset}, "weight": weight}


@contextlib.contextmanager
def applied(mesh: Mesh, **documents: Document) -> Iterator[None]:
    for name, document in documents.items():
        mesh.apply(name, document)
    try:
        yield
    finally:
        for name in reversed(documents):  # subsets outlive the routes to them
            mesh.withdraw(name)


def names(shop: Shop, client: Workload, count: int = 10, path: str = "/", **headers: str) -> list[str]:
    return [shop.ask(client, path, **headers).told["name"] for _ in range(count)]


def test_a_canary_gets_its_share(mesh: Mesh, client: Workload, shop: Shop) -> None:
    split = virtual_service({"name": "split", "route": [to("v1", 80), to("v2", 20)]})
    with applied(mesh, rule=destination_rule(shop), split=split):
        mesh.wait("the split", lambda: Counter(names(shop, client, 40))["v1"] > 25)
        found = Counter(names(shop, client, 200))
        assert 15 <= found["v2"] <= 75


def test_faults_retries_and_rewrites(mesh: Mesh, client: Workload, shop: Shop) -> None:
    routes = virtual_service(
        {
            "match": [{"uri": {"prefix": "/broken"}}],
            "fault": {"abort": {"percentage": {"value": 100}, "httpStatus": 418}},
            "route": [to("v1")],
        },
        {
            "match": [{"uri": {"prefix": "/old"}}],
            "rewrite": {"uri": "/new"},
            "headers": {"request": {"set": {"x-by": "route"}}, "response": {"add": {"x-seen": "yes"}}},
            "route": [to("v2")],
        },
        {"match": [{"uri": {"exact": "/said"}}], "directResponse": {"status": 203, "body": {"string": "so"}}},
    )
    with applied(mesh, rule=destination_rule(shop), routes=routes):
        mesh.wait("the routes", lambda: shop.ask(client, "/said").status == 203)
        broken = shop.ask(client, "/broken")
        assert (broken.status, broken.text) == (418, "fault filter abort")
        answer = shop.ask(client, "/old/thing?q=1")
        told = answer.told
        assert (answer.status, answer.headers["x-seen"]) == (200, "yes")
        assert (told["name"], told["target"]) == ("v2", "/new/thing?q=1")
        assert told["headers"]["x-by"] == "route"
        assert told["headers"]["x-envoy-original-path"] == "/old/thing?q=1"
        assert shop.ask(client, "/elsewhere").status == 404
    mesh.wait("no routes", lambda: shop.ask(client, "/elsewhere").status == 200)


def test_a_hashed_header_sticks(mesh: Mesh, client: Workload, shop: Shop) -> None:
    sticky = destination_rule(shop, loadBalancer={"consistentHash": {"httpHeaderName": "x-user"}})
    with applied(mesh, rule=sticky):
        users = [f"user-{number}" for number in range(8)]
        mesh.wait(
            "stickiness",
            lambda: all(len(set(names(shop, client, 6, **{"x-user": user}))) == 1 for user in users),
        )
        assert {name for user in users for name in names(shop, client, 1, **{"x-user": user})} == {"v1", "v2"}


class Load(threading.Thread):
    """One connection of the client's that asks without a pause."""

    def __init__(self, shop: Shop, client: Workload) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.is_over = threading.Event()
        self._connection = http.client.HTTPConnection(shop.vip, PORT, timeout=SOCKET_S)
        with shop.mesh.lab.entered(client):
            self._connection.connect()

    def run(self) -> None:
        try:
            while not self.is_over.is_set():
                self._connection.request("POST", "/", b"body")
                answer = self._connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
        finally:
            self._connection.close()


def test_changes_of_routes_and_endpoints_under_load_lose_no_request(
    mesh: Mesh, client: Workload, shop: Shop
) -> None:
    loads = [Load(shop, client) for _ in range(4)]
    for each in loads:
        each.start()
    extra = mesh.add("shop-v3", "alpha")
    serve(mesh, extra, "v3")
    mesh.apply(extra.name, *workload_documents(extra, "default", extra.name, {"shop": "yes"}))
    mesh.wait("a third endpoint", lambda: "v3" in names(shop, client))
    for number in range(4):
        weights = (to("v1", 10 + 20 * number), to("v2", 90 - 20 * number))
        with applied(mesh, rule=destination_rule(shop), split=virtual_service({"route": list(weights)})):
            mesh.wait("the split", lambda: "v3" not in names(shop, client, 20))
        mesh.wait("no split", lambda: "v3" in names(shop, client))
    mesh.withdraw(extra.name)  # first from the mesh, then the program ends
    mesh.wait("two endpoints again", lambda: "v3" not in names(shop, client, 30))
    mesh.remove(extra)
    for each in loads:
        each.is_over.set()
        each.join(SOCKET_S)
    assert [each.failures for each in loads] == [[]] * 4
    assert {status for each in loads for status in each.statuses} == {200}
    assert sum(sum(each.statuses.values()) for each in loads) > 200


@pytest.mark.usefixtures("shop")  # and its waypoint
def test_a_workloads_own_address_leads_through_its_waypoint(mesh: Mesh, client: Workload) -> None:
    pod = mesh.add("lonely", "beta", labels={"istio.io/use-waypoint": "gate"})
    serve(mesh, pod, "lonely")

    def ask() -> tuple[dict[str, str], Document]:
        connection = http.client.HTTPConnection(pod.ipv4, PORT, timeout=SOCKET_S)
        with contextlib.closing(connection):
            with mesh.lab.entered(client):
                connection.connect()
            connection.request("GET", "/")
            answer = connection.getresponse()
            headers = {key.lower(): value for key, value in answer.getheaders()}
            return headers, json.loads(answer.read())

    headers, told = ask()
    assert told["name"] == "lonely"
    assert headers["server"] == "mycelia"


@pytest.mark.usefixtures("shop")
def test_plain_tcp_passes_the_waypoint(mesh: Mesh, client: Workload) -> None:
    backend = mesh.add("raw", "beta")
    document = shop_document("raw", ("10.78.0.60",), "gate")
    document["spec"]["ports"] = [{"name": "tcp-raw", "port": 9000, "targetPort": 9000}]
    document["spec"]["selector"] = {"app": backend.name}
    with mesh.listen(backend, 9000) as listener:
        mesh.apply("raw", document)

        def greets() -> bool:
            try:
                with mesh.connect(client, ("10.78.0.60", 9000)) as sock:
                    accepted, peer = listener.accept()
                    with accepted:
                        accepted.sendall(b"220 ready\r\n")  # the server speaks first
                        return sock.recv(64) == b"220 ready\r\n" and peer[0] != client.ipv4
            except OSError:
                return False

        listener.settimeout(1.0)
        mesh.wait("a greeting through the waypoint", greets)
