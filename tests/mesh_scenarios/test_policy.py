"""Who may talk to whom: policies on new and on open connections, strict mutual TLS, forged requests."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
from collections.abc import Iterator

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Document, Mesh, namespace
from tests.kit.mesh_peer import HbonePeer, fetch_credential

pytestmark = pytest.mark.namespaces


@contextlib.contextmanager
def policy(mesh: Mesh, name: str, spec: Document, *, in_namespace: str = "default") -> Iterator[None]:
    mesh.apply_policy(name, spec, namespace=in_namespace)
    try:
        yield
    finally:
        mesh.withdraw_policy(name)


def only(workload: Workload) -> Document:
    return {"matchLabels": {"app": workload.name}}


def from_workload(workload: Workload) -> Document:
    return {"from": [{"source": {"principals": [f"cluster.local/ns/default/sa/{workload.name}"]}}]}


def on_port(port: int) -> Document:
    return {"to": [{"operation": {"ports": [str(port)]}}]}


def reaches(mesh: Mesh, client: Workload, server: Workload, port: int = 8080) -> bool:
    """True when a byte goes there and back."""
    with mesh.listen(server, port) as listener:
        try:
            near = mesh.connect(client, (server.ipv4, port))
        except ConnectionError:  # a reset may come before the connect is seen to succeed
            return False
        with near:
            return _is_answered(listener, near)


def _is_answered(listener: socket.socket, near: socket.socket) -> bool:
    listener.settimeout(5)
    try:
        near.sendall(b"q")
        if near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        far = accept_or_closed(listener, near)
    except ConnectionError:
        return False
    if far is None:
        return False
    with far:
        assert far.recv(1) == b"q"
        far.sendall(b"a")
        return near.recv(1) == b"a"


def accept_or_closed(listener: socket.socket, near: socket.socket) -> socket.socket | None:
    """What arrives, or None when the client's connection ends instead."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(near, select.POLLIN | select.POLLHUP)
    ready = {fd for fd, _ in poll.poll(10_000)}
    assert ready, "neither accepted nor refused"
    return listener.accept()[0] if listener.fileno() in ready else None


