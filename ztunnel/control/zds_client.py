"""Client of the node agent: which workloads to serve, and their network namespaces (facts 10.7).

Unix SOCK_SEQPACKET, one protobuf message for each packet, namespaces as SCM_RIGHTS. We connect and say
hello; the agent sends a snapshot (Add or Keep for each workload, then SnapshotSent) and then changes;
each message is answered by exactly one Ack, in order.

Two kinds of failure. A packet that cannot be understood (undecodable, truncated, without payload, with
the wrong number of descriptors) gets an Ack with an error and ends the connection; we connect again. A
message that breaks the order of the protocol (Add without workload_info, Keep or a second SnapshotSent
after the snapshot) is fatal: `ZdsViolated` escapes, because going on could stop or keep the wrong
workloads. While disconnected the workloads keep running.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio
from google.protobuf.message import DecodeError

from dataplane.control.readiness import WORKLOAD_MANAGER, Readiness
from proto.istio import zds_pb2 as pb
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NetworkNamespace
from ztunnel.control.errors import ProxyNotStarted, ZdsViolated

MAX_PACKET_BYTES = 1024
_MAX_DESCRIPTORS = 8
_MIN_BACKOFF_S = 0.01
_MIN_HELLO_BACKOFF_S = 0.005
_MAX_BACKOFF_S = 15.0

HELLO = pb.ZdsHello(version=pb.V1).SerializeToString()
ACK_OK = pb.WorkloadResponse(ack=pb.Ack()).SerializeToString()

Connect = Callable[[], Awaitable[trio.socket.SocketType]]


@dataclass(frozen=True, slots=True)
class PodInfo:
    """Who a workload is; joined with the address book by all three (facts 3.1)."""

    name: str
    namespace: str
    service_account: str


class WorkloadPlace(Protocol):
    """Where the workloads that the agent names are served."""

    async def add(self, uid: str, info: PodInfo, namespace: NetworkNamespace) -> None:
        """Serve a workload; takes the namespace over. Raises `ProxyNotStarted` and keeps it pending."""

    def delete(self, uid: str) -> None:
        """Stop serving it at once; unknown is fine."""

    def forget_pending(self, uid: str) -> None:
        """Stop trying to start it; a running one stays."""

    def retain(self, uids: frozenset[str]) -> None:
        """Stop all others."""

    def forget_all_pending(self) -> None:
        """The agent will name again what it wants."""

    @property
    def has_pending(self) -> bool: ...


class _BadPacketError(Exception):
    """A packet that cannot be understood: acknowledged with the text, then the connection ends."""


@dataclass(slots=True)
class _Packet:
    """One received packet. Owns its descriptors until `take_descriptor`."""

    data: bytes
    descriptors: list[int]
    is_truncated: bool

    def take_descriptor(self) -> int:
        if len(self.descriptors) != 1:
            raise _BadPacketError(f"expected exactly one descriptor, got {len(self.descriptors)}")
        return self.descriptors.pop()

    def close(self) -> None:
        while self.descriptors:
            with contextlib.suppress(OSError):
                os.close(self.descriptors.pop())


class ZdsClient:
    """Keeps a connection to the agent; `run` ends only by cancellation or `ZdsViolated`."""

    def __init__(
        self,
        connect: Connect,
        place: WorkloadPlace,
        readiness: Readiness,
        random: Callable[[], float],
    ) -> None:
        self._connect = connect
        self._place = place
        self._readiness = readiness
        self._random = random
        self._log = get_logger("zds")
        self.is_connected = False
        self._snapshot: set[str] | None = None  # None: the snapshot has been completed
        self._has_heard = False

    async def run(self) -> None:
        backoff_s = _MIN_BACKOFF_S
        while True:
            try:
                sock = await self._connect()
            except OSError as error:
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                self._log.warning("zds_connect_failed", error=str(error), retry_s=backoff_s)
                await trio.sleep(backoff_s)
                continue
            with sock:
                if await self._say_hello(sock):
                    self._has_heard = False
                    await self._serve(sock)
            if self._has_heard:
                backoff_s = _MIN_BACKOFF_S
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
            await trio.sleep(backoff_s)

    async def _say_hello(self, sock: trio.socket.SocketType) -> bool:
        """An agent that has accepted and cannot take a hello yet is given time (own backoff, facts 10.7)."""
        backoff_s = _MIN_HELLO_BACKOFF_S
        while True:
            try:
                await sock.send(HELLO)
            except (BrokenPipeError, ConnectionResetError, trio.BrokenResourceError):
                return False
            except OSError as error:
                self._log.warning("zds_hello_failed", error=str(error))
            else:
                return True
            await trio.sleep(backoff_s * (0.8 + 0.4 * self._random()))
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        """Answer messages until the connection ends."""
        self._snapshot = set()
        self.is_connected = True
        self._log.info("zds_connected")
        reason = "the agent closed the connection"
        try:
            while True:
                packet = await _receive(sock)
                if packet is None:
                    break
                self._has_heard = True
                try:
                    refusal = await self._handle(packet)
                except _BadPacketError as error:
                    reason = str(error)
                    await self._acknowledge(sock, reason)
                    break
                finally:
                    packet.close()
                await self._acknowledge(sock, refusal)
        except ZdsViolated as error:
            with contextlib.suppress(OSError):
                await self._acknowledge(sock, error.text)
            raise
        except OSError as error:
            reason = str(error)
        finally:
            self.is_connected = False
            self._snapshot = None
            self._readiness.undone(WORKLOAD_MANAGER)
            self._place.forget_all_pending()
        self._log.warning("zds_disconnected", reason=reason)

    async def _handle(self, packet: _Packet) -> str:
        """React to one packet; returns the error text for its Ack, empty for ok."""
        request = _decode(packet)
        kind = request.WhichOneof("payload")
        if kind == "add":
            return await self._add(request.add, packet)
        if packet.descriptors:
            raise _BadPacketError(f"a {kind} message must not carry a descriptor")
        if kind == "keep":
            self._keep(request.keep.uid)
        elif kind == "snapshot_sent":
            self._end_snapshot()
        else:
            self._delete(getattr(request, "del").uid)
        return ""

    async def _add(self, message: pb.AddWorkload, packet: _Packet) -> str:
        descriptor = packet.take_descriptor()
        if not message.HasField("workload_info"):
            os.close(descriptor)
            raise ZdsViolated(f"the node agent sent an Add for {message.uid!r} without workload_info")
        info = message.workload_info
        if self._snapshot is not None:
            self._snapshot.add(message.uid)
        try:
            namespace = NetworkNamespace(descriptor)
        except MeshError as error:
            return error.text
        self._log.info("zds_add", uid=message.uid, workload=info.name, namespace=info.namespace)
        try:
            await self._place.add(
                message.uid, PodInfo(info.name, info.namespace, info.service_account), namespace
            )
        except ProxyNotStarted as error:
            self._log.warning("zds_add_failed", uid=message.uid, error=error.text)
            self._readiness.undone(WORKLOAD_MANAGER)
            return error.text
        self._update_readiness()
        return ""

    def _keep(self, uid: str) -> None:
        if self._snapshot is None:
            raise ZdsViolated(f"the node agent sent a Keep for {uid!r} after the snapshot")
        self._snapshot.add(uid)

    def _delete(self, uid: str) -> None:
        self._log.info("zds_delete", uid=uid)
        if self._snapshot is not None:
            # Whatever runs under this uid ends with the snapshot, unless it is named again.
            self._snapshot.discard(uid)
            self._place.forget_pending(uid)
        else:
            self._place.delete(uid)
        self._update_readiness()

    def _end_snapshot(self) -> None:
        if self._snapshot is None:
            raise ZdsViolated("the node agent sent SnapshotSent twice")
        named, self._snapshot = frozenset(self._snapshot), None
        self._place.retain(named)
        self._log.info("zds_snapshot_complete", workloads=len(named))
        self._update_readiness()

    def _update_readiness(self) -> None:
        if self._snapshot is None and self.is_connected and not self._place.has_pending:
            self._readiness.done(WORKLOAD_MANAGER)

    def on_pending_changed(self) -> None:
        """The place calls this when a pending workload has started after all, or one has failed later."""
        if self._place.has_pending:
            self._readiness.undone(WORKLOAD_MANAGER)
        else:
            self._update_readiness()

    async def _acknowledge(self, sock: trio.socket.SocketType, error: str) -> None:
        if not error:
            await sock.send(ACK_OK)
            return
        response = pb.WorkloadResponse(ack=pb.Ack(error=error[: MAX_PACKET_BYTES // 2]))
        await sock.send(response.SerializeToString())


def connector(path: str) -> Connect:
    """Connects to the agent's socket at `path`."""

    async def connect() -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            await sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    return connect


async def _receive(sock: trio.socket.SocketType) -> _Packet | None:
    """The next packet, None at the end of the connection."""
    item_bytes = array.array("i").itemsize
    data, ancillary, flags, _ = await sock.recvmsg(
        MAX_PACKET_BYTES, socket.CMSG_SPACE(_MAX_DESCRIPTORS * item_bytes), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % item_bytes])
    if not data and not descriptors:
        return None
    is_truncated = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
    return _Packet(data, list(descriptors), is_truncated)


def _decode(packet: _Packet) -> pb.WorkloadRequest:
    if packet.is_truncated:
        raise _BadPacketError(f"the packet is longer than {MAX_PACKET_BYTES} bytes")
    request = pb.WorkloadRequest()
    try:
        request.ParseFromString(packet.data)
    except DecodeError as error:
        raise _BadPacketError(f"the packet cannot be decoded: {error}") from error
    if request.WhichOneof("payload") is None:
        raise _BadPacketError("the packet has no payload")
    return request
