"""What a stranger, or a client of the mesh that has gone wrong, meets at a real waypoint's port 15008
(waypoint-facts 1.1). Whatever it sends, a connection of somebody else through the same worker goes on.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config.control_plane import StateDirectory
from tests.kit.certificates import TestAuthority, issue, shared_root
from tests.kit.mesh_peer import HbonePeer, tls_over
from tests.waypoint.stage import SERVICE, VIP, Stage, answer, ask

pytestmark = pytest.mark.namespaces

PROTOCOL_ERROR = 1
REFUSED_STREAM = 7


@pytest.fixture(scope="module")
def bystander(stage: Stage) -> Iterator[HbonePeer]:
    """Open through all that follows."""
    with stage.peer() as peer:
        assert peer.connect(SERVICE).status == 200
        yield peer


@pytest.fixture(autouse=True)
def unharmed(stage: Stage, bystander: HbonePeer) -> Iterator[None]:
    workers = stage.workers()
    yield
    ask(bystander)
    assert answer(bystander).status == 200
    assert stage.workers() == workers
    assert stage.log("defect") == []


def dial(stage: Stage) -> socket.socket:
    return stage.mesh.connect(stage.client, stage.target)


# --- requests ---


@pytest.mark.parametrize(
    "authority",
    [
        "shop:80",
        "shop.default.svc.cluster.local:80",
        VIP,
        f"{VIP}:0",
        f"{VIP}:65536",
        f"{VIP}:http",
        "[::1:80",
    ],
)
def test_an_authority_that_is_no_address_and_port_is_400(stage: Stage, authority: str) -> None:
    with stage.peer() as peer:
        assert peer.connect(authority).status == 400
        assert peer.connect(SERVICE).status == 200, "the next request on the connection"


def test_what_is_not_served_here_is_404(stage: Stage) -> None:
    own = stage.waypoint.workload
    for authority in (
        "10.99.0.1:80",
        f"{VIP}:81",
        f"{own.ipv4}:15000",
        f"{own.ipv4}:15008",
        f"[{own.ipv6}]:15000",
        f"{stage.app.ipv4}:80",
        "127.0.0.1:15000",
        "[::ffff:127.0.0.1]:15000",
    ):
        with stage.peer() as peer:
            assert peer.connect(authority).status == 404, authority
            assert peer.connect(SERVICE).status == 200
    assert stage.wait_log("tunnel_refused")["answer"] in (400, 404)


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
def test_what_is_no_connect_is_400(stage: Stage, method: bytes) -> None:
    head = [(b":method", method), (b":scheme", b"https"), (b":path", b"/"), (b":authority", SERVICE.encode())]
    with stage.peer() as peer:
        assert peer.request(head, end_stream=True).status == 400
        assert peer.connect(SERVICE).status == 200


def test_extended_connect_is_not_spoken(stage: Stage) -> None:
    head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/")]
    with stage.peer() as peer:
        assert peer.request([*head, (b":authority", SERVICE.encode())]).reset_code == PROTOCOL_ERROR
        assert peer.connect(SERVICE).status == 200


def test_a_connection_carries_100_tunnels_and_refuses_the_next(stage: Stage) -> None:
    with stage.peer() as peer:
        for _ in range(100):
            assert peer.connect(SERVICE).status == 200
        last = peer.stream_id
        peer.disregard_limits()
        assert peer.connect(SERVICE).reset_code == REFUSED_STREAM
        peer.stream_id = last
        ask(peer)
        assert answer(peer).status == 200


# --- TLS ---


def alert_of(stage: Stage, certificate: Path | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
    """A client's side of the handshake is over before the server has seen its certificate."""
    with (
        pytest.raises(ssl.SSLError) as caught,
        tls_over(dial(stage), certificate=certificate, version=version) as sock,
    ):
        raise AssertionError(f"the server says {sock.recv(100)!r}")
    return str(caught.value).upper().replace(" ", "_")


def test_without_a_certificate_nobody_gets_in(stage: Stage) -> None:
    assert "CERTIFICATE_REQUIRED" in alert_of(stage, None)


def test_a_certificate_of_another_root_is_refused(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pem"
    path.write_bytes(b"".join(issue(shared_root(), "spiffe://cluster.local/ns/default/sa/client")))
    assert "UNKNOWN_CA" in alert_of(stage, path)


def test_tls_1_2_is_refused(stage: Stage, tmp_path: Path) -> None:
    assert "PROTOCOL_VERSION" in alert_of(stage, stage.pair(tmp_path), ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["HTTP/1.1", "nothing"])
def test_who_does_not_offer_http2_is_closed_on(stage: Stage, tmp_path: Path, alpn: tuple[str, ...]) -> None:
    with tls_over(dial(stage), certificate=stage.pair(tmp_path), alpn=alpn) as sock:
        assert sock.recv(100) == b""


def test_an_identity_of_another_trust_domain_is_refused(stage: Stage, tmp_path: Path) -> None:
    """Although the mesh's own issuing CA signed it."""
    path = tmp_path / "stranger.pem"
    path.write_bytes(b"".join(foreign_identity(stage, "spiffe://elsewhere.example/ns/default/sa/client")))
    refused = failed_handshakes(stage)
    with tls_over(dial(stage), certificate=path) as sock, contextlib.suppress(ssl.SSLError, ConnectionError):
        assert sock.recv(100) == b""
    stage.mesh.wait("the refusal in the metrics", lambda: failed_handshakes(stage) > refused)


def foreign_identity(stage: Stage, identity: str) -> tuple[bytes, bytes]:
    """Chain and key, signed by the mesh's issuing CA itself, which would not do it for anybody else."""
    pem = (StateDirectory(stage.mesh.state).ca / "issuing.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuing, *above = x509.load_pem_x509_certificates(pem)
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (issuing, *above))
    return issue(TestAuthority(issuing, key, chain), identity)


def failed_handshakes(stage: Stage) -> float:
    text = stage.page(15020, "/metrics")[1]
    name = "mycelia_waypoint_failed_handshakes_total "
    return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)


@pytest.mark.parametrize(
    "data",
    [b"\x00" * 64, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["zeros", "http/1.1", "http/2 in plaintext"],
)
def test_what_is_not_tls_is_cut_off(stage: Stage, data: bytes) -> None:
    with dial(stage) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        while sock.recv(1000):
            pass
