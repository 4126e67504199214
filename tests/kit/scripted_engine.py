"""A container engine that speaks the real API over a real unix socket and does what a test says.

Its containers are real processes in real network namespaces; only the engine around them is scripted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import trio


@dataclass
class ScriptedContainer:
    id: str
    name: str
    pid: int
    labels: dict[str, str]
    is_running: bool = True
    health: str = ""

    def json(self) -> dict[str, object]:
        state: dict[str, object] = {"Running": self.is_running, "Pid": self.pid if self.is_running else 0}
        if self.health:
            state["Health"] = {"Status": self.health}
        return {"Id": self.id, "Name": f"/{self.name}", "State": state, "Config": {"Labels": self.labels}}


@dataclass
class ScriptedEngine:
    """`requests` are the targets that were asked for, without their filters."""

    path: Path
    containers: dict[str, ScriptedContainer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)
    _followers: list[trio.SocketStream] = field(default_factory=list)

    def add(self, name: str, pid: int, **labels: str) -> ScriptedContainer:
        """Labels get their prefix; `_` stands for `-`. Nobody is told."""
        words = {f"mycelia.io/{key.replace('_', '-')}": value for key, value in labels.items()}
        identifier = f"{len(self.containers) + 1:064x}"
        made = self.containers[identifier] = ScriptedContainer(identifier, name, pid, words)
        return made

    async def tell(self, container: ScriptedContainer, action: str) -> None:
        """Sends an event to all that follow."""
        actor = {"ID": container.id, "Attributes": {"name": container.name, **container.labels}}
        event = {"Type": "container", "Action": action, "Actor": actor}
        line = json.dumps(event).encode() + b"\n"
        for stream in list(self._followers):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(b"%x\r\n%b\r\n" % (len(line), line))

    async def die(self, container: ScriptedContainer) -> None:
        container.is_running = False
        await self.tell(container, "die")

    async def until_followed(self) -> None:
        with trio.fail_after(20):
            while not self._followers:
                await self.changed.wait()

    async def hang_up(self) -> None:
        for stream in list(self._followers):
            await stream.aclose()

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (data := await stream.receive_some(4096)):
                        return
                    head += data
                await self._answer(stream, head.split()[1].decode())

    async def _answer(self, stream: trio.SocketStream, target: str) -> None:
        url = urlsplit(target)
        self.requests.append(url.path)
        filters = json.loads(parse_qs(url.query).get("filters", ["{}"])[0])
        match unquote(url.path).strip("/").split("/"):
            case ["events"]:
                assert filters == {"type": ["container"]}, "Podman 4 finds no label by its key alone"
                await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                self._followers.append(stream)
                self._announce()
                await stream.receive_some(1)
                self._followers.remove(stream)
                self._announce()
            case ["containers", "json"]:
                assert filters == {"label": ["mycelia.io/workload"], "status": ["running"]}
                running = [each for each in self.containers.values() if each.is_running]
                found = [{"Id": each.id} for each in running if "mycelia.io/workload" in each.labels]
                await _send(stream, 200, found)
            case ["containers", name, "json"]:
                one = next((each for each in self.containers.values() if name in (each.id, each.name)), None)
                await _send(
                    stream, 200 if one else 404, one.json() if one else {"message": "no such container"}
                )
            case _:
                await _send(stream, 404, {"message": "page not found"})

    def _announce(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


async def _send(stream: trio.SocketStream, status: int, body: object) -> None:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    await stream.send_all(head.encode() + content)


@asynccontextmanager
async def engine_at(path: Path, engine: ScriptedEngine | None = None) -> AsyncIterator[ScriptedEngine]:
    """Listens until the block ends; an engine of before is the same one, started again."""
    engine = engine or ScriptedEngine(path)
    path.unlink(missing_ok=True)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen(16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, engine.serve, [trio.SocketListener(sock)])
        yield engine
        nursery.cancel_scope.cancel()
    engine._followers.clear()
