"""Brings what was collected to a collector, in batches. On trio, beside everything else.

Bounds: `MAX_QUEUED` items wait, further ones are lost and counted; a batch of at most `BATCH` is tried
`TRIES` times, `TIMEOUT_S` each, and is lost and counted then. Nobody ever waits for it: `put` only appends. A
collector that is away costs what was to be told, never requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

import trio

from telemetry.http_post import PostFailed, Target, refuse
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus

MAX_QUEUED: Final = 2048
BATCH: Final = 512
FLUSH_S: Final = 5.0
TIMEOUT_S: Final = 10.0
TRIES: Final = 3
_BACKOFF_S: Final = 1.0
_MAY_REPEAT: Final = frozenset(
    {
        GrpcStatus.UNAVAILABLE,
        GrpcStatus.DEADLINE_EXCEEDED,
        GrpcStatus.RESOURCE_EXHAUSTED,
        GrpcStatus.ABORTED,
        GrpcStatus.CANCELLED,
    }
)


Item = TypeVar("Item")
Send: TypeAlias = Callable[[Target, list[Item]], Awaitable[None]]


class Log(Protocol):
    def warning(self, event: str, **fields: object) -> object: ...
    def info(self, event: str, **fields: object) -> object: ...


class BatchExporter(Generic[Item]):
    """Built inert; `run` sends until it is cancelled. `send` hands one batch over, and raises PostFailed;
    `what` names the items in events; `locate` says before each batch where to connect, if not to the target.
    """

    def __init__(
        self,
        target: Target,
        send: Send[Item],
        what: str,
        log: Log,
        *,
        locate: Callable[[], tuple[str, int]] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.target = target
        self.sent = 0
        self.dropped = 0
        self._hand_over = send
        self._what = what
        self._log = log
        self._locate = locate
        self._flush_s = flush_s
        self._queue: deque[Item] = deque()
        self._is_asked = trio.Event()
        self._is_failing = False

    def put(self, item: Item) -> None:
        """Never waits; lost where the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append(item)
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

    async def _send(self, batch: list[Item]) -> None:
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
        fields = {"host": self.target.host, "port": self.target.port}
        if problem:
            self._log.warning(f"{self._what}_not_exported", reason=problem, **fields)
        else:
            self._log.info(f"{self._what}_exported_again", **fields)

    async def _try(self, batch: list[Item]) -> None:
        target = self.target
        if self._locate is not None:
            host, port = self._locate()
            target = replace(target, host=host, port=port)
        await self._hand_over(target, batch)


async def call(target: Target, method: str, request: bytes) -> None:
    """One gRPC call; raises PostFailed. A connection for each batch: there is one every few seconds, and
    collectors move.
    """
    refuse(target)
    settings = ChannelSettings(target.host, target.port, tls=target.tls)
    try:
        async with open_channel(settings) as channel:
            metadata = [(name.lower(), value) for name, value in target.headers]
            await channel.unary(method, request, metadata=metadata, timeout_s=TIMEOUT_S)
    except ChannelUnavailable as error:
        raise PostFailed(error.text, may_repeat=True) from error
    except GrpcError as error:
        raise PostFailed(error.text, may_repeat=error.status in _MAY_REPEAT) from error
