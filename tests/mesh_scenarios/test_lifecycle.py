"""What happens when parts come, go, restart or die while traffic flows. Each test has a mesh of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh, namespace

pytestmark = pytest.mark.namespaces


@contextlib.contextmanager
def echoing(mesh: Mesh, server: Workload, port: int = 8080) -> Iterator[None]:
    """A server that sends back what it gets."""
    listener = mesh.listen(server, port)
    listener.settimeout(None)
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True)
                threads.append(thread)
                thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for thread in threads:
            thread.join(10)


def echoes(sock: socket.socket) -> bool:
    """True when a byte comes back; False when the connection ends instead."""
    try:
        sock.sendall(b"x")
        return sock.recv(1) == b"x"
    except ConnectionError:
        return False


def can_talk(mesh: Mesh, client: Workload, server: Workload) -> bool:
    try:
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            return echoes(sock)
    except (ConnectionError, TimeoutError):
        return False


@pytest.fixture
def pair(own_mesh: Mesh) -> Iterator[tuple[Mesh, Workload, Workload]]:
    """A mesh, a client on alpha and an echoing server on beta."""
    client, server = own_mesh.add("client", "alpha"), own_mesh.add("server", "beta")
    with echoing(own_mesh, server):
        yield own_mesh, client, server


Pair = tuple[Mesh, Workload, Workload]


def stop(mesh: Mesh, node: str, what: str, how: signal.Signals = signal.SIGKILL) -> None:
    """Ends a node's ztunnel or agent and waits for it."""
    processes = mesh.nodes[node]
    process = processes.ztunnel if what == "ztunnel" else processes.agent
    assert process is not None
    process.send_signal(how)
    process.wait(30)
    if what == "ztunnel":
        processes.ztunnel = None
    else:
        processes.agent = None


class TestZtunnel:
    def test_draining_keeps_open_connections_and_takes_no_new_ones(self, pair: Pair) -> None:
        mesh, client, server = pair
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            assert echoes(sock)
            ztunnel = mesh.nodes["alpha"].ztunnel
            assert ztunnel is not None
            mesh.nodes["alpha"].ztunnel = None
            ztunnel.terminate()
            mesh.wait("the listeners to close", lambda: refused(mesh, client, server))
            assert echoes(sock), "open connections go on until the deadline"
        ztunnel.wait(30)
        assert ztunnel.returncode == 0

    def test_after_the_deadline_open_connections_are_cut(self, pair: Pair) -> None:
        mesh, client, server = pair
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            assert echoes(sock)
            stop(mesh, "beta", "ztunnel", signal.SIGTERM)
            assert not echoes(sock)
        record = mesh.wait_access_log("beta", dst_workload=server.name, direction="inbound")
        assert "drain" in record["error"]

    def test_an_upgrade_loses_no_connection_attempt(self, pair: Pair) -> None:
        """Old and new listen together; the old one stops only when the new one is ready."""
        mesh, client, server = pair
        with mesh.connect(client, (server.ipv4, 8080)) as old_connection:
            assert echoes(old_connection)
            old = mesh.nodes["alpha"].ztunnel
            assert old is not None
            ports = {"MYCELIA_ADMIN_PORT": "25000", "MYCELIA_STATS_PORT": "25020"}
            mesh.start_ztunnel("alpha", MYCELIA_READINESS_PORT="25021", **ports)
            mesh.wait(
                "the new ztunnel",
                lambda: (
                    mesh.get("alpha", ("127.0.0.1", 25021), "/healthz/ready")[0] == 200
                    if listens(mesh, 25021)
                    else False
                ),
            )
            assert can_talk(mesh, client, server)
            old.terminate()
            for _ in range(20):
                assert can_talk(mesh, client, server)
            assert echoes(old_connection)
        old.wait(30)
        assert can_talk(mesh, client, server)

    def test_after_a_crash_traffic_fails_closed_until_it_is_back(self, pair: Pair) -> None:
        mesh, client, server = pair
        assert can_talk(mesh, client, server)
        with mesh.lab.capture("alpha") as wire:
            stop(mesh, "alpha", "ztunnel")
            assert refused(mesh, client, server)
            assert 8080 not in wire.destination_ports()
        mesh.start_ztunnel("alpha")
        mesh.wait("traffic to flow again", lambda: can_talk(mesh, client, server))

    def test_a_dead_worker_is_replaced(self, pair: Pair) -> None:
        mesh, client, server = pair
        workers = workers_of(mesh, "alpha")
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        mesh.wait("traffic to flow again", lambda: can_talk(mesh, client, server))

    def test_starts_from_what_it_knew_without_the_control_plane(self, pair: Pair) -> None:
        """It serves; without a certificate authority it has no identity, so nothing leaves it in
        plaintext.
        """
        mesh, client, server = pair
        assert can_talk(mesh, client, server)
        mesh.wait("the state to be saved", lambda: has_saved(mesh, "alpha", server.name))
        kill_control_plane(mesh)
        stop(mesh, "alpha", "ztunnel")
        mesh.start_ztunnel("alpha")
        mesh.await_ready("alpha")
        dump = mesh.config_dump("alpha")
        assert dump is not None
        assert {client.name, server.name} <= {workload["name"] for workload in dump["workloads"]}
        with mesh.lab.capture("alpha") as wire:
            assert refused(mesh, client, server)
            assert 8080 not in wire.destination_ports()
        mesh.start_control_plane()
        mesh.wait("traffic to flow again", lambda: can_talk(mesh, client, server))


def has_saved(mesh: Mesh, node: str, name: str) -> bool:
    folder = mesh.nodes[node].folder / "ztunnel-state"
    return any(name.encode() in path.read_bytes() for path in folder.glob("[!.]*") if path.is_file())


