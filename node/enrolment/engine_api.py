"""The API of a container engine (Docker's, which Podman speaks too): HTTP/1.1 over a unix socket, on h11.

One connection for each call. Answers, lines and times are bounded; nothing stays open, also when cancelled.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import h11
import trio

from node.enrolment.declaration import LABEL_PREFIX, WORKLOAD
from node.errors import EngineError

CALL_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
_CHUNK: Final = 16 * 1024
_LABEL: Final = f"{LABEL_PREFIX}{WORKLOAD}"


@dataclass(frozen=True, slots=True)
class Container:
    """`pid` is that of its first process, 0 while none runs; `health` is empty without a health check."""

    id: str
    name: str
    pid: int
    is_running: bool
    labels: dict[str, str] = field(default_factory=dict)
    health: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    action: str
    id: str

    @property
    def is_end(self) -> bool:
        return self.action in {"die", "died", "destroy", "remove"}


class EngineApi:
    """Methods raise EngineError."""

    def __init__(self, socket_path: Path) -> None:
        self.path = socket_path

    async def labelled(self) -> list[str]:
        """The ids of running containers that declare a workload."""
        found = await self._get("/containers/json?" + _filters({"label": [_LABEL], "status": ["running"]}))
        if not isinstance(found, list):
            raise EngineError(f"{self.path}: the list of containers is no list")
        return [_text(each, "Id") for each in found]

    async def inspect(self, name: str) -> Container | None:
        """A container by id or name; None if there is none."""
        found = await self._get(f"/containers/{quote(name, safe='')}/json", may_be_absent=True)
        return None if found is None else _container(found)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Ends of containers and what else happens to those that declare a workload, from now on: whoever
        enters misses none. (Podman filters events by a label's value only, so that is done here.)
        """
        target = "/events?" + _filters({"type": ["container"]})
        async with self._request(target) as (connection, stream):
            await self._head(connection, stream, target)
            yield self._events(connection, stream)

    async def _events(self, connection: h11.Connection, stream: trio.SocketStream) -> AsyncIterator[Event]:
        buffered = bytearray()
        while True:
            event = await self._next(connection, stream)
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
            if not isinstance(event, h11.Data):
                continue
            buffered += event.data
            *lines, rest = bytes(buffered).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise EngineError(f"{self.path}: an event is too long")
            buffered[:] = rest
            for line in lines:
                if line.strip() and (told := _event(line)) is not None:
                    yield told

    async def _get(self, target: str, *, may_be_absent: bool = False) -> object:
        try:
            with trio.fail_after(CALL_S):
                async with self._request(target) as (connection, stream):
                    status = await self._head(connection, stream, target, may_be_absent=may_be_absent)
                    body = await self._body(connection, stream)
        except trio.TooSlowError:
            raise EngineError(f"{self.path}: no answer to {target} within {CALL_S:g} s") from None
        if status == 404:
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise EngineError(f"{self.path}: the answer to {target} is not JSON") from error

    @asynccontextmanager
    async def _request(self, target: str) -> AsyncIterator[tuple[h11.Connection, trio.SocketStream]]:
        connection = h11.Connection(h11.CLIENT)
        head = h11.Request(method="GET", target=target, headers=[("host", "engine"), ("accept", "*/*")])
        try:
            stream = await trio.open_unix_socket(str(self.path))
        except (OSError, RuntimeError) as error:
            raise EngineError(f"cannot reach the container engine at {self.path}: {error}") from error
        async with stream:
            try:
                await stream.send_all(
                    (connection.send(head) or b"") + (connection.send(h11.EndOfMessage()) or b"")
                )
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise EngineError(f"{self.path}: the connection ended") from error
            yield connection, stream

    async def _head(
        self,
        connection: h11.Connection,
        stream: trio.SocketStream,
        target: str,
        *,
        may_be_absent: bool = False,
    ) -> int:
        while True:
            event = await self._next(connection, stream)
            if isinstance(event, h11.Response):
                if event.status_code == 404 and may_be_absent:
                    return 404
                if event.status_code != 200:
                    raise EngineError(f"{self.path}: {target} is answered with status {event.status_code}")
                return 200
            if isinstance(event, h11.ConnectionClosed):
                raise EngineError(f"{self.path}: the connection ended without an answer to {target}")

    async def _body(self, connection: h11.Connection, stream: trio.SocketStream) -> bytes:
        body = bytearray()
        while True:
            event = await self._next(connection, stream)
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER_BYTES:
                    raise EngineError(f"{self.path}: an answer is longer than {MAX_ANSWER_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return bytes(body)

    async def _next(self, connection: h11.Connection, stream: trio.SocketStream) -> object:
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
        except (h11.ProtocolError, trio.BrokenResourceError) as error:
            raise EngineError(f"{self.path}: the engine broke off: {error}") from error
        return event


def _filters(filters: dict[str, list[str]]) -> str:
    return urlencode({"filters": json.dumps(filters)})


def _text(entry: object, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise EngineError(f"an answer of the container engine has no text {key}")
    return value


def _container(found: object) -> Container:
    try:
        assert isinstance(found, dict)
        state, labels = found["State"], found["Config"]["Labels"] or {}
        health = (state.get("Health") or state.get("Healthcheck") or {}).get("Status") or ""
        return Container(
            id=str(found["Id"]),
            name=str(found.get("Name", "")).removeprefix("/"),
            pid=int(state["Pid"]),
            is_running=state["Running"] is True,
            labels={str(key): str(value) for key, value in labels.items()},
            health=str(health),
        )
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise EngineError(
            f"what the container engine says of a container makes no sense: {error!r}"
        ) from error


def _event(line: bytes) -> Event | None:
    """None for what need not be looked at."""
    try:
        told = json.loads(line)
        action = told.get("Action") or told.get("status")
        actor = told.get("Actor") or {}
        identifier, attributes = actor.get("ID") or told.get("id"), actor.get("Attributes") or {}
    except (ValueError, AttributeError) as error:
        raise EngineError("an event of the container engine is not JSON") from error
    if not isinstance(action, str) or not isinstance(identifier, str):
        return None
    event = Event(action.partition(":")[0], identifier)
    return event if event.is_end or _LABEL in attributes else None
