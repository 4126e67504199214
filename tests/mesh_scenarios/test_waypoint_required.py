"""A waypoint that the node agent runs, and the ways around it closed: real processes everywhere."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh, namespace, service_document
from tests.mesh_scenarios.test_policy import reaches

pytestmark = pytest.mark.namespaces

REQUIRED = {"mycelia.io/waypoint-required": "true"}
USE = {"istio.io/use-waypoint": "gate"}
VIP = "10.78.0.60"
PORT, TARGET = 80, 8080
ARRIVES_S = 3.0


@pytest.fixture(name="mesh", scope="module")
def _mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(name="gate", scope="module")
def _gate(mesh: Mesh) -> Workload:
    return mesh.order_waypoint("gate", "beta")


@pytest.fixture(name="client", scope="module")
def _client(mesh: Mesh) -> Workload:
    return mesh.add("client", "alpha")


@pytest.fixture(name="server", scope="module")
def _server(mesh: Mesh) -> Workload:
    return mesh.add("server", "beta", labels={"shop": "guarded"})


@pytest.fixture(name="guarded", scope="module")
def _guarded(mesh: Mesh, gate: Workload, server: Workload) -> str:
    """The service's address; its port is plain TCP, and it requires the waypoint."""
    assert gate.name == "gate"
    document = service_document("guarded", [VIP], {PORT: TARGET}, {"shop": "guarded"})
    enrol(mesh, document, {**USE, **REQUIRED})
    mesh.wait_everywhere(
        "the closed ways", lambda dump: "waypoint-required-via-gate-" in str(dump["policies"])
    )
    assert server.ipv4
    return VIP


def enrol(mesh: Mesh, document: object, labels: dict[str, str]) -> None:
    assert isinstance(document, dict)
    document["metadata"]["labels"] = labels
    mesh.apply("guarded", document)


def goes_through(mesh: Mesh, client: Workload, server: Workload, address: str) -> bool:
    """A byte to the service's address arrives at the server, and another comes back."""
    with mesh.listen(server, TARGET) as listener, mesh.connect(client, (address, PORT)) as near:
        near.sendall(b"q")
        if not select.select([listener], [], [], ARRIVES_S)[0]:
            return False
        with listener.accept()[0] as far:
            assert far.recv(1) == b"q"
            far.sendall(b"a")
            return near.recv(1) == b"a"


