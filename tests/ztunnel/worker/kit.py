"""A scripted control process for real workers on loopback, and the resources that it feeds them.

Everything blocks with a deadline, so a test that goes wrong fails and never hangs. On loopback nothing is
redirected: `static_destination` says where captured connections go.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from dataplane.ipc import MessageReader, encode
from dataplane.state.labels import LABEL_NAMES
from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE
from proto.istio import authorization_pb2, workload_pb2
from proto.mycelia import connection_limit_pb2
from proto.mycelia import worker_pb2 as pb
from tests.kit.certificates import issue, shared_root
from transport.spiffe import SpiffeId
from ztunnel.state.connection_limits import CONNECTION_LIMITS_TYPE
from ztunnel.worker.settings import WorkerSettings

PATIENCE_S = 15.0
CLIENT_IP, SERVER_IP = "127.0.0.3", "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def identity(account: str) -> SpiffeId:
    return SpiffeId("cluster.local", "default", account)


def workload(
    account: str, ip: str, *, is_hbone: bool = True, policies: Sequence[str] = (), network: str = ""
) -> workload_pb2.Workload:
    return workload_pb2.Workload(
        uid=f"cluster/{account}",
        name=account,
        namespace="default",
        service_account=account,
        addresses=[ipaddress.ip_address(ip).packed],
        tunnel_protocol=workload_pb2.HBONE if is_hbone else workload_pb2.NONE,
        canonical_name=account,
        canonical_revision="v1",
        workload_name=account,
        authorization_policies=policies,
        network=network,
    )


def deny_all(name: str = "deny", *, is_selector: bool = False) -> authorization_pb2.Authorization:
    """A DENY that matches every connection of namespace `default`."""
    scope = authorization_pb2.WORKLOAD_SELECTOR if is_selector else authorization_pb2.NAMESPACE
    policy = authorization_pb2.Authorization(
        name=name, namespace="default", scope=scope, action=authorization_pb2.DENY
    )
    policy.groups.add()
    return policy


def strict() -> authorization_pb2.Authorization:
    """What STRICT mutual TLS is compiled to: deny what has no principal."""
    policy = authorization_pb2.Authorization(
        name="strict", namespace="default", scope=authorization_pb2.NAMESPACE, action=authorization_pb2.DENY
    )
    match = policy.groups.add().rules.add().matches.add()
    match.not_principals.add().presence.SetInParent()
    return policy


def address(message: workload_pb2.Workload | workload_pb2.Service) -> pb.Resources.Resource:
    if isinstance(message, workload_pb2.Workload):
        name, wrapped = message.uid, workload_pb2.Address(workload=message)
    else:
        name, wrapped = f"{message.namespace}/{message.hostname}", workload_pb2.Address(service=message)
    return pb.Resources.Resource(name=name, value=wrapped.SerializeToString())


@dataclass
class ScriptedControl:
    """One worker process and the control process's end of its channel."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    reader: MessageReader[pb.ToControl] = field(default_factory=lambda: MessageReader(pb.ToControl))
    waiting: list[pb.ToControl] = field(default_factory=list)
    flows: list[pb.Flow] = field(default_factory=list)
    logs: list[pb.LogLine] = field(default_factory=list)
    requests: int = 0

    @classmethod
    def start(cls) -> Self:
        """Without waiting for the process to be up."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ztunnel.worker", "--fd", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        return cls(process, ours)

    def send(self, descriptor: int | None = None, **orders: object) -> None:
        """`send(drain=pb.Drain(...))`"""
        data = encode(pb.ToWorker(**orders))  # type: ignore[arg-type]  # one order, checked by protobuf
        if descriptor is not None:
            sent = socket.send_fds(self.sock, [data], [descriptor])
            data = data[sent:]
        self.sock.sendall(data)

    def configure(self, settings: WorkerSettings) -> None:
        self.send(configure=pb.Configure(settings_json=settings.to_json()))

    def resources(
        self, *messages: workload_pb2.Workload | workload_pb2.Service, removed: Sequence[str] = ()
    ) -> None:
        upserts = [address(message) for message in messages]
        self.send(resources=pb.Resources(type_url=ADDRESS_TYPE, upserts=upserts, removed=removed))

    def policies(self, *messages: authorization_pb2.Authorization, removed: Sequence[str] = ()) -> None:
        upserts = [
            pb.Resources.Resource(
                name=f"{message.namespace}/{message.name}", value=message.SerializeToString()
            )
            for message in messages
        ]
        self.send(resources=pb.Resources(type_url=AUTHORIZATION_TYPE, upserts=upserts, removed=removed))

    def limits(self, account: str, *limits: connection_limit_pb2.ConnectionLimits.Limit) -> None:
        """All that limits connections to a workload: one policy `shop/calm`."""
        name = f"cluster/{account}"
        policy = connection_limit_pb2.ConnectionLimits.Policy(namespace="shop", name="calm", limits=limits)
        message = connection_limit_pb2.ConnectionLimits(uid=name, policies=[policy])
        upserts = [pb.Resources.Resource(name=name, value=message.SerializeToString())]
        self.send(resources=pb.Resources(type_url=CONNECTION_LIMITS_TYPE, upserts=upserts))

    def credential(self, account: str) -> None:
        chain, key = issue(shared_root(), str(identity(account)))
        self.send(
            credential=pb.Credential(
                spiffe_id=str(identity(account)),
                chain_pem=[chain.decode()],
                key_pem=key,
                roots_pem=shared_root().pem,
                not_after=int(time.time()) + 3600,
            )
        )

    def add_workload(self, account: str, *, uid: str = "") -> pb.WorkloadResult:
        order = pb.AddWorkload(uid=uid or account, name=account, namespace="default", service_account=account)
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.send(namespace, add_workload=order)
        os.close(namespace)
        return self.wait_for("workload_result").workload_result

    def wait_for(self, kind: str) -> pb.ToControl:
        """The next message of that kind. Flows and log lines are kept aside."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for message in self.waiting:
                if message.WhichOneof("message") == kind:
                    self.waiting.remove(message)
                    return message
            self.read(end, f"no {kind} came; log: {self.logs}")

    def wait_for_flow(self, condition: Callable[[pb.Flow], object] = lambda _: True) -> pb.Flow:
        end = time.monotonic() + PATIENCE_S
        while True:
            for flow in self.flows:
                if condition(flow):
                    self.flows.remove(flow)
                    return flow
            self.read(end, f"no such flow; log: {self.logs}")

    def wait_for_log(self, event: str) -> pb.LogLine:
        end = time.monotonic() + PATIENCE_S
        while True:
            for line in self.logs:
                if line.event == event:
                    self.logs.remove(line)
                    return line
            self.read(end, f"no log line {event}; log: {self.logs}")

    def read(self, end: float, complaint: str) -> None:
        """Take in what the worker says next."""
        ready = select.select([self.sock], [], [], max(end - time.monotonic(), 0))[0]
        data = self.sock.recv(256 * 1024) if ready else b""
        if not data:
            raise AssertionError(complaint if not ready else f"{complaint} (the worker closed the channel)")
        for message, _ in self.reader.feed(data):
            self.flows += message.flows.flows
            if message.WhichOneof("message") == "log_line":
                self.logs.append(message.log_line)
            elif not message.HasField("flows"):
                self.waiting.append(message)

    def stats(self) -> tuple[list[pb.Stats.Series], dict[tuple[str, ...], float]]:
        """All series, and the other figures by name and labels."""
        self.requests += 1
        self.send(stats_request=pb.StatsRequest(id=self.requests))
        series: list[pb.Stats.Series] = []
        while True:
            part = self.wait_for("stats").stats
            assert part.id == self.requests
            series += part.traffic
            if not part.has_more:
                return series, {(named.name, *named.labels): named.value for named in part.other}

    def series(self, flags: str = "-") -> pb.Stats.Series:
        """The one series with these response flags."""
        place = LABEL_NAMES.index("response_flags")
        (found,) = [one for one in self.stats()[0] if one.labels[place] == flags]
        return found

    def open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208 - a count is all

    def stop(self) -> None:
        self.sock.close()
        self.reader.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:  # it drains what a failed test left open
            self.process.kill()
            self.process.wait()
            raise


