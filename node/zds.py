"""ZDS server: tells ztunnels which workloads to serve and hands them the network namespaces.

Wire format and rules: ztunnel-facts 10.7 (Istio's pkg/zdsapi and the CNI agent). Unix SOCK_SEQPACKET, one
protobuf message in a packet, stop-and-wait acknowledgements. Byte-exact with Istio in both roles.

Theory of operation. `wanted` is the set of workloads that ztunnels ought to serve. A ztunnel that connects
says hello and gets a snapshot: an Add for each of `wanted`, then SnapshotSent; after that the live requests
that came meanwhile, in order, because all of it goes through one queue per connection. An Add goes to the
most recent connection alone (an older ztunnel is on its way out), a Del to all. Each connection has one task
that reads: an acknowledgement when one is awaited, the end of the connection at any time, and nothing else.

Invariants: every wait has a deadline; every queue a bound, at which the connection is dropped (a snapshot
repairs it); no descriptor is kept here, each send duplicates the one that `wanted` owns.
"""

from __future__ import annotations

import array
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio
from google.protobuf.message import DecodeError

from node.errors import NoZtunnelError, ZdsProtocolError, ZtunnelRefusedError
from proto.istio import zds_pb2 as zds
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NetworkNamespace

ANSWER_DEADLINE_S = 5.0
ACCEPT_INTERVAL_S = 0.2  # five connections a second
MAX_CONNECTIONS = 8
MAX_QUEUED = 4096
RECEIVE_BYTES = 64 * 1024

log = get_logger("node.zds")


@dataclass(frozen=True, slots=True)
class ServedWorkload:
    """A workload to be served. The namespace stays its owner's; it is duplicated at each send."""

    uid: str
    name: str
    namespace: str
    service_account: str
    network_namespace: NetworkNamespace

    def to_request(self) -> bytes:
        info = zds.WorkloadInfo(
            name=self.name, namespace=self.namespace, service_account=self.service_account
        )
        add = zds.AddWorkload(uid=self.uid, workload_info=info)
        return zds.WorkloadRequest(add=add).SerializeToString()


def delete_request(uid: str) -> bytes:
    request = zds.WorkloadRequest()
    getattr(request, "del").uid = uid  # a word of Python
    return request.SerializeToString()


def snapshot_sent_request() -> bytes:
    return zds.WorkloadRequest(snapshot_sent=zds.SnapshotSent()).SerializeToString()


def parse_hello(packet: bytes) -> None:
    """Raises ZdsProtocolError unless it is the hello of a version that is spoken here."""
    try:
        hello = zds.ZdsHello.FromString(packet)
    except DecodeError as error:
        raise ZdsProtocolError("the hello cannot be decoded") from error
    if hello.version != zds.V1:
        raise ZdsProtocolError(f"protocol version {hello.version} is not spoken here, only 1")


def parse_answer(packet: bytes) -> str:
    """The error text of an acknowledgement, empty when it is a good one. Raises ZdsProtocolError."""
    try:
        answer = zds.WorkloadResponse.FromString(packet)
    except DecodeError as error:
        raise ZdsProtocolError("an answer cannot be decoded") from error
    if answer.WhichOneof("payload") != "ack":
        raise ZdsProtocolError("an answer is no acknowledgement")
    return str(answer.ack.error)


@dataclass(slots=True, eq=False)
class _Request:
    """One packet to send, and where its outcome goes. `uid` names the workload of an Add."""

    packet: bytes
    uid: str = ""
    has_descriptor: bool = False
    is_snapshot_end: bool = False
    finished: trio.Event = field(default_factory=trio.Event)
    error: MeshError | None = None

    def finish(self, error: MeshError | None) -> None:
        self.error = error
        self.finished.set()


