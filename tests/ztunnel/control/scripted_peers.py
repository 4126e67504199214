"""A control plane, a CA and a node agent that do what a test says, and the ztunnel process between them.

The control plane speaks plaintext gRPC on loopback: TLS towards it has its tests elsewhere.
"""

from __future__ import annotations

import array
import datetime as dt
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trio

from ca.authority import Authority
from proto.envoy import discovery_pb2 as xds
from proto.istio import ca_pb2, zds_pb2
from transport.grpc.server import CallContext, GrpcServer, ServerStream
from transport.netns import NetworkNamespace
from transport.spiffe import SpiffeId

ROOT = Path(__file__).parents[3]
XDS_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CA_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
DEADLINE_S = 60.0
Held = dict[str, dict[str, tuple[str, bytes]]]


class Happenings:
    """A list that can be waited on."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = trio.Event()

    def add(self, item: Any) -> None:
        self.items.append(item)
        self._more.set()
        self._more = trio.Event()

    async def until(self, is_wanted: Callable[[Any], bool], count: int = 1) -> Any:
        """The `count`-th item that is wanted."""
        with trio.fail_after(DEADLINE_S):
            while len(found := [item for item in self.items if is_wanted(item)]) < count:
                await self._more.wait()
        return found[count - 1]


class ControlPlane:
    """xDS and CA. `resources` is what a new stream gets; `push` changes it and tells the open stream."""

    def __init__(self, directory: Path) -> None:
        self.resources: Held = {}
        self.requests = Happenings()
        self.certificates = Happenings()
        self.is_ca_away = False
        self.port = 0
        self._stream: ServerStream | None = None
        self._nonces = 0
        now = dt.datetime.now(dt.UTC)
        self._authority = Authority.load_or_create(directory, trust_domain="cluster.local", now=now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = GrpcServer({CA_METHOD: self._sign}, {XDS_METHOD: self._discover})
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners, None)
            yield
            nursery.cancel_scope.cancel()

    async def push(
        self, type_url: str, upserts: Mapping[str, tuple[str, bytes]], removed: tuple[str, ...] = ()
    ) -> None:
        held = self.resources.setdefault(type_url, {})
        held.update(upserts)
        for name in removed:
            held.pop(name, None)
        if self._stream is not None:
            await self._send(self._stream, type_url, upserts, removed)

    async def _discover(self, stream: ServerStream, _: CallContext) -> None:
        self._stream = stream
        try:
            while (message := await stream.receive()) is not None:
                request = xds.DeltaDiscoveryRequest.FromString(message)
                self.requests.add(request)
                if not request.response_nonce:
                    await self._answer_first(stream, request)
        finally:
            self._stream = None

    async def _answer_first(self, stream: ServerStream, request: xds.DeltaDiscoveryRequest) -> None:
        held = self.resources.get(request.type_url, {})
        known = dict(request.initial_resource_versions)
        fresh = {name: entry for name, entry in held.items() if known.get(name) != entry[0]}
        await self._send(stream, request.type_url, fresh, tuple(name for name in known if name not in held))

    async def _send(
        self,
        stream: ServerStream,
        type_url: str,
        upserts: Mapping[str, tuple[str, bytes]],
        removed: tuple[str, ...],
    ) -> None:
        self._nonces += 1
        response = xds.DeltaDiscoveryResponse(
            type_url=type_url, nonce=str(self._nonces), removed_resources=removed
        )
        for name, (version, value) in upserts.items():
            resource = response.resources.add(name=name, version=version)
            resource.resource.type_url = type_url
            resource.resource.value = value
        await stream.send(response.SerializeToString())

    async def _sign(self, message: bytes, _: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.is_ca_away:
            raise RuntimeError("the CA is away")
        request = ca_pb2.IstioCertificateRequest.FromString(message)
        wanted = request.metadata.fields["ImpersonatedIdentity"].string_value
        lifetime = dt.timedelta(seconds=request.validity_duration)
        chain = self._authority.sign(request.csr, SpiffeId.parse(wanted), lifetime, dt.datetime.now(dt.UTC))
        self.certificates.add(wanted)
        parts = [chain.leaf, *chain.intermediates, chain.roots_pem]
        return ca_pb2.IstioCertificateResponse(cert_chain=parts).SerializeToString()


class NodeAgent:
    """Listens for ztunnels; `connection` is the newest one, its hello taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def __aenter__(self) -> Self:
        await self._listener.bind(str(self.path))
        self._listener.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.path.unlink()

    async def accept(self) -> AgentConnection:
        with trio.fail_after(DEADLINE_S):
            sock, _ = await self._listener.accept()
            assert await sock.recv(100) == b"\x08\x01"
        return AgentConnection(sock)


class AgentConnection:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock

    async def ask(self, request: zds_pb2.WorkloadRequest, *descriptors: int) -> str:
        """One request and the error text of its Ack."""
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        with trio.fail_after(DEADLINE_S):
            await self.sock.sendmsg([request.SerializeToString()], rights)
            return zds_pb2.WorkloadResponse.FromString(await self.sock.recv(4096)).ack.error

    async def add(self, uid: str, path: Path) -> str:
        info = zds_pb2.WorkloadInfo(name=uid, namespace="default", service_account="app")
        add = zds_pb2.AddWorkload(uid=uid, workload_info=info)
        with NetworkNamespace.from_path(path) as namespace:
            return await self.ask(zds_pb2.WorkloadRequest(add=add), namespace.fd)

    async def end_snapshot(self) -> str:
        return await self.ask(zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()))


@dataclass
class Ztunnel:
    """A real control process with real workers. `events` are the log lines as (level, event, whole line)."""

    process: trio.Process
    events: Happenings = field(default_factory=Happenings)

    async def until(self, event: str, count: int = 1) -> str:
        found = await self.events.until(lambda item: item[1] == event, count)
        return str(found[2])

    async def get(self, port: int, path: str, method: str = "GET") -> tuple[int, str]:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            await stream.send_all(f"{head}content-length: 0\r\n\r\n".encode())
            answer = b"".join([part async for part in stream])
        return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2].decode()

    async def readiness(self) -> str:
        return (await self.get(15021, "/healthz/ready"))[1].strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        with trio.fail_after(DEADLINE_S):
            return await self.process.wait()

    async def collect(self) -> None:
        """Reads the log until the process ends."""
        assert self.process.stderr is not None
        rest = b""
        async for part in self.process.stderr:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                text = line.decode()
                fields = text.split("\t")
                self.events.add((fields[1], fields[3], text) if len(fields) > 3 else ("", "", text))

    def lines(self) -> list[str]:
        return [item[2] for item in self.events.items]


@asynccontextmanager
async def ztunnel(environment: Mapping[str, str], *prefix: str) -> AsyncIterator[Ztunnel]:
    """Starts `python -m ztunnel` (behind `prefix`) and ends it, whatever happens."""
    process = await trio.lowlevel.open_process(
        [*prefix, sys.executable, "-m", "ztunnel"],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    running = Ztunnel(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.collect)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.terminate()
                    with trio.move_on_after(20):
                        await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
