"""Changes while requests run: restarts of applications and of the control plane, new configuration. No
request is lost: each is sent once by an ordinary client that repeats nothing.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import SOCKET_S, Mesh, Waypoint
from tests.kit.shop import PORT, USE_WAYPOINT, peers, serve, service_document

pytestmark = pytest.mark.namespaces

VIP = "10.78.2.1"
CLIENTS = 4


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


@pytest.fixture(name="servers", scope="module")
def _servers(mesh: Mesh, client: Workload, gate: Waypoint) -> list[Workload]:
    servers = [mesh.add(f"server-{number}", "beta", labels={"shop": "yes"}) for number in range(2)]
    for server in servers:
        serve(mesh, server, server.name)
    mesh.apply("shop", service_document("shop", (VIP,), {"shop": "yes"}, labels={USE_WAYPOINT: "gate"}))
    mesh.wait("the waypoint", lambda: peers(mesh, client, VIP) == {gate.workload.ipv4})
    return servers


class Load:
    """Clients that ask one after the other on kept connections until the block ends."""

    def __init__(self, mesh: Mesh, client: Workload) -> None:
        self._mesh = mesh
        self._client = client
        self._is_over = threading.Event()
        self._changed = threading.Condition()
        self.results: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait(50)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(SOCKET_S)

    @property
    def total(self) -> int:
        return sum(self.results.values())

    def wait(self, more: int) -> None:
        """Until so many further requests have been answered."""
        with self._changed:
            wanted = self.total + more
            assert self._changed.wait_for(lambda: self.total >= wanted, timeout=4 * SOCKET_S)

    def _ask(self) -> None:
        connection: Any = None
        while not self._is_over.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(VIP, PORT, timeout=SOCKET_S)
                    with self._mesh.lab.entered(self._client):
                        connection.connect()
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                outcome = str(answer.status)
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection = None
            with self._changed:
                self.results[outcome] += 1
                self._changed.notify_all()
        if connection is not None:
            connection.close()


def route(header: int) -> dict[str, Any]:
    """A route that changes with each push and always leads to the shop."""
    field = {"name": "x-n", "value": str(header)}
    change = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [field]}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "shop"}],
            "rules": [{"filters": [change], "backendRefs": [{"name": "shop", "port": PORT}]}],
        },
    }


def test_new_routes_lose_no_request(mesh: Mesh, client: Workload, servers: list[Workload]) -> None:
    with Load(mesh, client) as load:
        for number in range(20):
            mesh.apply("route", route(number))
            load.wait(25)
        mesh.withdraw("route")
        load.wait(50)
    assert set(load.results) == {"200"}


def test_a_control_plane_that_restarts_loses_no_request(
    mesh: Mesh, client: Workload, servers: list[Workload]
) -> None:
    assert mesh.control_plane is not None
    with Load(mesh, client) as load:
        mesh.lab.stop(mesh.control_plane)
        load.wait(100)
        mesh.start_control_plane()
        load.wait(100)
    assert set(load.results) == {"200"}


def test_an_endpoint_that_is_withdrawn_before_it_ends_loses_no_request(
    mesh: Mesh, client: Workload, servers: list[Workload]
) -> None:
    """What a rolling restart does: the endpoint leaves the address book, then its process ends."""
    extra = mesh.add("server-extra", "beta", labels={"shop": "yes"})
    serve(mesh, extra, extra.name)

    def answered() -> bool:
        return bool((mesh.directory / f"{extra.name}-http.log").exists())

    assert answered()
    with Load(mesh, client) as load:
        load.wait(100)
        mesh.withdraw(extra.name)
        mesh.wait_everywhere(
            "the endpoint's end",
            lambda dump: all(workload["name"] != extra.name for workload in dump["workloads"]),
        )
        load.wait(100)
        mesh.remove(extra)
        load.wait(100)
    assert set(load.results) == {"200"}
