"""The delta xDS service: the registry's resources to every node proxy, and what each proxy makes of them."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from config.access import NodeAuthenticator, calling_node, require_node, wall_clock
from config.calls import cancel_when_draining, next_message, send_message
from config.compile.resource import ADDRESS, AUTHORIZATION, Delta
from config.errors import TooManySubscriptions, XdsProtocolError
from config.xds.messages import METHOD, parse_request
from config.xds.server_state import ResourceView, ServerState
from proto.envoy import discovery_pb2 as pb
from telemetry.logging import get_logger
from transport.grpc.server import CallContext, ServerStream, StreamHandler
from transport.grpc.status import GrpcError, GrpcStatus

FIRST_REQUEST_S: Final = 30.0
# A new client asks for its types one after the other: policies shall still go out first.
ALL_TYPES_S: Final = 0.02
WAYPOINT_ID: Final = "waypoint~"

log = get_logger("xds")


@dataclass(slots=True)
class Client:
    """One stream."""

    number: int
    node: str
    peer: str
    since: dt.datetime
    state: ServerState
    identifier: str = ""
    wake: trio.Event = field(default_factory=trio.Event)

    def rouse(self) -> None:
        self.wake.set()


@dataclass(slots=True)
class Totals:
    """Since the start of the process."""

    streams: int = 0
    responses: int = 0
    resources: int = 0
    acks: int = 0
    nacks: int = 0


class XdsServer:
    """`handlers` go into a GrpcServer; `publish` after each change of the registry."""

    def __init__(
        self,
        view: ResourceView,
        nodes: NodeAuthenticator,
        *,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        self._view = view
        self._nodes = nodes
        self._now = now
        self._numbers = itertools.count(1)
        self._clients: dict[int, Client] = {}
        self._generation = 0
        self.totals = Totals()

    @property
    def handlers(self) -> dict[str, StreamHandler]:
        """For GrpcServer's `streams`."""
        return {METHOD: self.serve_stream}

    @property
    def clients(self) -> Iterator[Client]:
        return iter(self._clients.values())

    @property
    def system_version(self) -> str:
        return str(self._generation)

    def publish(self, delta: Delta) -> None:
        """Lets every client know what it is concerned by. Never blocks."""
        if not delta:
            return
        self._generation += 1
        for client in self._clients.values():
            if client.state.note(delta):
                client.rouse()

    async def serve_stream(self, stream: ServerStream, context: CallContext) -> None:
        """One call, until the client ends it or the server drains."""
        node = calling_node(self._nodes, context, self._now)
        request: bytes | None = None
        with trio.move_on_after(FIRST_REQUEST_S) as waiting:
            request = await next_message(stream)
        if waiting.cancelled_caught:
            raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "no discovery request came")
        if request is None:
            return
        first = _parse(request)
        require_node(first.node.metadata.fields["NODE_NAME"].string_value, node)
        client = Client(
            number=next(self._numbers),
            node=node,
            peer=context.peer_address[0],
            since=self._now(),
            state=ServerState(self._view, node, self._waypoint(first.node, node)),
            identifier=first.node.id[:256],
        )
        self._clients[client.number] = client
        self.totals.streams += 1
        log.info("xds_client_connected", node=node, peer=client.peer, client=client.identifier)
        try:
            self._take(client, first)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all, stream, client)
                nursery.start_soon(cancel_when_draining, context, nursery.cancel_scope)
                while (message := await next_message(stream)) is not None:
                    self._take(client, _parse(message))
                nursery.cancel_scope.cancel()
        finally:
            del self._clients[client.number]
            log.info("xds_client_gone", node=node, peer=client.peer)

    def _waypoint(self, client: pb.Node, node: str) -> str:
        """The waypoint that the client says to be; a node speaks for those that it runs only."""
        if not client.id.startswith(WAYPOINT_ID):
            return ""
        waypoint = client.metadata.fields["GATEWAY"].string_value
        namespace, _, name = waypoint.partition("/")
        if not self._view.is_waypoint_on(namespace, name, node):
            log.warning("waypoint_mismatch", claimed=waypoint[:256], node=node)
            text = f'no workload of waypoint "{waypoint[:256]}" is on node {node} (metadata GATEWAY)'
            raise GrpcError(GrpcStatus.PERMISSION_DENIED, text)
        return waypoint

    def _take(self, client: Client, request: pb.DeltaDiscoveryRequest) -> None:
        watch = client.state.watches.get(request.type_url)
        acked, nacked = (watch.acked, watch.nacked) if watch is not None else (0, 0)
        try:
            client.state.request(request)
        except TooManySubscriptions as error:
            raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, error.text) from error
        if watch is not None:
            self.totals.acks += watch.acked - acked
            self.totals.nacks += watch.nacked - nacked
            if watch.nacked > nacked:
                log.error("xds_nack", node=client.node, type=request.type_url, reason=watch.last_nack)
        client.rouse()

    async def _send_all(self, stream: ServerStream, client: Client) -> None:
        with trio.move_on_after(ALL_TYPES_S):
            while not {ADDRESS, AUTHORIZATION} <= client.state.watches.keys():
                await self._roused(client)
        while True:
            response = client.state.next_response(self.system_version)
            if response is None:
                await self._roused(client)
                continue
            self.totals.responses += 1
            self.totals.resources += len(response.resources)
            log.debug(
                "xds_push",
                node=client.node,
                type=response.type_url,
                resources=len(response.resources),
                removed=len(response.removed_resources),
            )
            await send_message(stream, response.SerializeToString())

    async def _roused(self, client: Client) -> None:
        await client.wake.wait()
        client.wake = trio.Event()


def _parse(message: bytes) -> pb.DeltaDiscoveryRequest:
    try:
        return parse_request(message)
    except XdsProtocolError as error:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, error.text) from error