class EchoApp:
    """An application on loopback that a test plays by hand."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.port: int = self.listener.getsockname()[1]

    def accept(self) -> socket.socket:
        sock = self.listener.accept()[0]
        sock.settimeout(PATIENCE_S)
        return sock

    def close(self) -> None:
        self.listener.close()


@dataclass
class Pair:
    """A client's worker and a server's worker, with an application behind the latter."""

    client: ScriptedControl
    server: ScriptedControl
    app: EchoApp
    outbound_port: int
    hbone_port: int

    def connect(self) -> socket.socket:
        """As the client's application would."""
        sock = socket.create_connection(("127.0.0.1", self.outbound_port), PATIENCE_S)
        sock.settimeout(PATIENCE_S)
        return sock

    def open(self) -> tuple[socket.socket, socket.socket]:
        """Both applications' ends of a tunnelled connection that has carried a byte."""
        near = self.connect()
        near.sendall(b"!")
        far = self.app.accept()
        assert far.recv(1) == b"!"
        return near, far


BASE = WorkerSettings(
    bind_address="127.0.0.1",
    packet_mark=None,
    is_spoofing=False,
    illegal_ports=(1,),
    log_level="info",
)


@contextlib.contextmanager
def running_worker(settings: WorkerSettings = BASE) -> Iterator[ScriptedControl]:
    """A configured worker that knows nothing yet."""
    control = ScriptedControl.start()
    try:
        control.configure(settings)
        yield control
    finally:
        control.stop()


@contextlib.contextmanager
def running_pair(
    client: WorkerSettings = BASE, server: WorkerSettings = BASE, *, has_credentials: bool = True
) -> Iterator[Pair]:
    """Two workers: outbound of workload `client` to HBONE of workload `server`, everything known to both."""
    outbound_port, hbone_port = free_ports(2)
    app = EchoApp()
    client = replace(
        client,
        listeners=("outbound",),
        outbound_port=outbound_port,
        peer_hbone_port=hbone_port,
        static_destination=client.static_destination or f"{SERVER_IP}:{app.port}",
    )
    server = replace(server, listeners=("hbone",), hbone_port=hbone_port)
    with running_worker(client) as near, running_worker(server) as far:
        for control, account in ((near, "client"), (far, "server")):
            if has_credentials:
                control.credential(account)
            control.resources(workload("client", CLIENT_IP), workload("server", SERVER_IP))
            assert control.add_workload(account).error == ""
            control.send(synced=pb.Synced())
        yield Pair(near, far, app, outbound_port, hbone_port)
    app.close()


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(65536):
        received += data
    return bytes(received)


def is_refused(port: int, data: bytes = b"") -> bool:
    """Connect, send, and wait for the end that must come: whether as a reset.

    A reset may be there before `connect` has returned, which then raises it.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
            sock.sendall(data)
            return not is_ended(sock)
    except (ConnectionResetError, BrokenPipeError):
        return True


def is_ended(sock: socket.socket) -> bool:
    """Wait for the end of a connection: whether it came as an orderly end (else as a reset)."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return False
