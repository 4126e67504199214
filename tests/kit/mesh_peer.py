"""A mesh client made by hand: a real certificate of the mesh, TLS and HTTP/2 as the test says.

For what a ztunnel never does itself: a CONNECT for somebody else's address, a wrong method, no certificate.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio
from typing_extensions import Buffer

from ca.client import CaClient, channel_factory
from ca.credentials import Credential
from mesh.lab.network import Place, Workload
from tests.kit.mesh import XDS_PORT, Mesh
from transport.grpc.channel import ChannelSettings
from transport.grpc.tls import TlsTrust
from transport.spiffe import SpiffeId

PACKET_MARK = 0x539
SO_MARK = 36
TIMEOUT_S = 10.0


def fetch_credential(mesh: Mesh, workload: Workload, *, namespace: str = "default") -> Credential:
    """A certificate for a workload, from the mesh's CA, asked for with its node's token."""
    node = mesh.nodes[workload.node.name]
    trust = TlsTrust((mesh.state / "root-cert.pem").read_text())
    settings = ChannelSettings(mesh.lab.management.ipv4, XDS_PORT, tls=trust)
    client = CaClient(channel_factory(settings, None), (node.folder / "token").read_text().strip)
    identity = SpiffeId("cluster.local", namespace, workload.name)
    with mesh.lab.entered(node.node):
        return trio.run(client.fetch, identity)


@dataclass
class Answer:
    """What came back for a request: a status, or a reset."""

    status: int | None
    headers: dict[bytes, bytes]
    reset_code: int | None = None


class PatientHttp2(h2.connection.H2Connection):
    """The library takes a GOAWAY for the end; for this client what is open goes on (RFC 9113, 6.8)."""

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.has_goaway = False
        self._rest = b""

    def receive_data(self, data: Buffer) -> list[h2.events.Event]:
        events: list[h2.events.Event] = []
        for frame in self._frames(bytes(data)):
            found = super().receive_data(frame)
            events += found
            if any(isinstance(each, h2.events.ConnectionTerminated) for each in found):
                self.has_goaway = True
                self.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
        return events

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """The whole frames that have come; a part waits for its rest."""
        self._rest += data
        while len(self._rest) >= 9:
            length = 9 + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < length:
                return
            frame, self._rest = self._rest[:length], self._rest[length:]
            yield frame


class HbonePeer:
    """One TLS connection to a port 15008. Sockets carry the ztunnel's mark, so they pass capture by."""

    def __init__(
        self, mesh: Mesh, place: Place, target: tuple[str, int], credential: Credential | None
    ) -> None:
        with mesh.lab.entered(place):
            raw = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        raw.setsockopt(socket.SOL_SOCKET, SO_MARK, PACKET_MARK)
        raw.settimeout(TIMEOUT_S)
        try:
            raw.connect(target)
            self._tls = _context(credential).wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
        self._h2 = PatientHttp2(
            h2.config.H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self._h2.initiate_connection()
        self._flush()
        self.received = b""
        self.is_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._tls.close()

    def connect(self, authority: str, *, extra: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
        """A CONNECT, and its answer."""
        return self.request([(b":method", b"CONNECT"), (b":authority", authority.encode()), *extra])

    def request(self, headers: list[tuple[bytes, bytes]], *, end_stream: bool = False) -> Answer:
        self.stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(self.stream_id, headers, end_stream=end_stream)
        self._flush()
        while True:
            for event in self._events():
                match event:
                    case h2.events.ResponseReceived():
                        found = {bytes(name): bytes(value) for name, value in event.headers}
                        return Answer(int(found[b":status"]), found)
                    case h2.events.StreamReset():
                        return Answer(None, {}, int(event.error_code))

    def disregard_limits(self) -> None:
        """From now on open more streams than the server allows, once its settings have come."""
        settings = self._h2.remote_settings
        settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 20
        settings.acknowledge()

    def send(self, data: bytes, *, end_stream: bool = False) -> None:
        self._h2.send_data(self.stream_id, data, end_stream=end_stream)
        self._flush()

    def receive(self, length: int) -> bytes:
        """At least `length` bytes of the stream, or what came until it ended."""
        while len(self.received) < length and not self.is_ended:
            for event in self._events():
                match event:
                    case h2.events.DataReceived():
                        self.received += event.data or b""
                        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, self.stream_id)
                    case h2.events.StreamEnded() | h2.events.StreamReset():
                        self.is_ended = True
            self._flush()
        found, self.received = self.received, b""
        return found

    def await_goaway(self) -> None:
        """Until the server has said that it takes nothing more."""
        while not self._h2.has_goaway:
            self._events()

    def _events(self) -> list[h2.events.Event]:
        data = self._tls.recv(65536)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        events = self._h2.receive_data(data)
        self._flush()
        return events

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._tls.sendall(data)


def _context(credential: Credential | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the names in the mesh are SPIFFE ids
    context.set_alpn_protocols(["h2"])
    if credential is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cadata=credential.roots_pem)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes("".join(credential.chain_pem).encode() + credential.key_pem)
        context.load_cert_chain(path)
    return context


def tls_over(
    raw: socket.socket,
    *,
    certificate: Path | None,
    alpn: Sequence[str] = ("h2",),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLSocket:
    """TLS of any kind over a connected socket, which it owns; believes whatever the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        context.load_cert_chain(certificate)
    try:
        return context.wrap_socket(raw)
    except BaseException:
        raw.close()
        raise
