"""The two ways round: Envoy as HBONE client of our inbound, and our outbound as HBONE client of Envoy.

Each is one Envoy, started once for a module, and our real data workers under the scripted control process of
the worker's own tests. Which tunnel a connection takes is a matter of where the test connects to: a port of
Envoy's in one direction, an address of 127/8 in the other.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from proto.istio import workload_pb2
from proto.mycelia import worker_pb2 as pb
from tests.interop.envoy_config import Identity, Originate, Terminate, Tls
from tests.interop.envoy_process import Envoy, identity_files
from tests.kit.certificates import TestAuthority, make_root
from tests.ztunnel.worker.kit import (
    BASE,
    CLIENT_IP,
    PATIENCE_S,
    SERVER_IP,
    ScriptedControl,
    free_ports,
    identity,
    running_worker,
    workload,
)
from transport.http2.codec import CodecKind
from ztunnel.worker.settings import WorkerSettings

CODECS: tuple[CodecKind, ...] = ("lean", "reference")
STRANGER_IP = "127.0.0.77"  # no workload has it
HOSTNAME, SERVICE_PORT = "web.default.svc.cluster.local", 80
GROUPS = ("X25519", "P-256", "P-384", "X25519MLKEM768")
BULK_PATIENCE_S = 40.0


class App:
    """An application that a test plays by hand, on both loopback addresses."""

    def __init__(self) -> None:
        self._listener = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
        )
        self._listener.settimeout(PATIENCE_S)
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        sock = self._listener.accept()[0]
        sock.settimeout(BULK_PATIENCE_S)
        return sock

    def forget_waiting(self) -> None:
        """Drop what a failed test has left in the queue."""
        self._listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
        self._listener.settimeout(PATIENCE_S)

    def close(self) -> None:
        self._listener.close()


def connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, PATIENCE_S)
    sock.settimeout(BULK_PATIENCE_S)
    return sock


def name_of(sock: socket.socket) -> str:
    """The socket's own address as our records write it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_refused(address: tuple[str, int]) -> bool:
    """Whether a connection there ends without a byte."""
    with connect(address) as near:
        try:
            return near.recv(1) == b""
        except ConnectionResetError:
            return True


def flow_with(worker: ScriptedControl, **wanted: object) -> pb.Flow:
    """The record of the connection that has these values; tests before may still have records on the way."""
    try:
        return worker.wait_for_flow(
            lambda flow: all(getattr(flow, name) == value for name, value in wanted.items())
        )
    except AssertionError as missing:
        raise AssertionError(f"no flow with {wanted} among {worker.flows}") from missing


# Envoy as the client


@dataclass
class EnvoyToUs:
    """`near` is an application's connection to Envoy, `far` what our inbound makes of it."""

    envoy: Envoy
    workers: Mapping[str, ScriptedControl]
    app: App
    ports: Mapping[str, int]

    def address(self, tunnel: str) -> tuple[str, int]:
        return "127.0.0.1", self.ports[tunnel]

    def open(self, tunnel: str) -> tuple[socket.socket, socket.socket]:
        """Both ends of a tunnelled connection that has carried a byte."""
        near = connect(self.address(tunnel))
        near.sendall(b"!")
        far = self.app.accept()
        assert far.recv(1) == b"!"
        return near, far

    def begin(self) -> None:
        """A test begins: what others left behind is not its concern."""
        self.app.forget_waiting()
        self.envoy.skip_lines()
        for worker in self.workers.values():
            worker.stats()  # in order behind flows that are on the way
            worker.flows.clear()


@contextlib.contextmanager
def envoy_to_us(directory: Path) -> Iterator[EnvoyToUs]:
    app = App()
    with contextlib.ExitStack() as stack:
        stack.callback(app.close)
        workers = {codec: stack.enter_context(inbound_worker(app.port, codec)) for codec in CODECS}
        tunnels = _tunnels_to_us(directory, app.port, {codec: worker[1] for codec, worker in workers.items()})
        envoy = stack.enter_context(Envoy(directory / "envoy", tunnels))
        yield EnvoyToUs(
            envoy,
            {codec: worker[0] for codec, worker in workers.items()},
            app,
            {tunnel.name: tunnel.listen[1] for tunnel in tunnels},
        )


