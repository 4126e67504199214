"""A waypoint process on a real mesh, seen from its port 15008.

One node with a control plane, an agent and a ztunnel; behind the waypoint a service of one captured HTTP
server; in front of it a client made by hand, with a certificate of the mesh, that says what a ztunnel would
say and what it never would.
"""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h2.config
import h2.events

from tests.kit.mesh import SOCKET_S, Mesh
from tests.kit.mesh_peer import HbonePeer, PatientHttp2, fetch_credential
from tests.kit.shop import PORT, USE_WAYPOINT, serve, service_document

NODE = "alpha"
VIP = "10.78.0.60"
SERVICE = f"{VIP}:{PORT}"
HBONE_PORT = 15008
_ENOUGH = 1 << 20


class Stage:
    """Built whole: returns when the waypoint serves the service."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._log_start = 0
        self.app = mesh.add("app", NODE, labels={"shop": "yes"})
        serve(mesh, self.app, "app")
        self.client = mesh.add("client", NODE, is_attached=False)
        self.credential = fetch_credential(mesh, self.client)
        self.waypoint = mesh.add_waypoint("gate", NODE)
        mesh.apply(
            "shop",
            service_document("shop", (VIP,), {"shop": "yes"}, labels={USE_WAYPOINT: self.waypoint.name}),
        )
        self.await_serving()

    # --- the process ---

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self.waypoint.process is not None
        return self.waypoint.process

    def restart(self, **settings: str) -> None:
        """A process with these variables in the place of the one that may run; not awaited."""
        self.stop()
        self._log_start = len(self.lines())
        self.mesh.start_waypoint(self.waypoint, **settings)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SOCKET_S)

    def await_ready(self) -> None:
        self.mesh.wait("the waypoint", lambda: self.mesh.is_ready(self.waypoint.workload))

    def await_serving(self) -> None:
        self.await_ready()
        self.mesh.wait("the service at the waypoint", self.serves)

    def serves(self) -> bool:
        with self.peer() as peer:
            return peer.connect(SERVICE).status == 200

    def log(self, event: str) -> list[dict[str, Any]]:
        """What the process that runs now, or ran last, said of this kind."""
        records = [json.loads(line) for line in self.lines()[self._log_start :] if line.startswith("{")]
        return [each for each in records if each["message"] == event]

    def lines(self) -> list[str]:
        return (self.waypoint.folder / "log").read_text().splitlines()

    def wait_log(self, event: str) -> dict[str, Any]:
        return self.mesh.wait(f"{event} in the log", lambda: self.log(event))[-1]

    def page(self, port: int, path: str) -> tuple[int, str]:
        return self.mesh.get(self.waypoint.workload, ("127.0.0.1", port), path)

    def dump(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.page(15000, "/config_dump")[1])
        return found

    def workers(self) -> list[int]:
        return [int(each["pid"]) for each in self.dump()["workers"]]

    # --- the client ---

    @property
    def target(self) -> tuple[str, int]:
        return (self.waypoint.workload.ipv4, HBONE_PORT)

    def peer(self) -> HbonePeer:
        return HbonePeer(self.mesh, self.client, self.target, self.credential)

    def pair(self, folder: Path) -> Path:
        """The client's certificate and key in a file."""
        path = folder / "client.pem"
        path.touch(mode=0o600)
        path.write_bytes("".join(self.credential.chain_pem).encode() + self.credential.key_pem)
        return path


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """What the application saw."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def ask(peer: HbonePeer, target: str = "/", *, method: str = "GET") -> None:
    """A request in HTTP/1.1 on the tunnel that is open."""
    peer.send(f"{method} {target} HTTP/1.1\r\nHost: shop\r\n\r\n".encode())


def answer(peer: HbonePeer) -> HttpAnswer:
    """The answer to `ask`; one with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += _some(peer)
    return HttpAnswer(int(first.split()[1]), headers, body)


def _some(peer: HbonePeer) -> bytes:
    data = peer.receive(1)
    if not data:
        raise ConnectionResetError("the tunnel ended before the answer")
    return data


class InnerHttp2:
    """HTTP/2 with prior knowledge on the tunnel that is open."""

    def __init__(self, peer: HbonePeer) -> None:
        self._peer = peer
        self._codec = PatientHttp2(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._codec.initiate_connection()
        self._flush()

    def ask(self, target: str = "/") -> None:
        self._stream = self._codec.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "shop"), (":path", target)]
        self._codec.send_headers(self._stream, head, end_stream=True)
        self._flush()

    def answer(self) -> HttpAnswer:
        headers: dict[str, str] = {}
        body = b""
        while True:
            for event in self._events():
                match event:
                    case h2.events.ResponseReceived():
                        headers = {str(name): str(value) for name, value in event.headers}
                    case h2.events.DataReceived():
                        body += event.data or b""
                    case h2.events.StreamEnded():
                        return HttpAnswer(int(headers.pop(":status")), headers, body)

    def await_goaway(self) -> None:
        while not self._codec.has_goaway:
            self._events()

    def _events(self) -> list[h2.events.Event]:
        events = self._codec.receive_data(_some(self._peer))
        self._flush()
        return events

    def _flush(self) -> None:
        if data := self._codec.data_to_send():
            self._peer.send(data)
