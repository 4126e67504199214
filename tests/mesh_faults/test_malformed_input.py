"""What a stranger on the network, or a mesh client that has gone wrong, sends to a real ztunnel's port 15008.

Each case gets its stated answer, and a connection of somebody else through the same worker notices nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ca.credentials import Credential
from mesh.lab.network import Workload
from tests.kit.certificates import issue, shared_root
from tests.kit.mesh_peer import Answer, HbonePeer, fetch_credential, tls_over
from tests.mesh_faults.traffic import PORT, Scene, echoes, has_ended

pytestmark = pytest.mark.namespaces

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING = 1, 3, 4, 5, 6
GOAWAY, WINDOW_UPDATE, CONTINUATION = 7, 8, 9
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 1, 3, 6, 9, 11
END_HEADERS = 4


@dataclass(frozen=True)
class Stranger:
    """An uncaptured client on alpha with a certificate of the mesh, the server it harasses, and the files of
    certificates that it may present.
    """

    scene: Scene
    plain: Workload
    credential: Credential
    certificate: Path
    foreign_certificate: Path

    def dial(self) -> socket.socket:
        return self.scene.mesh.connect(self.plain, (self.scene.server.ipv4, 15008))

    def tls(
        self,
        *,
        certificate: Path | None,
        alpn: tuple[str, ...] = ("h2",),
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> ssl.SSLSocket:
        return tls_over(self.dial(), certificate=certificate, alpn=alpn, version=version)

    def peer(self) -> HbonePeer:
        target = (self.scene.server.ipv4, 15008)
        return HbonePeer(self.scene.mesh, self.plain, target, self.credential)


@pytest.fixture(scope="module")
def shared_stranger(shared_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    mesh = shared_scene.mesh
    plain = mesh.add("plain", "alpha", is_attached=False)
    credential = fetch_credential(mesh, plain)
    folder = tmp_path_factory.mktemp("certificates")
    own, foreign = folder / "own.pem", folder / "foreign.pem"
    own.write_bytes("".join(credential.chain_pem).encode() + credential.key_pem)
    foreign.write_bytes(b"".join(issue(shared_root(), f"spiffe://cluster.local/ns/default/sa/{plain.name}")))
    return Stranger(shared_scene, plain, credential, own, foreign)


@pytest.fixture(scope="module")
def valid_connection(shared_scene: Scene) -> Iterator[socket.socket]:
    """Open through all that follows."""
    with shared_scene.connect() as sock:
        yield sock


@pytest.fixture
def stranger(shared_stranger: Stranger, valid_connection: socket.socket) -> Iterator[Stranger]:
    """After each case the same worker serves the same open connection, and new ones."""
    scene = shared_stranger.scene
    workers = scene.workers("beta")
    yield shared_stranger
    assert echoes(valid_connection)
    assert scene.can_talk()
    with shared_stranger.peer() as peer:
        assert peer.connect(f"{scene.server.ipv4}:{PORT}").status == 200
    assert scene.workers("beta") == workers
    assert scene.log_events(scene.mesh.nodes["beta"].ztunnel_logs[-1], "defect") == []


# --- not TLS, or not the TLS of the mesh ---


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 64,
        b"\xff" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE,
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    ],
    ids=["zeros", "ones", "http/1.1", "http/2 in plaintext", "a record that is too long"],
)
def test_what_is_not_tls_is_cut_off(stranger: Stranger, data: bytes) -> None:
    with stranger.dial() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        assert has_ended(sock)


def test_a_client_that_hangs_up_in_the_handshake_is_forgotten(stranger: Stranger) -> None:
    for _ in range(20):
        with stranger.dial() as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")


@pytest.mark.parametrize(
    ("options", "alert"),
    [
        ({"version": ssl.TLSVersion.TLSv1_2}, "PROTOCOL_VERSION"),
        ({"certificate": None}, "CERTIFICATE_REQUIRED"),
        ({"certificate": "foreign"}, "UNKNOWN_CA"),
    ],
    ids=["TLS 1.2", "no certificate", "a certificate of another root"],
)
def test_another_kind_of_tls_is_refused_with_an_alert(
    stranger: Stranger, options: Mapping[str, Any], alert: str
) -> None:
    wanted = {"certificate": stranger.certificate, **options}
    if wanted["certificate"] == "foreign":
        wanted["certificate"] = stranger.foreign_certificate
    with pytest.raises(ssl.SSLError) as caught:
        talk_to(stranger, wanted)
    assert alert in str(caught.value).upper().replace(" ", "_")


@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["HTTP/1.1", "nothing"])
def test_who_does_not_offer_http2_is_closed_on(stranger: Stranger, alpn: tuple[str, ...]) -> None:
    with stranger.tls(certificate=stranger.certificate, alpn=alpn) as sock:
        assert sock.recv(100) == b""
    stranger.scene.wait_error("beta", "HTTP/2")


def talk_to(stranger: Stranger, options: Mapping[str, Any]) -> None:
    """The client's side of the handshake is over before the server has seen its certificate."""
    with stranger.tls(**options) as sock:
        raise AssertionError(f"the server says {sock.recv(100)!r}")