@contextlib.contextmanager
def inbound_worker(
    app_port: int, codec: CodecKind = "lean", settings: WorkerSettings = BASE, port: int = 0
) -> Iterator[tuple[ScriptedControl, int]]:
    """A worker with the inbound side of workload `server`, and its HBONE port."""
    port = port or free_ports(1)[0]
    settings = replace(settings, listeners=("hbone",), hbone_port=port, codec=codec, bind_address="::")
    server = workload("server", SERVER_IP)
    server.addresses.append(socket.inet_pton(socket.AF_INET6, "::1"))
    service = workload_pb2.Service(name="web", namespace="default", hostname=HOSTNAME)
    service.addresses.add(address=b"\x7f\x00\x00\x63")
    service.ports.add(service_port=SERVICE_PORT, target_port=app_port)
    server.services[f"default/{HOSTNAME}"].ports.add(service_port=SERVICE_PORT, target_port=app_port)
    with running_worker(settings) as control:
        control.credential("server")
        control.resources(workload("client", CLIENT_IP), server, service)
        assert control.add_workload("server").error == ""
        control.send(synced=pb.Synced())
        yield control, port


def _tunnels_to_us(directory: Path, app_port: int, peers: Mapping[str, int]) -> list[Originate]:
    client = identity_files(directory, str(identity("client")))
    stranger_root = make_root("a root that nobody knows")
    usual = Tls(client, {"exact": str(identity("server"))})
    foreigner = identity_files(directory, "spiffe://elsewhere/ns/a/sa/b")
    authority = f"127.0.0.1:{app_port}"
    lean = ("127.0.0.1", peers["lean"])
    ports = iter(free_ports(40))

    def tunnel(
        name: str,
        *,
        to: str = authority,
        tls: Tls = usual,
        source_ip: str = CLIENT_IP,
        peer: tuple[str, int] = lean,
        headers: Mapping[str, str] | None = None,
        attempts: int = 1,
    ) -> Originate:
        return Originate(
            name,
            ("127.0.0.1", next(ports)),
            to,
            peer,
            tls,
            source_ip=source_ip,
            headers=headers or {},
            attempts=attempts,
        )

    return [
        *(tunnel(codec, peer=("127.0.0.1", port)) for codec, port in peers.items()),
        *(tunnel(f"burst-{codec}", peer=("127.0.0.1", port), attempts=3) for codec, port in peers.items()),
        *(
            tunnel(f"ipv6-{codec}", to=f"[::1]:{app_port}", peer=("::1", port), source_ip="")
            for codec, port in peers.items()
        ),
        tunnel("hostname", to=f"{HOSTNAME}:{SERVICE_PORT}"),
        tunnel("elsewhere", to="127.0.0.99:80"),
        tunnel("not-an-address", to="nonsense"),
        tunnel("unknown-hostname", to="nowhere.example:80"),
        tunnel("nobody-listens", to=f"127.0.0.1:{free_ports(1)[0]}"),
        tunnel(
            "stranger",
            source_ip=STRANGER_IP,
            headers={
                "baggage": "k8s.cluster.name=east,k8s.namespace.name=shop,k8s.pod.name=till,service.name=till"
            },
        ),
        tunnel("expects-other", tls=Tls(client, {"exact": str(identity("other"))})),
        tunnel("foreign-domain", tls=Tls(foreigner, usual.peer)),
        tunnel(
            "unknown-root",
            tls=Tls(identity_files(directory, str(identity("client")), issuer=stranger_root), usual.peer),
        ),
        tunnel(
            "trusts-other-root",
            tls=Tls(identity_files(directory, str(identity("client")), trusts=stranger_root), usual.peer),
        ),
        *(tunnel(group, tls=replace(usual, groups=(group,))) for group in GROUPS),
    ]


# Envoy as the server


