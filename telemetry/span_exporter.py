"""Brings spans to a collector: OTLP over gRPC or HTTP, or Zipkin. On trio, beside everything else.

Spans are collected and sent in batches. Bounds: `MAX_QUEUED` spans wait, further ones are lost and counted; a
batch is tried `TRIES` times, `TIMEOUT_S` each, and is lost and counted then. Nobody ever waits for it: `put`
only appends. A collector that is away costs spans, never requests.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import trio

from telemetry.http_post import PostFailed, Target, post
from telemetry.spans import Span, otlp, zipkin
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus

MAX_QUEUED: Final = 2048
BATCH: Final = 512
FLUSH_S: Final = 5.0
TIMEOUT_S: Final = 10.0
TRIES: Final = 3
_BACKOFF_S: Final = 1.0
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_MAY_REPEAT: Final = frozenset(
    {
        GrpcStatus.UNAVAILABLE,
        GrpcStatus.DEADLINE_EXCEEDED,
        GrpcStatus.RESOURCE_EXHAUSTED,
        GrpcStatus.ABORTED,
        GrpcStatus.CANCELLED,
    }
)


class Wire(enum.Enum):
    OTLP_GRPC = "OTLP/gRPC"
    OTLP_HTTP = "OTLP/HTTP"
    ZIPKIN = "Zipkin"


@dataclass(frozen=True, slots=True)
class Destination:
    """`path` and `headers` (gRPC: metadata) as configured."""

    wire: Wire
    target: Target


class Log(Protocol):
    def warning(self, event: str, **fields: object) -> object: ...
    def info(self, event: str, **fields: object) -> object: ...


class SpanExporter:
    """Built inert; `run` sends until it is cancelled. `service` names the resource; `locate` says before each
    batch where to connect, if not to the destination itself.
    """

    def __init__(
        self,
        destination: Destination,
        service: str,
        version: str,
        log: Log,
        *,
        locate: Callable[[], tuple[str, int]] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.destination = destination
        self.sent = 0
        self.dropped = 0
        self._service = service
        self._version = version
        self._log = log
        self._locate = locate
        self._flush_s = flush_s
        self._queue: deque[Span] = deque()
        self._is_asked = trio.Event()
        self._is_failing = False

    def put(self, span: Span) -> None:
        """Never waits; lost where the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH:
            self._is_asked.set()

    @property
    def queued(self) -> int:
        return len(self._queue)

    def flush(self) -> None:
        """Send what there is at once."""
        self._is_asked.set()

    async def run(self) -> None:
        while True:
            with trio.move_on_after(self._flush_s):
                await self._is_asked.wait()
            self._is_asked = trio.Event()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await self._send(batch)

    async def drain(self, timeout_s: float) -> None:
        """A last try with what is left, once `run` has ended."""
        with trio.move_on_after(timeout_s):
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await self._send(batch)
        self.dropped += len(self._queue)
        self._queue.clear()

    async def _send(self, batch: list[Span]) -> None:
        problem = ""
        is_settled = False
        try:
            for number in range(TRIES):
                if number:
                    await trio.sleep(_BACKOFF_S * math.pow(2, number - 1))
                try:
                    await self._try(batch)
                except PostFailed as error:
                    problem = error.text
                    if not error.may_repeat:
                        break
                else:
                    is_settled = True
                    self.sent += len(batch)
                    self._tell("")
                    return
        finally:
            if not is_settled:
                self.dropped += len(batch)
        self._tell(problem)

    def _tell(self, problem: str) -> None:
        """One line when it begins to fail, and one when it works again."""
        if bool(problem) == self._is_failing:
            return
        self._is_failing = bool(problem)
        target = self.destination.target
        fields = {"wire": self.destination.wire.value, "host": target.host, "port": target.port}
        if problem:
            self._log.warning("spans_not_exported", reason=problem, **fields)
        else:
            self._log.info("spans_exported_again", **fields)

    async def _try(self, batch: list[Span]) -> None:
        target = self.destination.target
        if self._locate is not None:
            host, port = self._locate()
            target = replace(target, host=host, port=port)
        match self.destination.wire:
            case Wire.OTLP_GRPC:
                await _export(target, otlp(batch, self._service, self._version))
            case Wire.OTLP_HTTP:
                body = otlp(batch, self._service, self._version)
                await post(target, "application/x-protobuf", body, TIMEOUT_S)
            case Wire.ZIPKIN:
                await post(target, "application/json", zipkin(batch, self._service), TIMEOUT_S)


async def _export(target: Target, request: bytes) -> None:
    """A connection for each batch: there is one every few seconds, and collectors move."""
    settings = ChannelSettings(target.host, target.port)
    try:
        async with open_channel(settings) as channel:
            metadata = [(name.lower(), value) for name, value in target.headers]
            await channel.unary(_EXPORT, request, metadata=metadata, timeout_s=TIMEOUT_S)
    except ChannelUnavailable as error:
        raise PostFailed(error.text, may_repeat=True) from error
    except GrpcError as error:
        raise PostFailed(error.text, may_repeat=error.status in _MAY_REPEAT) from error
