"""The delta xDS client: keeps a stream to the control plane and a handler up to date, for ever.

State survives the stream: while the control plane is away the handler keeps what it has. Imports no
pydantic: node proxies have a memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeAlias

import trio

from config.errors import XdsProtocolError
from config.xds.client_state import ClientState, NodeInfo, ResourceHandler, Upserts
from config.xds.messages import METHOD, parse_response
from proto.envoy import discovery_pb2 as pb
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.grpc.channel import BidiStream, Channel, ChannelSettings, open_channel
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus

__all__ = ["DeltaXdsClient", "NodeInfo", "ResourceHandler", "Upserts"]

BACKOFF_FIRST_S: Final = 0.01
BACKOFF_LAST_S: Final = 15.0
MAX_QUEUED_REQUESTS: Final = 256
# Ends that are part of life with a load balancer in front: tried again at once.
_HARMLESS: Final = frozenset({GrpcStatus.UNKNOWN, GrpcStatus.CANCELLED, GrpcStatus.DEADLINE_EXCEEDED})
_HARMLESS_TEXTS: Final = ("transport is closing", "received prior goaway")

ChannelFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[Channel]]
TokenSource: TypeAlias = Callable[[], str]

log = get_logger("xds")


class TerminationObserver(Protocol):
    """A handler may have this too: told how each stream ended."""

    def on_termination(self, reason: str) -> None:
        """`ConnectionError`, `Error`, `Reconnect` or `Complete`."""
        ...


class DeltaXdsClient:
    """Built inert; `run` until cancelled.

    `channels` opens a connection (a ChannelSettings does too); `token` is asked for each stream. `known` is
    what the handler holds from an earlier life: type -> name -> version. An exception of the handler
    escapes from `run`.
    """

    def __init__(
        self,
        channels: ChannelFactory | ChannelSettings,
        node: NodeInfo,
        token: TokenSource | str | None,
        type_urls: Iterable[str],
        handler: ResourceHandler,
        *,
        is_on_demand: bool = False,
        cluster_id: str = "Kubernetes",
        extra_metadata: Iterable[tuple[str, str]] = (),
        known: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._channels = channels
        self._token = token
        self._state = ClientState(node, type_urls, handler, is_on_demand=is_on_demand, known=known)
        self._on_termination: Callable[[str], None] = getattr(handler, "on_termination", _unobserved)
        self._metadata = (("clusterid", cluster_id), *extra_metadata)
        self._outgoing: trio.MemorySendChannel[pb.DeltaDiscoveryRequest] | None = None
        self._waiting: dict[str, trio.Event] = {}
        self._backoff_s = BACKOFF_FIRST_S
        self.is_synced = trio.Event()
        self.is_connected = False
        self.last_problem = ""
        if self._state.is_synced:
            self.is_synced.set()

    async def run(self) -> None:
        while True:
            pause_s = await self._one_stream()
            await trio.sleep(pause_s)

    async def subscribe(self, key: str) -> None:
        """On demand: returns when the control plane has answered for `<network>/<ip>`,
        `<namespace>/<hostname>` or a uid (also if there is none). Returns at once where it is known.
        """
        request = self._state.subscribe(key)
        if request is None and not self._state.is_pending(key):
            await trio.lowlevel.checkpoint()
            return
        answered = self._waiting.setdefault(key, trio.Event())
        if request is not None and self._outgoing is not None:
            # If the stream ends now, the next one's first request asks for all that is pending.
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await self._outgoing.send(request)
        await answered.wait()

    # ---- one stream ----

    async def _one_stream(self) -> float:
        """Until it ends; returns how long to wait before the next."""
        self._has_heard = False
        try:
            await self._converse()
        except* MeshError as group:
            error = _first(group)
            pause_s = self._after_failure(error)
            problem = str(error)
        else:
            problem = "the control plane ended the stream"
            self._on_termination("Complete")
            pause_s = 0.0 if self._has_heard else BACKOFF_FIRST_S
        if problem != self.last_problem:
            log.warning("xds_stream_ended", problem=problem, retry_in_s=round(pause_s, 2))
        self.last_problem = problem
        return pause_s

    def _after_failure(self, error: MeshError) -> float:
        if self._has_heard:
            self._backoff_s = BACKOFF_FIRST_S
        is_refused_connection = isinstance(error, ChannelUnavailable) and not self._has_heard
        if not is_refused_connection and _is_harmless(error):
            self._on_termination("Reconnect")
            return BACKOFF_FIRST_S
        self._on_termination("ConnectionError" if is_refused_connection else "Error")
        pause_s = self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_LAST_S)
        return pause_s

    async def _converse(self) -> None:
        channels = self._channels
        opened = open_channel(channels) if isinstance(channels, ChannelSettings) else channels()
        send, receive = trio.open_memory_channel[pb.DeltaDiscoveryRequest](MAX_QUEUED_REQUESTS)
        async with (
            opened as channel,
            channel.stream(METHOD, metadata=self._call_metadata()) as stream,
            trio.open_nursery() as nursery,
        ):
            async with send:
                for request in self._state.opening():
                    send.send_nowait(request)
                self._outgoing = send
                nursery.start_soon(_send_all, stream, receive)
                try:
                    await self._listen(stream, send)
                finally:
                    self._outgoing = None
                    self.is_connected = False
            nursery.cancel_scope.cancel()

    def _call_metadata(self) -> list[tuple[str, str]]:
        token = self._token() if callable(self._token) else self._token
        authorization = [("authorization", f"Bearer {token}")] if token else []
        return [*authorization, *self._metadata]

    async def _listen(
        self, stream: BidiStream, send: trio.MemorySendChannel[pb.DeltaDiscoveryRequest]
    ) -> None:
        while (message := await stream.receive()) is not None:
            response = parse_response(message)
            answer, answered = self._state.receive(response)
            self._heard(response, answer)
            for key in answered:
                if (waiting := self._waiting.pop(key, None)) is not None:
                    waiting.set()
            await send.send(answer)

    def _heard(self, response: pb.DeltaDiscoveryResponse, answer: pb.DeltaDiscoveryRequest) -> None:
        if not self._has_heard:
            self._has_heard = self.is_connected = True
            self._backoff_s = BACKOFF_FIRST_S
            if self.last_problem:
                log.info("xds_stream_open")
            self.last_problem = ""
        if answer.HasField("error_detail"):
            log.warning("xds_resources_refused", type=response.type_url, reason=answer.error_detail.message)
        if response.type_url not in self._state.known:
            log.error("xds_type_unknown", type=response.type_url)
        if self._state.is_synced:
            self.is_synced.set()


async def _send_all(
    stream: BidiStream, requests: trio.MemoryReceiveChannel[pb.DeltaDiscoveryRequest]
) -> None:
    # Where the call is over, the receiving side learns why.
    with suppress(GrpcError):
        async with requests:
            async for request in requests:
                await stream.send(request.SerializeToString())


def _unobserved(_reason: str) -> None:
    pass


def _is_harmless(error: MeshError) -> bool:
    if not isinstance(error, GrpcError):
        return False
    if error.status is GrpcStatus.UNAVAILABLE:
        return any(text in error.message.lower() for text in _HARMLESS_TEXTS)
    return error.status in _HARMLESS


def _first(error: BaseException) -> MeshError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, MeshError) else XdsProtocolError(str(error))