@dataclass
class UsToEnvoy:
    """`near` is an application's connection that our outbound has captured, `far` what Envoy makes of it.

    On loopback a connection's own destination is what was dialled, so the address of 127/8 says which
    workload is meant; Envoy listens on the same address as that workload's proxy.
    """

    envoy: Envoy
    workers: Mapping[str, ScriptedControl]
    app: App
    outbound_ports: Mapping[str, int]
    addresses: Mapping[str, str]

    def address(self, tunnel: str, codec: str = "lean") -> tuple[str, int]:
        return self.addresses[tunnel], self.outbound_ports[codec]

    def open(self, tunnel: str, codec: str = "lean") -> tuple[socket.socket, socket.socket]:
        near = connect(self.address(tunnel, codec))
        near.sendall(b"!")
        far = self.app.accept()
        assert far.recv(1) == b"!"
        return near, far

    def begin(self) -> None:
        self.app.forget_waiting()
        self.envoy.skip_lines()
        for worker in self.workers.values():
            worker.stats()
            worker.flows.clear()


@contextlib.contextmanager
def us_to_envoy(directory: Path) -> Iterator[UsToEnvoy]:
    app = App()
    with contextlib.ExitStack() as stack:
        stack.callback(app.close)
        hbone_port = free_ports(1)[0]
        tunnels = _tunnels_to_envoy(directory, app.port, hbone_port)
        addresses = {tunnel.name: tunnel.listen[0] for tunnel in tunnels}
        workers = {
            codec: stack.enter_context(outbound_worker(addresses, hbone_port, codec)) for codec in CODECS
        }
        envoy = stack.enter_context(Envoy(directory / "envoy", tunnels))
        yield UsToEnvoy(
            envoy,
            {codec: worker[0] for codec, worker in workers.items()},
            app,
            {codec: worker[1] for codec, worker in workers.items()},
            addresses,
        )


@contextlib.contextmanager
def outbound_worker(
    addresses: Mapping[str, str], hbone_port: int, codec: CodecKind = "lean", settings: WorkerSettings = BASE
) -> Iterator[tuple[ScriptedControl, int]]:
    """A worker with the outbound side of workload `client`, and its port for captured connections.

    Each of `addresses` is a workload whose proxy listens there on `hbone_port`.
    """
    port = free_ports(1)[0]
    settings = replace(
        settings,
        listeners=("outbound",),
        outbound_port=port,
        peer_hbone_port=hbone_port,
        codec=codec,
        bind_address="::",
    )
    with running_worker(settings) as control:
        control.credential("client")
        control.resources(
            workload("client", CLIENT_IP), *(workload(name, ip) for name, ip in addresses.items())
        )
        assert control.add_workload("client").error == ""
        control.send(synced=pb.Synced())
        yield control, port


def _tunnels_to_envoy(directory: Path, app_port: int, hbone_port: int) -> list[Terminate]:
    stranger_root = make_root("a root that nobody knows")
    nobody = {"exact": str(identity("nobody"))}
    ips = (f"127.0.1.{number}" for number in range(1, 64))

    def tunnel(
        name: str, *, account: str = "", ip: str = "", issuer: TestAuthority | None = None
    ) -> Terminate:
        identity_of = identity_files(directory, str(identity(account or name)), issuer=issuer)
        return terminate(name, (ip or next(ips), hbone_port), app_port, identity_of)

    trusting = identity_files(directory, str(identity("trusts-other-root")), trusts=stranger_root)
    groups = [tunnel(group.lower()) for group in GROUPS]
    expecting = tunnel("expects-nobody")
    return [
        tunnel("usual"),
        tunnel("ipv6", ip="::1"),
        tunnel("impostor", account="other"),
        tunnel("unknown-root", issuer=stranger_root),
        terminate("trusts-other-root", (next(ips), hbone_port), app_port, trusting),
        replace(expecting, tls=replace(expecting.tls, peer=nobody)),
        replace(tunnel("forbidding"), allowed=nobody),
        replace(tunnel("narrow"), http2={"max_concurrent_streams": 5}),
        replace(tunnel("unreachable"), target=(SERVER_IP, free_ports(1)[0])),
        *(
            replace(made, tls=replace(made.tls, groups=(group,)))
            for group, made in zip(GROUPS, groups, strict=True)
        ),
    ]


def terminate(name: str, listen: tuple[str, int], app_port: int, files: Identity) -> Terminate:
    """Envoy as the proxy of a workload; takes everybody of our trust domain."""
    return Terminate(name, listen, (SERVER_IP, app_port), Tls(files, {"prefix": "spiffe://cluster.local/"}))
