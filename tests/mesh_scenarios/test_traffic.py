"""Applications' traffic through the mesh: who is reached, what the wire shows, what the ends see.

The scenarios of ztunnel-facts 14.1 that are about carrying bytes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh

pytestmark = pytest.mark.namespaces

FAMILIES = ("ipv4", "ipv6")


def address(workload: Workload, family: str) -> str:
    return workload.ipv4 if family == "ipv4" else workload.ipv6


def spiffe(workload: Workload) -> str:
    return f"spiffe://cluster.local/ns/default/sa/{workload.name}"


@contextlib.contextmanager
def talking(
    mesh: Mesh, client: Workload, server: Workload, *, family: str = "ipv4", port: int = 8080
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection from client to server: (client's socket, server's socket)."""
    with mesh.listen(server, port, family=family) as listener:
        near = mesh.connect(client, (address(server, family), port))
        with near:
            far, _ = listener.accept()
            far.settimeout(10)
            with far:
                yield near, far


def exchange(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"a readable question")
    assert far.recv(100) == b"a readable question"
    far.sendall(b"a readable answer")
    assert near.recv(100) == b"a readable answer"


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while chunk := sock.recv(1 << 20):
        received += chunk
    return bytes(received)


@pytest.mark.parametrize("family", FAMILIES)
class TestBothCaptured:
    def test_across_nodes_the_wire_holds_only_tls_to_15008(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with mesh.lab.capture("alpha") as wire:
            with talking(mesh, client, server, family=family) as (near, far):
                exchange(near, far)
            assert wire.destination_ports() == {15008}
            assert not wire.contains(b"readable")
        for node, direction in (("alpha", "outbound"), ("beta", "inbound")):
            record = mesh.wait_access_log(node, dst_workload=server.name, direction=direction)
            assert record["src.identity"] == spiffe(client)
            assert record["dst.identity"] == spiffe(server)
            assert "error" not in record

    def test_on_one_node_the_tunnel_is_used_as_well(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "alpha")
        with mesh.lab.capture(server) as wire:
            with talking(mesh, client, server, family=family) as (near, far):
                exchange(near, far)
            assert wire.destination_ports() == {15008}
            assert not wire.contains(b"readable")
        mesh.wait_access_log("alpha", dst_workload=server.name, direction="inbound")
        mesh.wait_access_log("alpha", dst_workload=server.name, direction="outbound")

    def test_the_server_sees_the_clients_address(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server, family=family) as (near, far):
            assert far.getpeername()[0] == address(client, family)
            assert far.getsockname()[:2] == (address(server, family), 8080)
            assert near.getpeername()[:2] == (address(server, family), 8080)

    def test_a_server_that_speaks_first(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server, family=family) as (near, far):
            far.sendall(b"220 mail ready\r\n")
            assert near.recv(100) == b"220 mail ready\r\n"
            near.sendall(b"EHLO client\r\n")
            assert far.recv(100) == b"EHLO client\r\n"

    def test_the_client_half_closes_and_still_reads(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server, family=family) as (near, far):
            near.sendall(b"everything")
            near.shutdown(socket.SHUT_WR)
            assert read_all(far) == b"everything"
            far.sendall(b"answer after the end")
            far.close()
            assert read_all(near) == b"answer after the end"

    def test_the_server_half_closes_and_still_reads(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server, family=family) as (near, far):
            far.sendall(b"banner")
            far.shutdown(socket.SHUT_WR)
            assert read_all(near) == b"banner"
            near.sendall(b"question after the end")
            near.close()
            assert read_all(far) == b"question after the end"


class TestStreams:
    def test_much_in_both_directions_at_once_arrives_whole(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        up = bytes(range(256)) * 40_000  # 10 MB
        down = up[::-1]
        with talking(mesh, client, server) as (near, far):
            received: dict[str, bytes] = {}

            def send(sock: socket.socket, data: bytes) -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            def receive(name: str, sock: socket.socket) -> None:
                received[name] = read_all(sock)

            threads = [
                threading.Thread(target=send, args=(near, up)),
                threading.Thread(target=send, args=(far, down)),
                threading.Thread(target=receive, args=("near", near)),
                threading.Thread(target=receive, args=("far", far)),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert received["far"] == up
            assert received["near"] == down

    def test_a_server_that_resets_resets_the_client(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server) as (near, far):
            near.sendall(b"x")
            far.recv(1)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            with pytest.raises(ConnectionResetError):
                near.recv(1)

    def test_a_client_that_resets_resets_the_server(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server) as (near, far):
            near.sendall(b"x")
            far.recv(1)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            with pytest.raises(ConnectionResetError):
                far.recv(1)

    def test_a_slow_reader_slows_the_sender_and_nobody_else(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with talking(mesh, client, server) as (near, far):
            near.settimeout(1.0)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 1 << 30:
                    sent += near.send(bytes(1 << 16))
            assert sent < 200 << 20, "nothing buffers without a bound"
            with talking(mesh, client, server, port=8081) as (second, second_far):
                exchange(second, second_far)
            near.close()
            assert len(read_all(far)) == sent

    def test_many_connections_share_few_tunnels(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with mesh.lab.capture("alpha") as wire, mesh.listen(server, 8080) as listener:
            pairs = []
            for _ in range(30):
                near = mesh.connect(client, (server.ipv4, 8080))
                far, _ = listener.accept()
                pairs.append((near, far))
            for near, far in pairs:
                exchange(near, far)
            attempts = {segment.src for segment in wire.segments() if segment.is_connection_attempt}
            assert len(attempts) <= 2
            for near, far in pairs:
                near.close()
                far.close()

    def test_a_port_where_nobody_listens_is_a_failure_for_the_client(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with mesh.connect(client, (server.ipv4, 9)) as near, contextlib.suppress(ConnectionResetError):
            assert near.recv(1) == b""
        record = mesh.wait_access_log("alpha", src_workload=client.name)
        assert "503" in record["error"]
        record = mesh.wait_access_log("beta", dst_workload=server.name)
        assert "refused" in record["error"].lower()

    def test_an_address_where_nobody_is(self, mesh: Mesh) -> None:
        client = mesh.add("client", "alpha")
        with mesh.connect(client, ("10.77.2.250", 80)) as near, contextlib.suppress(ConnectionResetError):
            assert near.recv(1) == b""
        assert mesh.wait_access_log("alpha", src_workload=client.name)["error"]


@pytest.mark.parametrize("family", FAMILIES)
class TestOneSideCaptured:
    def test_a_captured_client_reaches_a_plain_server(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("plain", "beta", is_attached=False)
        with mesh.lab.capture("alpha") as wire:
            with talking(mesh, client, server, family=family) as (near, far):
                exchange(near, far)
                assert far.getpeername()[0] == address(client, family)
            assert wire.destination_ports() == {8080}
        record = mesh.wait_access_log("alpha", dst_workload=server.name)
        assert "dst.hbone_addr" not in record

    def test_a_plain_client_reaches_a_captured_server(self, mesh: Mesh, family: str) -> None:
        client, server = mesh.add("plain", "alpha", is_attached=False), mesh.add("server", "beta")
        with talking(mesh, client, server, family=family) as (near, far):
            exchange(near, far)
            assert far.getpeername()[0] == address(client, family)
        record = mesh.wait_access_log("beta", dst_workload=server.name)
        assert record["direction"] == "inbound"
        assert "src.identity" not in record

    def test_a_captured_client_reaches_itself(self, mesh: Mesh, family: str) -> None:
        client = mesh.add("client", "alpha")
        with talking(mesh, client, client, family=family) as (near, far):
            exchange(near, far)
        assert mesh.access_log("alpha", src_workload=client.name) == []


class TestServices:
    @contextlib.contextmanager
    def named(self, mesh: Mesh, *servers: Workload, port: int = 8080) -> Iterator[None]:
        """Each server says its name to whoever connects, in both families."""
        listeners = [
            (server, mesh.listen(server, port, family=family)) for server in servers for family in FAMILIES
        ]

        def serve(name: str, listener: socket.socket) -> None:
            listener.settimeout(None)
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.sendall(name.encode())

        threads = [
            threading.Thread(target=serve, args=(server.name, listener), daemon=True)
            for server, listener in listeners
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for _, listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            for thread in threads:
                thread.join(10)

    def ask(self, mesh: Mesh, client: Workload, target: tuple[str, int]) -> str:
        with mesh.connect(client, target) as sock:
            return read_all(sock).decode()

    def test_connections_to_a_vip_go_to_all_its_workloads(self, mesh: Mesh) -> None:
        client = mesh.add("client", "alpha")
        labels = {"group": "vip-test"}
        first = mesh.add("first", "alpha", labels=labels)
        second = mesh.add("second", "beta", labels=labels)
        hostname = mesh.add_service("vip", ["10.78.0.20", "fd78::20"], {80: 8080}, labels)
        with self.named(mesh, first, second):
            for vip in ("10.78.0.20", "fd78::20"):
                answers = [self.ask(mesh, client, (vip, 80)) for _ in range(50)]
                assert set(answers) == {first.name, second.name}
        record = mesh.wait_access_log("alpha", src_workload=client.name, dst_workload=first.name)
        assert record["dst.service"] == hostname
        metrics = mesh.metrics("alpha")
        assert f'destination_service="{hostname}"' in metrics

    def test_a_port_that_the_service_does_not_have(self, mesh: Mesh) -> None:
        client = mesh.add("client", "alpha")
        labels = {"group": "port-test"}
        mesh.add("only", "beta", labels=labels)
        mesh.add_service("ports", ["10.78.0.21"], {80: 8080}, labels)
        with mesh.connect(client, ("10.78.0.21", 81)) as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        record = mesh.wait_access_log("alpha", dst_addr="10.78.0.21:81")
        assert "no healthy upstream" in record["error"]

    def test_plain_and_captured_workloads_behind_one_vip(self, mesh: Mesh) -> None:
        client = mesh.add("client", "alpha")
        labels = {"group": "mixed-test"}
        captured = mesh.add("captured", "beta", labels=labels)
        plain = mesh.add("plain", "beta", labels=labels, is_attached=False)
        mesh.add_service("mixed", ["10.78.0.22"], {80: 8080}, labels)
        with self.named(mesh, captured, plain):
            answers = {self.ask(mesh, client, ("10.78.0.22", 80)) for _ in range(40)}
        assert answers == {captured.name, plain.name}
