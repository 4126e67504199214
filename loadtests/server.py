"""The far end of every load: echo, sink and source on one port, `python -m loadtests.server`.

It must never be what is measured. Hence plain epoll in a process of its own, no task per connection, and no
copy of bulk data: a source is `sendfile` from a memory file, a sink receives with MSG_TRUNC, which drops the
bytes in the kernel. What generator and server do together without a proxy is the `direct` column of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import select
import signal
import socket
import sys
from types import FrameType

from loadtests.protocol import COUNT, HEADER_BYTES, Mode, decode

ACCEPTS_PER_PASS = 64
ECHO_BYTES = 256 * 1024
BULK_BYTES = 4 * 1024 * 1024
BACKLOG = 4096
READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# Errors of one connection that end it and nothing else.
CONNECTION_ERRORS = (ConnectionError, TimeoutError)


class Connection:
    """One client: first its header, then its mode. `owed` is what the socket did not take yet."""

    __slots__ = ("amount", "head", "is_ending", "mode", "owed", "sent", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.mode: Mode | None = None
        self.amount = 0
        self.sent = 0
        self.owed = b""
        self.is_ending = False


class LoadServer:
    """Owns its listener, its epoll set and all connections; `run` ends at `stop`."""

    def __init__(self, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, port), family=family, backlog=BACKLOG, reuse_port=True)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), READ)
        self.connections: dict[int, Connection] = {}
        self.waste = mmap.mmap(-1, BULK_BYTES)  # never touched: MSG_TRUNC copies nothing into it
        self.memory_file = os.memfd_create("load-source")
        os.ftruncate(self.memory_file, BULK_BYTES)
        os.write(self.memory_file, os.urandom(BULK_BYTES))
        self.is_stopping = False

    def stop(self) -> None:
        self.is_stopping = True

    def run(self) -> None:
        listener_fd = self.listener.fileno()
        connections = self.connections
        try:
            while not self.is_stopping:
                for fd, events in self.epoll.poll(0.2, 256):
                    if fd == listener_fd:
                        self._accept()
                    elif (connection := connections.get(fd)) is not None:
                        self._serve(connection, events)
        finally:
            self._close_all()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_PASS):
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            self.connections[sock.fileno()] = connection
            self.epoll.register(sock.fileno(), READ)
            self._serve(connection, READ)  # the first bytes are often there already

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if connection.owed or connection.is_ending:
                self._send_owed(connection)
            elif connection.mode is Mode.ECHO:
                self._echo(connection)
            elif connection.mode is Mode.SINK:
                self._sink(connection)
            elif connection.mode is Mode.SOURCE:
                self._source(connection, events)
            else:
                self._read_head(connection)
        except BlockingIOError:
            return
        except CONNECTION_ERRORS:
            self._drop(connection)

    def _read_head(self, connection: Connection) -> None:
        data = connection.sock.recv(
            ECHO_BYTES if not connection.head else HEADER_BYTES - len(connection.head)
        )
        if not data:
            self._drop(connection)
            return
        connection.head += data
        if len(connection.head) < HEADER_BYTES:
            return
        head, rest = connection.head[:HEADER_BYTES], connection.head[HEADER_BYTES:]
        try:
            connection.mode, connection.amount = decode(head)
        except ValueError:
            self._drop(connection)
            return
        if connection.mode is Mode.ECHO and rest:
            self._answer(connection, rest)
        elif connection.mode is Mode.SINK:
            connection.sent = len(rest)
        elif connection.mode is Mode.SOURCE:
            self.epoll.modify(connection.sock.fileno(), READ | WRITE)

    def _echo(self, connection: Connection) -> None:
        data = connection.sock.recv(ECHO_BYTES)
        if data:
            self._answer(connection, data)
        else:
            self._drop(connection)

    def _answer(self, connection: Connection, data: bytes) -> None:
        try:
            taken = connection.sock.send(data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            connection.owed = data[taken:]
            self.epoll.modify(connection.sock.fileno(), WRITE)

    def _send_owed(self, connection: Connection) -> None:
        connection.owed = connection.owed[connection.sock.send(connection.owed) :]
        if connection.owed:
            return
        if connection.is_ending:
            self._drop(connection)
        else:
            self.epoll.modify(connection.sock.fileno(), READ)

    def _sink(self, connection: Connection) -> None:
        received = connection.sock.recv_into(self.waste, BULK_BYTES, socket.MSG_TRUNC)
        connection.sent += received
        if received == 0:
            connection.is_ending = True
            connection.owed = COUNT.pack(connection.sent)
            self.epoll.modify(connection.sock.fileno(), WRITE)
            self._send_owed(connection)

    def _source(self, connection: Connection, events: int) -> None:
        if events & (READ | select.EPOLLHUP) and not connection.sock.recv(1):
            self._drop(connection)  # the client has had enough
            return
        wanted = min(BULK_BYTES, connection.amount - connection.sent) if connection.amount else BULK_BYTES
        connection.sent += os.sendfile(connection.sock.fileno(), self.memory_file, 0, wanted)
        if connection.sent == connection.amount:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.mode = Mode.SINK  # waits for the client's end of stream
            connection.sent = 0
            self.epoll.modify(connection.sock.fileno(), READ)

    def _drop(self, connection: Connection) -> None:
        if self.connections.pop(connection.sock.fileno(), None) is not None:
            connection.sock.close()  # epoll forgets a closed descriptor that nobody else holds

    def _close_all(self) -> None:
        for connection in list(self.connections.values()):
            connection.sock.close()
        self.listener.close()
        self.epoll.close()
        os.close(self.memory_file)
        self.waste.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.server", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--listen", default="127.0.0.1:9000", metavar="IP:PORT")
    address, _, port = parser.parse_args().listen.rpartition(":")
    server = LoadServer(address.strip("[]"), int(port))

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    bound = server.listener.getsockname()
    sys.stdout.write(f"ready {bound[0]}:{bound[1]}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
