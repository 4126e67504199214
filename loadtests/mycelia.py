"""Mycelia's pair: real data workers on both sides, real redirection rules, and this as their control process.

What runs is `python -m ztunnel.worker`, as a ztunnel starts it: it gets settings, a credential, two workloads
and a namespace over its socket (ztunnel/ipc.py) and captures connections that nft redirects. The client
connects to the server's own address; the source address is kept. Off is the access log alone, as for Envoy.
"""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from dataplane.ipc import MessageReader, encode
from dataplane.state.model import ADDRESS_TYPE
from loadtests import topology
from loadtests.certificates import Credentials, Leaf
from loadtests.contestants import SERVER_PORT, ContestantError, Running, stop, tail
from loadtests.redirect import redirect
from loadtests.topology import Pair
from proto.istio import workload_pb2
from proto.mycelia import worker_pb2 as pb
from ztunnel.worker.settings import WorkerSettings

READY_S = 20.0
READ_BYTES = 65536
NODE = "bench"


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the tunnel: its workload, namespace and credential."""

    account: str
    namespace: str
    leaf: Leaf


@dataclass(frozen=True, slots=True)
class MyceliaPair:
    pair: Pair
    credentials: Credentials
    directory: Path
    workers: int = 1
    codec: Literal["lean", "reference"] = "lean"
    name: str = "mycelia"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """Rules in both namespaces, then the workers, server side first."""
        client = Side("client", self.pair.client_namespace, self.credentials.client)
        server = Side("server", self.pair.server_namespace, self.credentials.server)
        await trio.to_thread.run_sync(redirect, self.pair)
        async with AsyncExitStack() as stack:
            pids: dict[str, list[int]] = {"client": [], "server": []}
            for side in (server, client):
                for number in range(self.workers):
                    worker = self._worker(side, number)
                    pids[side.account].append(await stack.enter_async_context(worker))
            yield Running(
                self.pair.server_ip, SERVER_PORT, self.pair, tuple(pids["client"]), tuple(pids["server"])
            )

    @asynccontextmanager
    async def _worker(self, side: Side, number: int) -> AsyncIterator[int]:
        log = self.directory / f"mycelia-{side.account}-{number}.log"
        async with running_worker("ztunnel", log, lambda link: self._set_up(link, side)) as pid:
            yield pid

    async def _set_up(self, link: Link, side: Side) -> None:
        """The control process's part, in the order that the worker wants it in."""
        await link.wait_for("hello")
        settings = WorkerSettings(node=NODE, codec=self.codec, is_access_log_on=False, log_level="warn")
        credential = credential_of(side.leaf, self.credentials.roots_path)
        await link.send(pb.ToWorker(configure=pb.Configure(settings_json=settings.to_json())))
        await link.send(pb.ToWorker(credential=credential))
        await link.send(pb.ToWorker(resources=self._resources()))
        added = pb.AddWorkload(
            uid=f"default/{side.account}",
            name=side.account,
            namespace="default",
            service_account=side.account,
        )
        with topology.namespace_path(side.namespace).open("rb") as namespace:
            await link.send(pb.ToWorker(add_workload=added), namespace.fileno())
        result = (await link.wait_for("workload_result")).workload_result
        if result.error:
            raise ContestantError(f"the {side.account} side's worker: {result.error}")
        await link.send(pb.ToWorker(synced=pb.Synced()))

    def _resources(self) -> pb.Resources:
        workloads = [
            workload_pb2.Workload(
                uid=f"bench//WorkloadEntry/default/{account}",
                name=account,
                namespace="default",
                service_account=account,
                addresses=[ipaddress.ip_address(address).packed],
                tunnel_protocol=workload_pb2.HBONE,
                node=NODE,
                cluster_id="Kubernetes",
            )
            for account, address in (("client", self.pair.client_ip), ("server", self.pair.server_ip))
        ]
        upserts = [
            pb.Resources.Resource(name=one.uid, value=workload_pb2.Address(workload=one).SerializeToString())
            for one in workloads
        ]
        return pb.Resources(type_url=ADDRESS_TYPE, upserts=upserts)


def credential_of(leaf: Leaf, roots: Path) -> pb.Credential:
    """As a control process sends it."""
    return pb.Credential(
        spiffe_id=leaf.spiffe_id,
        chain_pem=[leaf.chain_path.read_text()],
        key_pem=leaf.key_path.read_bytes(),
        roots_pem=roots.read_text(),
        not_after=int(leaf.not_after.timestamp()),
    )


@asynccontextmanager
async def running_worker(
    package: str,
    log: Path,
    set_up: Callable[[Link], Awaitable[None]],
    wrap: Callable[[list[str]], list[str]] = list,
) -> AsyncIterator[int]:
    """A data worker of `package` until the block ends, entered once `set_up` is through; yields its pid."""
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            wrap([sys.executable, "-m", f"{package}.worker", "--fd", str(theirs.fileno())]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
        )
    link = Link(trio.socket.from_stdlib_socket(ours), log)
    try:
        with trio.move_on_after(READY_S) as patience:
            await set_up(link)
        if patience.cancelled_caught:
            raise ContestantError(f"a {package} worker is not ready: {tail(log)}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.drain)
            yield process.pid
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)
        link.close()


class Link:
    """Our end of a worker's socket."""

    def __init__(self, sock: trio.socket.SocketType, log: Path) -> None:
        self._sock = sock
        self._log = log
        self._reader = MessageReader(pb.ToControl)
        self._waiting: list[pb.ToControl] = []

    async def send(self, message: pb.ToWorker, descriptor: int | None = None) -> None:
        data = encode(message)
        if descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
            data = data[await self._sock.sendmsg([data], rights) :]
        while data:
            data = data[await self._sock.send(data) :]

    async def wait_for(self, kind: str) -> pb.ToControl:
        """The next message of that kind; others are noted."""
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if message.WhichOneof("message") == kind:
                    return message
                self._note(message)
            if not await self._read():
                raise ContestantError(f"a worker ended: {tail(self._log)}")

    async def drain(self) -> None:
        """Takes what the worker says until it ends, so that it never waits for us."""
        while await self._read():
            for message in self._waiting:
                self._note(message)
            self._waiting.clear()

    async def _read(self) -> bool:
        data = await self._sock.recv(READ_BYTES)
        self._waiting += [message for message, _ in self._reader.feed(data)]
        return bool(data)

    def _note(self, message: pb.ToControl) -> None:
        if message.WhichOneof("message") == "log_line":
            with self._log.open("a") as file:
                file.write(
                    f"{message.log_line.level} {message.log_line.event} {message.log_line.fields_json}\n"
                )

    def close(self) -> None:
        self._sock.close()
        self._reader.close()