class _Connection:
    """One ztunnel. Requests queued are answered in order, each with its outcome, even when the link
    breaks.
    """

    def __init__(self, sock: trio.socket.SocketType, wanted: dict[str, ServedWorkload], number: int) -> None:
        self._sock = sock
        self._wanted = wanted
        self._queue: deque[_Request] = deque()
        self._queued = trio.Event()
        self._answers: deque[str] = deque()
        self._answered = trio.Event()
        self._is_waiting = False
        self.number = number
        self.has_snapshot = False
        self.is_open = True

    def put(self, request: _Request) -> None:
        """Queues; at the bound, or on a closed connection, the request fails and the connection is
        dropped.
        """
        if not self.is_open or len(self._queue) >= MAX_QUEUED:
            request.finish(ZdsProtocolError("the ztunnel does not keep up; its connection is dropped"))
            self._sock.close()
            return
        self._queue.append(request)
        self._queued.set()

    async def run(self, on_add_answer: Callable[[str, MeshError | None], None]) -> None:
        """Sends what is queued until the connection breaks; raises ZdsProtocolError with the reason."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                while True:
                    while not self._queue:
                        self._queued = trio.Event()
                        await self._queued.wait()
                    await self._perform(self._queue[0], on_add_answer)
                    self._queue.popleft()
        finally:
            self.is_open = False
            gone = NoZtunnelError("the ztunnel's connection ended before it answered")
            while self._queue:
                request = self._queue.popleft()
                if not request.finished.is_set():
                    request.finish(gone)

    async def _perform(
        self, request: _Request, on_add_answer: Callable[[str, MeshError | None], None]
    ) -> None:
        text = await self._exchange(request)
        if text is None:  # the workload went away while its Add was queued; a Del follows
            request.finish(None)
            return
        error = ZtunnelRefusedError(f"the ztunnel answered: {text}") if text else None
        if request.is_snapshot_end:
            self.has_snapshot = True
            log.info("zds_snapshot_sent", connection=self.number, workloads=len(self._wanted))
        request.finish(error)
        if request.has_descriptor:
            on_add_answer(request.uid, error)

    async def _exchange(self, request: _Request) -> str | None:
        """Sends one request and waits for its answer."""
        with trio.move_on_after(ANSWER_DEADLINE_S):
            if not request.has_descriptor:
                await self._send(request.packet)
            else:
                workload = self._wanted.get(request.uid)
                if workload is None or workload.network_namespace.is_closed:
                    return None
                with workload.network_namespace.duplicate() as namespace:
                    await self._send(workload.to_request(), namespace.fd)
            while not self._answers:
                self._answered = trio.Event()
                await self._answered.wait()
            return self._answers.popleft()
        raise ZdsProtocolError(f"no answer within {ANSWER_DEADLINE_S:g} s")

    async def _send(self, packet: bytes, fd: int | None = None) -> None:
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._is_waiting = True
        try:
            await self._sock.sendmsg([packet], ancillary)
        except OSError as error:
            raise ZdsProtocolError(f"the ztunnel is gone: {error.strerror}") from error

    async def _read(self) -> None:
        while True:
            packet = await receive_packet(self._sock)
            if not packet:
                raise ZdsProtocolError("the ztunnel closed the connection")
            if not self._is_waiting:
                raise ZdsProtocolError("the ztunnel sent an answer that nobody asked for")
            self._is_waiting = False
            self._answers.append(parse_answer(packet))
            self._answered.set()


async def receive_packet(sock: trio.socket.SocketType) -> bytes:
    """One packet; empty at the end of the connection. Descriptors that a peer sends are closed by the
    kernel.
    """
    try:
        packet, _, flags, _ = await sock.recvmsg(RECEIVE_BYTES)
    except OSError as error:
        raise ZdsProtocolError(f"the ztunnel is gone: {error.strerror}") from error
    if flags & socket.MSG_TRUNC:
        raise ZdsProtocolError(f"a packet is longer than {RECEIVE_BYTES} bytes")
    return packet


class ZdsServer:
    """See the module. `on_add_answer(uid, error)` is told of every answer to an Add, live or in a
    snapshot.
    """

    def __init__(self, on_add_answer: Callable[[str, MeshError | None], None] = lambda *_: None) -> None:
        self._on_add_answer = on_add_answer
        self._wanted: dict[str, ServedWorkload] = {}
        self._connections: list[_Connection] = []  # oldest first; those that said hello
        self._changed = trio.Event()
        self._accepted = 0

    @property
    def connections(self) -> int:
        """Ztunnels that said hello and are still there."""
        return len(self._connections)

    async def wait_connection_change(self) -> None:
        await self._changed.wait()

    async def run(
        self,
        listener: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until cancelled. `listener` is closed by the caller."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    sock, _ = await listener.accept()
                except OSError as error:
                    log.warning("zds_accept_failed", error=error.strerror)
                    await trio.sleep(ACCEPT_INTERVAL_S)
                    continue
                self._accepted += 1
                nursery.start_soon(self._serve, sock, self._accepted)
                await trio.sleep(ACCEPT_INTERVAL_S)

    def has(self, uid: str) -> bool:
        return uid in self._wanted

    def want(self, workload: ServedWorkload) -> None:
        """Puts a workload into every later snapshot without telling the ztunnels of today (start-up)."""
        self._wanted[workload.uid] = workload

    async def add(self, workload: ServedWorkload) -> None:
        """Hands a workload to the newest ztunnel and waits for its word.

        Raises NoZtunnelError, ZtunnelRefusedError or ZdsProtocolError. The workload stays wanted in all
        cases, also on cancellation: it is in every later snapshot until `delete`.
        """
        self._wanted[workload.uid] = workload
        if not self._connections:
            raise NoZtunnelError(
                "no ztunnel is connected", next_step="start the ztunnel of this node and look at its log"
            )
        await self._ask(self._connections[-1], _Request(b"", workload.uid, has_descriptor=True))

    async def delete(self, uid: str) -> None:
        """Takes a workload from all ztunnels and waits for their word.

        None of them left is fine; a refusal or a broken connection is logged: that ztunnel's next snapshot
        lacks the workload.
        """
        self._wanted.pop(uid, None)
        requests = [(connection, _Request(delete_request(uid))) for connection in self._connections]
        async with trio.open_nursery() as nursery:
            for connection, request in requests:
                nursery.start_soon(self._ask_and_log, connection, request, uid)

    async def _ask(self, connection: _Connection, request: _Request) -> None:
        connection.put(request)
        await request.finished.wait()
        if request.error is not None:
            raise request.error

    async def _ask_and_log(self, connection: _Connection, request: _Request, uid: str) -> None:
        try:
            await self._ask(connection, request)
        except MeshError as error:
            log.warning("zds_delete_failed", uid=uid, connection=connection.number, error=str(error))

    async def _serve(self, sock: trio.socket.SocketType, number: int) -> None:
        with sock, self._translated_end(number):
            if len(self._connections) >= MAX_CONNECTIONS:
                raise ZdsProtocolError(f"there are {MAX_CONNECTIONS} ztunnels connected already")
            with trio.move_on_after(ANSWER_DEADLINE_S) as scope:
                parse_hello(await receive_packet(sock))
            if scope.cancelled_caught:
                raise ZdsProtocolError(f"no hello within {ANSWER_DEADLINE_S:g} s")
            connection = _Connection(sock, self._wanted, number)
            for uid in self._wanted:
                connection.put(_Request(b"", uid, has_descriptor=True))
            connection.put(_Request(snapshot_sent_request(), is_snapshot_end=True))
            self._connections.append(connection)
            self._announce()
            log.info("ztunnel_connected", connection=number, workloads=len(self._wanted))
            try:
                await connection.run(self._on_add_answer)
            finally:
                self._connections.remove(connection)
                self._announce()

    @staticmethod
    @contextlib.contextmanager
    def _translated_end(number: int) -> Iterator[None]:
        """One line for the end of a connection, whatever ended it."""
        try:
            yield
        except* ZdsProtocolError as group:
            reasons = "; ".join(sorted({error.text for error in _leaves(group)}))
            log.warning("ztunnel_disconnected", connection=number, reason=reasons)
        except* trio.ClosedResourceError:
            log.warning("ztunnel_disconnected", connection=number, reason="it does not keep up")

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _leaves(group: BaseExceptionGroup[ZdsProtocolError]) -> Iterator[ZdsProtocolError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