# --- not HTTP/2, or broken HTTP/2, from a client of the mesh ---


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


HELLO = PREFACE + frame(SETTINGS)

BROKEN: dict[str, tuple[bytes, int]] = {
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PROTOCOL_ERROR),
    "a frame longer than agreed": (HELLO + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", FRAME_SIZE_ERROR),
    "no SETTINGS first": (PREFACE + frame(PING, bytes(8)), PROTOCOL_ERROR),
    "SETTINGS of five bytes": (PREFACE + frame(SETTINGS, bytes(5)), FRAME_SIZE_ERROR),
    "PING of seven bytes": (HELLO + frame(PING, bytes(7)), FRAME_SIZE_ERROR),
    "DATA on stream 0": (HELLO + frame(0, b"x"), PROTOCOL_ERROR),
    "DATA on an idle stream": (HELLO + frame(0, b"x", stream=1), PROTOCOL_ERROR),
    "HEADERS on stream 0": (HELLO + frame(HEADERS, b"\x82", flags=END_HEADERS), PROTOCOL_ERROR),
    "HEADERS on an even stream": (
        HELLO + frame(HEADERS, b"\x82", flags=END_HEADERS, stream=2),
        PROTOCOL_ERROR,
    ),
    "a header block that is no HPACK": (
        HELLO + frame(HEADERS, b"\xff\xff\xff\xff\xff\xff\xff", flags=END_HEADERS, stream=1),
        COMPRESSION_ERROR,
    ),
    "PUSH_PROMISE of a client": (
        HELLO + frame(PUSH_PROMISE, bytes(4) + b"\x82", flags=END_HEADERS, stream=1),
        PROTOCOL_ERROR,
    ),
    "CONTINUATION of nothing": (HELLO + frame(CONTINUATION, b"\x82", stream=1), PROTOCOL_ERROR),
    "HEADERS cut by another frame": (
        HELLO + frame(HEADERS, b"\x82", stream=1) + frame(PING, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "a window of zero more": (HELLO + frame(WINDOW_UPDATE, bytes(4)), PROTOCOL_ERROR),
    "a window over the limit": (
        HELLO + frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"),
        FLOW_CONTROL_ERROR,
    ),
    "a flood of CONTINUATION": (
        HELLO + frame(HEADERS, b"", stream=1) + frame(CONTINUATION, bytes(1), stream=1) * 5000,
        -1,
    ),
    "a flood of PING": (HELLO + frame(PING, bytes(8)) * 50_000, ENHANCE_YOUR_CALM),
    "a flood of SETTINGS": (HELLO + frame(SETTINGS) * 50_000, ENHANCE_YOUR_CALM),
    "rapid reset": (
        HELLO
        + b"".join(
            frame(HEADERS, b"\x02\x07CONNECT", flags=END_HEADERS, stream=number)
            + frame(RST_STREAM, bytes(4), stream=number)
            for number in range(1, 20_001, 2)
        ),
        ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_http2_ends_its_own_connection_with_a_reason(
    stranger: Stranger, data: bytes, code: int
) -> None:
    """-1: any reason will do."""
    found = b""
    with stranger.tls(certificate=stranger.certificate) as sock:
        with contextlib.suppress(ConnectionError, ssl.SSLError, BrokenPipeError):
            sock.sendall(data)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while more := sock.recv(65536):
                found += more
    codes = [struct.unpack_from("!I", payload, 4)[0] for kind, payload in frames(found) if kind == GOAWAY]
    assert codes
    assert code in (-1, codes[-1])


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 9 <= len(data):
        length = int.from_bytes(data[position : position + 3], "big")
        yield data[position + 3], data[position + 9 : position + 9 + length]
        position += 9 + length


# --- good HTTP/2, bad requests ---


def asking(authority: Callable[[Stranger], str]) -> Callable[[Stranger, HbonePeer], Answer]:
    return lambda stranger, peer: peer.connect(authority(stranger))


def own(suffix: str) -> Callable[[Stranger], str]:
    return lambda stranger: f"{stranger.scene.server.ipv4}{suffix}"


def requesting(*headers: tuple[bytes, bytes]) -> Callable[[Stranger, HbonePeer], Answer]:
    return lambda _, peer: peer.request(list(headers))


def extended(stranger: Stranger, peer: HbonePeer) -> Answer:
    authority = f"{stranger.scene.server.ipv4}:{PORT}".encode()
    head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/")]
    return peer.request([*head, (b":authority", authority)])


REFUSED: dict[str, tuple[Callable[[Stranger, HbonePeer], Answer], int, str]] = {
    "another workload's address": (
        asking(lambda each: f"{each.scene.client.ipv4}:{PORT}"),
        400,
        "ip mismatch",
    ),
    "localhost": (asking(lambda _: f"127.0.0.1:{PORT}"), 400, "ip mismatch"),
    "no port": (asking(own("")), 400, "authority"),
    "a port that is none": (asking(own(":http")), 400, "authority"),
    "a port over the limit": (asking(own(":65536")), 400, "authority"),
    "user information": (asking(lambda each: f"root@{each.scene.server.ipv4}:{PORT}"), 400, ""),
    "an authority of 4000 bytes": (asking(lambda _: "a" * 4000 + ":80"), 400, ""),
    "the proxy's port 15001": (asking(own(":15001")), 503, "15001"),
    "the proxy's port 15006": (asking(own(":15006")), 503, "15006"),
    "the proxy's port 15008": (asking(own(":15008")), 503, "15008"),
    "a service that is not there": (
        asking(lambda _: "nobody.default.svc.cluster.local:80"),
        503,
        "unknown service",
    ),
    "a port where nobody listens": (asking(own(":9")), 503, ""),
    "GET": (
        requesting((b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")),
        400,
        "CONNECT",
    ),
    "no method": (requesting((b":authority", b"x:80")), 0, "reset: method_missing"),
    "CONNECT without an authority": (requesting((b":method", b"CONNECT")), 400, "authority"),
    "extended CONNECT": (extended, 0, "reset: protocol_not_enabled"),
}


@pytest.mark.parametrize(("ask", "status", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_request_is_answered_and_its_connection_goes_on(
    stranger: Stranger, ask: Callable[[Stranger, HbonePeer], Answer], status: int, reason: str
) -> None:
    """A request that is not even well-formed HTTP/2 (status 0) is reset instead (RFC 9113, 8.1.1)."""
    scene = stranger.scene
    since = dt.datetime.now(dt.UTC)
    with stranger.peer() as peer:
        answer = ask(stranger, peer)
        assert (answer.status, answer.reset_code) == (status or None, None if status else PROTOCOL_ERROR)
        assert peer.connect(f"{scene.server.ipv4}:{PORT}").status == 200, "the next request on the connection"
    scene.mesh.wait("the refusal in the access log", lambda: is_logged(stranger, reason, since))


def is_logged(stranger: Stranger, reason: str, since: dt.datetime) -> bool:
    return any(
        reason in each.get("error", "")
        and each["src.addr"].startswith(f"{stranger.plain.ipv4}:")
        and dt.datetime.fromisoformat(each["time"]) >= since
        for each in stranger.scene.mesh.access_log("beta")
    )
