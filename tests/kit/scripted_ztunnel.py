"""A ztunnel's end of ZDS that does what a test says: for tests of the node agent."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from proto.istio import zds_pb2 as zds

HELLO = bytes.fromhex("0801")
GOOD_ACK = bytes.fromhex("0a00")
SNAPSHOT_SENT = bytes.fromhex("1a00")


@dataclass
class ScriptedZtunnel:
    """`fds` collects the descriptors that came, `served` the uids taken by `serve`."""

    sock: trio.socket.SocketType
    fds: list[int] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    @classmethod
    async def connect(cls, path: Path) -> ScriptedZtunnel:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            await sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    async def receive(self) -> bytes:
        """One packet as Istio's ztunnel reads it: at most 1024 bytes. Empty at the end."""
        with trio.fail_after(10):
            return await self._receive()

    async def _receive(self) -> bytes:
        packet, ancillary, flags, _ = await self.sock.recvmsg(1024, socket.CMSG_LEN(64))
        assert not flags & socket.MSG_TRUNC
        for _, _, data in ancillary:
            fds = array.array("i")
            fds.frombytes(data)
            self.fds.extend(fds)
        return packet

    async def answer(self, packet: bytes = GOOD_ACK) -> None:
        await self.sock.send(packet)

    async def expect(self, packet: bytes, answer: bytes = GOOD_ACK) -> None:
        assert await self.receive() == packet
        await self.answer(answer)

    async def expect_end(self) -> None:
        with suppress(ConnectionResetError):
            assert await self.receive() == b""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Says hello and takes whatever comes, until the connection ends. Started after the snapshot."""
        with suppress(trio.ClosedResourceError, ConnectionError):
            await self._serve(task_status)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        await self.answer(HELLO)
        while packet := await self._receive():
            request = zds.WorkloadRequest.FromString(packet)
            match request.WhichOneof("payload"):
                case "add":
                    self.served.add(request.add.uid)
                    self.log.append(f"add {request.add.uid}")
                case "del":
                    uid = getattr(request, "del").uid
                    self.served.discard(uid)
                    self.log.append(f"del {uid}")
                case "snapshot_sent":
                    self.log.append("snapshot")
                    task_status.started()
            changed, self.changed = self.changed, trio.Event()
            changed.set()
            await self.answer()

    async def until_served(self, *uids: str) -> None:
        with trio.fail_after(10):
            while self.served != set(uids):
                await self.changed.wait()

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


@contextmanager
def closing(ztunnel: ScriptedZtunnel) -> Iterator[ScriptedZtunnel]:
    try:
        yield ztunnel
    finally:
        ztunnel.close()