class TestDeny:
    def test_a_denied_connection_fails_with_401_and_both_logs_say_so(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with policy(
            mesh, "deny-8080", {"selector": only(server), "action": "DENY", "rules": [on_port(8080)]}
        ):
            assert not reaches(mesh, client, server, 8080)
            assert reaches(mesh, client, server, 8081)
        outbound = mesh.wait_access_log("alpha", dst_hbone_addr=f"{server.ipv4}:8080")
        assert "401" in outbound["error"]
        inbound = mesh.wait_access_log("beta", dst_hbone_addr=f"{server.ipv4}:8080")
        assert "default/deny-8080" in inbound["error"]

    def test_a_new_deny_policy_cuts_an_open_connection_and_no_other(self, mesh: Mesh) -> None:
        client, friend = mesh.add("client", "alpha"), mesh.add("friend", "alpha")
        server = mesh.add("server", "beta")
        with (
            mesh.listen(server, 8080) as listener,
            mesh.connect(client, (server.ipv4, 8080)) as near,
            mesh.connect(friend, (server.ipv4, 8080)) as other,
        ):
            ends = {far.getpeername()[0]: far for far in (listener.accept()[0], listener.accept()[0])}
            near.sendall(b"x")
            assert ends[client.ipv4].recv(1) == b"x"
            rule = {"action": "DENY", "rules": [from_workload(client)]}
            # A namespace policy: the ones that name a workload reach connections made after them.
            with policy(mesh, "deny-client", rule):
                with contextlib.suppress(ConnectionResetError):
                    assert near.recv(1) == b""
                other.sendall(b"y")
                assert ends[friend.ipv4].recv(1) == b"y"
            for far in ends.values():
                far.close()
        record = mesh.wait_access_log("beta", src_workload=client.name, dst_workload=server.name)
        assert "policy" in record["error"]
        assert "deny-client" in str(record)
        assert reaches(mesh, client, server)

    def test_a_plaintext_connection_is_cut_as_well(self, mesh: Mesh) -> None:
        client = mesh.add("plain", "alpha", is_attached=False)
        server = mesh.add("server", "beta")
        with mesh.listen(server, 8080) as listener, mesh.connect(client, (server.ipv4, 8080)) as near:
            far, _ = listener.accept()
            with (
                far,
                policy(mesh, "deny-port", {"action": "DENY", "rules": [on_port(8080)]}),
                contextlib.suppress(ConnectionResetError),
            ):
                assert near.recv(1) == b""


class TestAllow:
    def test_only_whom_an_allow_policy_names_gets_through(self, mesh: Mesh) -> None:
        client, stranger = mesh.add("client", "alpha"), mesh.add("stranger", "alpha")
        plain = mesh.add("plain", "alpha", is_attached=False)
        server = mesh.add("server", "beta")
        with policy(mesh, "allow-client", {"selector": only(server), "rules": [from_workload(client)]}):
            assert reaches(mesh, client, server)
            assert not reaches(mesh, stranger, server)
            assert not reaches(mesh, plain, server)
        record = mesh.wait_access_log("beta", src_workload=stranger.name)
        assert "allow" in record["error"]
        assert reaches(mesh, stranger, server)

    def test_a_policy_without_rules_allows_nobody(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with policy(mesh, "allow-nothing", {"selector": only(server)}):
            assert not reaches(mesh, client, server)

    def test_an_outsider_cannot_pretend_by_address(self, mesh: Mesh) -> None:
        """An identity comes from a certificate only: plaintext from an allowed address has none."""
        client = mesh.add("client", "alpha")
        server = mesh.add("server", "beta")
        with policy(mesh, "allow-identity", {"selector": only(server), "rules": [from_workload(client)]}):
            assert reaches(mesh, client, server)
            with mesh.lab.entered(client):
                raw = socket.socket()
            with raw:
                raw.setsockopt(socket.SOL_SOCKET, 36, 0x539)  # past the client's own capture
                raw.settimeout(10)
                raw.connect((server.ipv4, 8080))
                with contextlib.suppress(ConnectionResetError):
                    assert raw.recv(1) == b""


class TestStrict:
    def test_plaintext_is_refused_and_the_mesh_goes_on(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        plain = mesh.add("plain", "alpha", is_attached=False)
        assert reaches(mesh, plain, server)
        mesh.apply(
            "strict",
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": {"name": "strict", "namespace": "default"},
                "spec": {"selector": {"matchLabels": {"app": server.name}}, "mtls": {"mode": "STRICT"}},
            },
        )
        try:
            mesh.wait("plaintext to be refused", lambda: not reaches(mesh, plain, server))
            assert reaches(mesh, client, server)
        finally:
            mesh.withdraw("strict")
        mesh.wait("plaintext to be taken again", lambda: reaches(mesh, plain, server))


class TestForgedRequests:
    """A peer with a genuine certificate that asks for what it should not."""

    def test_a_genuine_request_is_served(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        credential = fetch_credential(mesh, client)
        with (
            mesh.listen(server, 8080) as listener,
            HbonePeer(mesh, client, (server.ipv4, 15008), credential) as peer,
        ):
            assert peer.connect(f"{server.ipv4}:8080").status == 200
            far, source = listener.accept()
            with far:
                assert source[0] == client.ipv4
                peer.send(b"question", end_stream=True)
                assert far.recv(100) == b"question"
                assert far.recv(100) == b""
                far.sendall(b"answer")
                far.close()
                assert peer.receive(6) == b"answer"

    def test_an_authority_that_is_not_the_address_dialled(self, mesh: Mesh) -> None:
        client, server, other = (
            mesh.add("client", "alpha"),
            mesh.add("server", "beta"),
            mesh.add("other", "beta"),
        )
        with HbonePeer(mesh, client, (server.ipv4, 15008), fetch_credential(mesh, client)) as peer:
            assert peer.connect(f"{other.ipv4}:8080").status == 400
        record = mesh.wait_access_log("beta", dst_addr=f"{server.ipv4}:15008")
        assert "ip mismatch" in record["error"]

    @pytest.mark.parametrize("authority", ["", "nonsense", "10.77.2.10", "10.77.2.10:0", "[::1:80", "a:b:c"])
    def test_an_authority_that_is_none(self, mesh: Mesh, authority: str) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with HbonePeer(mesh, client, (server.ipv4, 15008), fetch_credential(mesh, client)) as peer:
            answer = peer.connect(authority)
            assert answer.status in {400, 503, None}
            assert answer.status != 200
        assert reaches(mesh, client, server)

    @pytest.mark.parametrize("port", [15001, 15006, 15008])
    def test_the_proxys_own_ports(self, mesh: Mesh, port: int) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with HbonePeer(mesh, client, (server.ipv4, 15008), fetch_credential(mesh, client)) as peer:
            assert peer.connect(f"{server.ipv4}:{port}").status == 503

    def test_another_method(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        with HbonePeer(mesh, client, (server.ipv4, 15008), fetch_credential(mesh, client)) as peer:
            headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")]
            answer = peer.request(headers, end_stream=True)
            assert answer.status == 400

    def test_no_certificate(self, mesh: Mesh) -> None:
        client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        refused = pytest.raises((ssl.SSLError, ConnectionError))
        with refused, HbonePeer(mesh, client, (server.ipv4, 15008), None) as peer:
            peer.connect(f"{server.ipv4}:8080")

    def test_rubbish_on_15008(self, mesh: Mesh) -> None:
        plain, server = mesh.add("plain", "alpha", is_attached=False), mesh.add("server", "beta")
        with mesh.connect(plain, (server.ipv4, 15008)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(100):
                    pass
        assert reaches(mesh, mesh.add("client", "alpha"), server)

    def test_a_certificate_for_a_workload_of_another_node_is_not_given(self, mesh: Mesh) -> None:
        server = mesh.add("server", "beta")
        alpha = mesh.nodes["alpha"]
        with pytest.raises(BaseException, match=r"PERMISSION_DENIED|UNAUTHENTICATED|not run"):
            fetch_with_token_of(mesh, server, alpha.folder.name)


def fetch_with_token_of(mesh: Mesh, workload: Workload, node: str) -> None:
    own = mesh.nodes[workload.node.name].folder / "token"
    kept = own.read_text()
    own.write_text((mesh.nodes[node].folder / "token").read_text())
    try:
        fetch_credential(mesh, workload)
    finally:
        own.write_text(kept)


class TestMaliciousCalls:
    """ztunnel-facts 14.2: a captured application calls the proxy's own ports."""

    @pytest.mark.parametrize("port", [15001, 15006, 15008])
    @pytest.mark.parametrize("where", ["own address", "localhost"])
    def test_the_proxys_ports_take_the_connection_and_serve_nothing(
        self, mesh: Mesh, port: int, where: str
    ) -> None:
        client = mesh.add("client", "alpha")
        target = client.ipv4 if where == "own address" else "127.0.0.1"
        with (
            mesh.connect(client, (target, port)) as sock,
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in sock.recv(100)
        server = mesh.add("server", "beta")
        assert reaches(mesh, client, server), "the proxy goes on"

    @pytest.mark.parametrize("port", [15000, 15020, 15021, 15080])
    @pytest.mark.parametrize("where", ["own address", "localhost"])
    def test_other_ports_are_refused(self, mesh: Mesh, port: int, where: str) -> None:
        client = mesh.add("client", "alpha")
        target = client.ipv4 if where == "own address" else "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            mesh.connect(client, (target, port))

    def test_of_the_ztunnels_address_only_metrics_and_readiness_answer(self, mesh: Mesh) -> None:
        client = mesh.add("client", "alpha")
        node = mesh.nodes["alpha"].node
        assert mesh.get(client, (node.gateway_ipv4, 15021), "/healthz/ready")[0] == 200
        assert mesh.get(client, (node.gateway_ipv4, 15020), "/metrics")[0] == 200
        for port in (15000, 15001, 15006, 15008):
            with (
                mesh.connect(client, (node.gateway_ipv4, port)) as sock,
                contextlib.suppress(ConnectionResetError),
            ):
                assert sock.recv(1) == b""

    def test_an_uncaptured_client_finds_only_metrics_and_readiness(self, mesh: Mesh) -> None:
        plain = mesh.add("plain", "alpha", is_attached=False)
        gateway = mesh.nodes["alpha"].node.gateway_ipv4
        assert mesh.get(plain, (gateway, 15021), "/healthz/ready")[0] == 200
        assert mesh.get(plain, (gateway, 15020), "/metrics")[0] == 200
        for port in (15000, 15001, 15006, 15080):
            with pytest.raises(ConnectionRefusedError):
                mesh.connect(plain, (gateway, port))

    def test_an_uncaptured_client_of_a_captured_workload_gets_nothing_from_the_proxys_ports(
        self, mesh: Mesh
    ) -> None:
        plain, server = mesh.add("plain", "alpha", is_attached=False), mesh.add("server", "beta")
        for port in (15001, 15006):
            with (
                mesh.connect(plain, (server.ipv4, port)) as sock,
                contextlib.suppress(ConnectionResetError),
            ):
                assert sock.recv(1) == b""
        assert reaches(mesh, plain, server)


def test_another_namespaces_policy_does_not_count(mesh: Mesh) -> None:
    mesh.apply("elsewhere", namespace("elsewhere", is_ambient=False))
    client, server = mesh.add("client", "alpha"), mesh.add("server", "beta")
    with policy(mesh, "deny-all-there", {"action": "DENY", "rules": [{}]}, in_namespace="elsewhere"):
        assert reaches(mesh, client, server)


class TestConnectionLimits:
    def test_a_limit_on_open_connections_holds_by_caller_and_is_given_back(self, mesh: Mesh) -> None:
        client, server = mesh.add("limitedcaller", "alpha"), mesh.add("limited", "beta")
        spec = {"selector": only(server), "connections": [{"name": "one", "open": 1, "by": ["caller"]}]}
        metadata = {"name": "calm", "namespace": "default"}
        document = {"apiVersion": "mycelia.io/v1alpha1", "kind": "RateLimitPolicy", "metadata": metadata}

        def held(dump: Document) -> bool:
            return "RateLimitPolicy/default/calm" in json.dumps(dump["workers"])

        mesh.apply("calm", {**document, "spec": spec})
        mesh.wait_everywhere("the limit", held)
        with mesh.listen(server, 8080) as listener, mesh.connect(client, (server.ipv4, 8080)) as near:
            listener.settimeout(5)
            near.sendall(b"q")
            with listener.accept()[0] as far:
                assert far.recv(1) == b"q"
                with (
                    mesh.connect(client, (server.ipv4, 8080)) as second,
                    contextlib.suppress(ConnectionError),
                ):
                    second.sendall(b"q")
                    assert second.recv(1) == b""
        mesh.wait("the place given back", lambda: reaches(mesh, client, server))
        mesh.withdraw("calm")
        mesh.wait_everywhere("no limit", lambda dump: not held(dump))
