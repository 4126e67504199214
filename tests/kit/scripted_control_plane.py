"""The control plane's end of NodeService.Attend that does what a test says: for tests of the node agent."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from cryptography import x509

from proto.mycelia import node_pb2
from tests.kit.certificates import issue, make_root
from transport.grpc.server import CallContext, GrpcServer, ServerStream
from transport.grpc.tls import KeyPair, server_context

METHOD = "/mycelia.node.NodeService/Attend"


@dataclass
class ScriptedControlPlane:
    """`orders` is what each report is answered with; `set_orders` also sends it at once."""

    port: int = 0
    orders: node_pb2.NodeOrders = field(default_factory=node_pb2.NodeOrders)
    reports: list[node_pb2.NodeReport] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)
    is_answering: bool = True
    _streams: list[ServerStream] = field(default_factory=list)
    _scopes: list[trio.CancelScope] = field(default_factory=list)

    async def attend(self, stream: ServerStream, context: CallContext) -> None:
        self.tokens.append(str(context.metadata.get("authorization")))
        self._streams.append(stream)
        try:
            with trio.CancelScope() as scope:
                self._scopes.append(scope)
                await self._talk(stream)
        finally:
            self._streams.remove(stream)

    async def _talk(self, stream: ServerStream) -> None:
        while (message := await stream.receive()) is not None:
            self.reports.append(node_pb2.NodeReport.FromString(message))
            changed, self.changed = self.changed, trio.Event()
            changed.set()
            if self.is_answering:
                await stream.send(self.orders.SerializeToString())

    def hang_up(self) -> None:
        """Ends all calls, as a control plane that restarts does."""
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()

    async def set_orders(self, **capture: bool) -> None:
        """`web=True`: capture default/web."""
        orders = [
            node_pb2.Order(uid=f"default/{name}", capture=wanted, reason="told by the test")
            for name, wanted in capture.items()
        ]
        self.orders = node_pb2.NodeOrders(orders=orders)
        for stream in self._streams:
            await stream.send(self.orders.SerializeToString())

    def captured(self) -> set[str]:
        """What the last report says is captured."""
        last = self.reports[-1] if self.reports else node_pb2.NodeReport()
        return {workload.uid for workload in last.workloads if workload.is_captured}

    async def until_reported(self, *addresses: str) -> node_pb2.AttachedWorkload:
        """The only workload of a report, once its addresses are these."""
        with trio.fail_after(20):
            while True:
                for workload in self.reports[-1].workloads if self.reports else ():
                    if list(workload.addresses) == list(addresses):
                        return workload
                await self.changed.wait()

    async def until_captured(self, *uids: str) -> None:
        with trio.fail_after(20):
            while not self.reports or self.captured() != set(uids):
                await self.changed.wait()


@asynccontextmanager
async def serving(
    listener: trio.SocketListener, address: str, root_cert: Path
) -> AsyncIterator[ScriptedControlPlane]:
    """A control plane on `listener` whose certificate is for `address`; its root goes to `root_cert`."""
    root = make_root("control plane root")
    names = [x509.IPAddress(ipaddress.ip_address(address))]
    chain_pem, key_pem = issue(root, None, extra_names=names)
    root_cert.write_text(root.pem)
    plane = ScriptedControlPlane(port=listener.socket.getsockname()[1])
    server = GrpcServer(streams={METHOD: plane.attend})
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [listener], server_context(KeyPair(chain_pem.decode(), key_pem)))
        yield plane
        nursery.cancel_scope.cancel()