class TestRequired:
    def test_what_comes_through_the_waypoint_arrives(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        assert goes_through(mesh, client, server, guarded)
        record = mesh.wait_access_log("beta", dst_workload=server.name)
        assert record["src.identity"].endswith("/sa/gate")

    def test_by_pod_ip_it_is_refused_and_the_reason_names_the_policy(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        assert guarded
        assert not reaches(mesh, client, server, TARGET)
        record = mesh.wait_access_log(
            "beta", dst_hbone_addr=f"{server.ipv4}:{TARGET}", src_workload=client.name
        )
        assert "explicitly denied by: default/waypoint-required-via-gate-" in record["error"]
        assert reaches(mesh, client, server, TARGET + 1)  # a port that the service does not target

    def test_a_client_that_is_not_captured_is_refused(
        self, mesh: Mesh, server: Workload, guarded: str
    ) -> None:
        assert guarded
        outsider = mesh.add("outsider", "alpha", is_attached=False)
        assert not reaches(mesh, outsider, server, TARGET)
        assert reaches(mesh, outsider, server, TARGET + 1)

    def test_a_client_with_a_stale_route_is_refused(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        """As if the client's node had not heard of the waypoint: it goes straight to the endpoint."""
        assert guarded
        document = service_document("stale", ["10.78.0.61"], {PORT: TARGET}, {"shop": "guarded"})
        mesh.apply("stale", document)
        mesh.wait_everywhere("the other way", lambda dump: "stale.default" in str(dump["services"]))
        with mesh.listen(server, TARGET), mesh.connect(client, ("10.78.0.61", PORT)) as near:
            near.sendall(b"q")
            assert is_closed(near)
        mesh.withdraw("stale")


class TestSupervision:
    def test_status_says_who_runs_it_and_who_may_pass(self, mesh: Mesh, guarded: str) -> None:
        assert guarded
        (replica,) = mesh.await_waypoint("gate", ready=1)["workloads"]
        assert (replica["node"], replica["said"], replica["metrics_port"]) == ("beta", "ready", 15020)
        assert replica["pid"] > 0
        assert mesh.waypoint_status("gate")["services"] == ["default/guarded.default.svc.cluster.local"]

    def test_it_outlives_the_agent_and_is_taken_over(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        pid = mesh.await_waypoint("gate", ready=1)["workloads"][0]["pid"]
        agent = mesh.nodes["beta"].agent
        assert agent is not None
        agent.kill()
        agent.wait()
        assert goes_through(mesh, client, server, guarded)
        mesh.start_agent("beta")
        assert "waypoint_taken_over" in mesh.wait("the word", lambda: log_of(mesh, "waypoint_taken_over"))
        assert mesh.await_waypoint("gate", ready=1)["workloads"][0]["pid"] == pid

    def test_one_that_dies_shows_and_comes_back(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        pid = mesh.await_waypoint("gate", ready=1)["workloads"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        mesh.wait(
            "another process", lambda: mesh.waypoint_status("gate")["workloads"][0]["pid"] not in (0, pid)
        )
        mesh.await_waypoint("gate", ready=1)
        # The client's node hears of it a moment later.
        mesh.wait("a way through", lambda: goes_through(mesh, client, server, guarded))

    def test_without_its_gateway_nothing_passes_and_nothing_is_left(
        self, mesh: Mesh, client: Workload, server: Workload, guarded: str
    ) -> None:
        """Last: the waypoint does not come back."""
        assert guarded
        pid = mesh.await_waypoint("gate", ready=1)["workloads"][0]["pid"]
        mesh.withdraw("gate")
        mesh.wait("its end", lambda: not Path(f"/proc/{pid}").exists())
        mesh.wait(
            "an empty folder", lambda: not list((mesh.nodes["beta"].folder / "agent/waypoints").iterdir())
        )
        mesh.wait_everywhere(
            "closed", lambda dump: "waypoint-required-but-none-is-bound-" in str(dump["policies"])
        )
        assert not reaches(mesh, client, server, TARGET)
        enrol(mesh, service_document("guarded", [VIP], {PORT: TARGET}, {"shop": "guarded"}), {})
        mesh.wait_everywhere("open", lambda dump: "waypoint-required" not in str(dump["policies"]))
        assert reaches(mesh, client, server, TARGET)


def test_a_namespace_that_requires_it_is_closed_but_for_its_waypoint(mesh: Mesh) -> None:
    labels = {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "door", **REQUIRED}
    mesh.apply("room", {**namespace("room", is_ambient=True), "metadata": {"name": "room", "labels": labels}})
    inside = mesh.add("inside", "alpha", namespace="room")
    client = mesh.add("visitor", "beta")
    mesh.wait_everywhere("closed", lambda dump: "but-none-is-bound-" in str(dump["policies"]))
    assert not reaches(mesh, client, inside, 9000)
    mesh.order_waypoint("door", "beta", namespace="room")  # for workloads too
    mesh.wait_everywhere("a way", lambda dump: "waypoint-required-via-door-" in str(dump["policies"]))
    assert reaches(mesh, client, inside, 9000)
    record = mesh.wait_access_log("alpha", dst_workload=inside.name, dst_hbone_addr=f"{inside.ipv4}:9000")
    assert record["dst.workload"] == inside.name


def log_of(mesh: Mesh, event: str) -> str:
    text = (mesh.nodes["beta"].folder / "agent.log").read_text()
    return next((line for line in text.splitlines() if event in line), "")


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True