def kill_control_plane(mesh: Mesh) -> None:
    assert mesh.control_plane is not None
    mesh.control_plane.kill()
    mesh.control_plane.wait()
    mesh.control_plane = None


def refused(mesh: Mesh, client: Workload, server: Workload) -> bool:
    try:
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            return not echoes(sock)
    except ConnectionRefusedError:
        return True


def listens(mesh: Mesh, port: int) -> bool:
    with mesh.lab.entered(mesh.nodes["alpha"].node), socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def workers_of(mesh: Mesh, node: str) -> list[int]:
    ztunnel = mesh.nodes[node].ztunnel
    assert ztunnel is not None
    # All threads: trio starts processes from one of its own.
    threads = Path(f"/proc/{ztunnel.pid}/task").glob("*/children")
    return [int(pid) for children in threads for pid in children.read_text().split()]


class TestAgent:
    def test_traffic_does_not_need_it(self, pair: Pair) -> None:
        mesh, client, server = pair
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            assert echoes(sock)
            stop(mesh, "alpha", "agent")
            stop(mesh, "beta", "agent")
            assert echoes(sock)
            assert can_talk(mesh, client, server)
            for name in mesh.nodes:
                mesh.start_agent(name)
            assert echoes(sock), "a restart disturbs nothing"
            mesh.wait("readiness", lambda: all(mesh.is_ready(name) for name in mesh.nodes))
            assert echoes(sock)
        third = mesh.add("third", "alpha")
        assert can_talk(mesh, third, server)


class TestControlPlane:
    def test_traffic_does_not_need_it_and_changes_arrive_after_its_return(self, pair: Pair) -> None:
        mesh, client, server = pair
        with mesh.connect(client, (server.ipv4, 8080)) as sock:
            assert echoes(sock)
            kill_control_plane(mesh)
            assert echoes(sock)
            assert can_talk(mesh, client, server)
            mesh.start_control_plane()
            assert echoes(sock)
            third = mesh.add("third", "alpha")
            assert can_talk(mesh, third, server)
            assert can_talk(mesh, client, server)
            assert echoes(sock), "its return cuts nothing"


class TestWorkload:
    def test_deleted_under_load_breaks_its_own_connections_only(self, pair: Pair) -> None:
        mesh, client, server = pair
        doomed, other = mesh.add("doomed", "beta"), mesh.add("other", "alpha")
        with mesh.listen(doomed, 9000) as listener:
            doomed_sock = mesh.connect(client, (doomed.ipv4, 9000))
            far, _ = listener.accept()
        with doomed_sock, far, mesh.connect(other, (server.ipv4, 8080)) as bystander:
            mesh.remove(doomed)
            doomed_sock.settimeout(30)
            with contextlib.suppress(ConnectionError):
                while doomed_sock.recv(1):
                    pass
            assert echoes(bystander)
        assert can_talk(mesh, client, server)
        assert mesh.is_ready("beta")
        with mesh.agent("beta") as agent:
            mesh.wait("the agent to forget it", lambda: doomed.name not in str(agent.list()))

    def test_enrolled_and_released_while_it_runs(self, own_mesh: Mesh) -> None:
        mesh = own_mesh
        mesh.apply("later", namespace("later", is_ambient=False))
        client = mesh.add("client", "alpha")
        server = mesh.add("server", "beta", namespace="later", is_attached=False)
        with mesh.agent("beta") as agent, echoing(mesh, server):
            uid = agent.attach("later", server.name, server.name, ("path", str(server.path)))
            assert wire_ports(mesh, client, server) == {8080}

            mesh.apply("later", namespace("later", is_ambient=True))
            agent.wait(uid, timeout_s=20)
            expect_protocol(mesh, server, "HBONE")
            assert wire_ports(mesh, client, server) == {15008}

            mesh.apply("later", namespace("later", is_ambient=False))
            agent.wait(uid, is_captured=False, timeout_s=20)
            expect_protocol(mesh, server, "TCP")
            assert wire_ports(mesh, client, server) == {8080}
            assert mesh.lab.run(server, ["nft", "list", "ruleset"]).stdout == ""

    def test_release_keeps_traffic_flowing_between_report_and_removal(self, own_mesh: Mesh) -> None:
        mesh = own_mesh
        mesh.apply("later", namespace("later", is_ambient=True))
        client = mesh.add("client", "alpha")
        server = mesh.add("server", "beta", namespace="later")
        with mesh.agent("beta") as agent, echoing(mesh, server):
            assert can_talk(mesh, client, server)
            mesh.apply("later", namespace("later", is_ambient=False))
            expect_protocol(mesh, server, "TCP")
            assert can_talk(mesh, client, server)
            agent.wait(f"later/{server.name}", is_captured=False, timeout_s=20)
            mesh.wait("plaintext to flow", lambda: can_talk(mesh, client, server))


def expect_protocol(mesh: Mesh, workload: Workload, protocol: str) -> None:
    mesh.wait_everywhere(
        f"{workload.name} as {protocol}",
        lambda dump: any(
            (each["name"], each["protocol"]) == (workload.name, protocol) for each in dump["workloads"]
        ),
    )


def wire_ports(mesh: Mesh, client: Workload, server: Workload) -> set[int]:
    """The ports that a fresh exchange opens connections to on the server's cable or has open there."""
    with mesh.lab.capture(server) as wire:
        assert can_talk(mesh, client, server)
        return {
            segment.dst[1] for segment in wire.segments() if segment.payload and segment.dst[0] == server.ipv4
        }
