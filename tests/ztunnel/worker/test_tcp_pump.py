"""The plain pump: integrity by copying and by splicing, half-closes, resets, backpressure, no residue."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from transport.errors import MeshError
from transport.hbone.frame_buffer import FrameBuffer
from transport.reactor import Reactor
from ztunnel.worker.tcp_pump import PipeStock, TcpPump

pytestmark = pytest.mark.timeout(60)
PATIENCE_S = 20.0
RESET = b"\1\0\0\0\0\0\0\0"


class Pumped:
    """Two applications with a pump between them; the reactor runs on a thread."""

    def __init__(self, *, is_reset_kept: bool = True, pipes: PipeStock | None = None) -> None:
        self.reactor = Reactor()
        self.pipes = pipes or PipeStock()
        self.over: list[MeshError | None] = []
        self.is_over = threading.Event()
        self.near, downstream = tcp_pair()
        upstream, self.far = tcp_pair()
        downstream.setblocking(False)
        upstream.setblocking(False)
        self.pump = TcpPump(
            self.reactor,
            downstream,
            upstream,
            self._on_over,
            buffer=FrameBuffer().plain,
            pipes=self.pipes,
            is_reset_kept=is_reset_kept,
        )
        self._thread = threading.Thread(target=self.reactor.run)
        self._thread.start()

    def _on_over(self, error: MeshError | None) -> None:
        self.over.append(error)
        self.is_over.set()

    def wait(self) -> None:
        assert self.is_over.wait(PATIENCE_S)
        assert self.over == [None]

    def close(self) -> None:
        self.reactor.stop()
        self._thread.join()
        self.pump.close()
        self.reactor.close()
        self.pipes.close()
        self.near.close()
        self.far.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), PATIENCE_S)
        other = listener.accept()[0]
    other.settimeout(PATIENCE_S)
    return one, other


@pytest.fixture
def pumped() -> Iterator[Pumped]:
    running = Pumped()
    yield running
    running.close()


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 20):
        received += data
    return bytes(received)


@pytest.mark.parametrize("pipes", [PipeStock(), PipeStock(limit=0)])
def test_bulk_arrives_unchanged_both_ways_spliced_or_copied(pipes: PipeStock) -> None:
    pumped = Pumped(pipes=pipes)
    up, down = random.Random(1).randbytes(40_000_000), random.Random(2).randbytes(25_000_000)
    got: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=send_and_end, args=(pumped.near, up)),
        threading.Thread(target=send_and_end, args=(pumped.far, down)),
        threading.Thread(target=lambda: got.update(down=read_all(pumped.near))),
    ]
    for thread in threads:
        thread.start()
    got["up"] = read_all(pumped.far)
    for thread in threads:
        thread.join()
    assert got == {"up": up, "down": down}
    pumped.wait()
    assert (pumped.pump.up_bytes, pumped.pump.down_bytes) == (len(up), len(down))
    pumped.close()


@pytest.mark.parametrize("first", ["near", "far"])
def test_each_direction_ends_on_its_own(pumped: Pumped, first: str) -> None:
    one, other = (pumped.near, pumped.far) if first == "near" else (pumped.far, pumped.near)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.sendall(b"after your end")
    assert one.recv(100) == b"after your end"
    other.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""
    pumped.wait()


@pytest.mark.parametrize("who", ["near", "far"])
def test_a_reset_stays_a_reset(pumped: Pumped, who: str) -> None:
    one, other = (pumped.near, pumped.far) if who == "near" else (pumped.far, pumped.near)
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    pumped.wait()


def test_with_resets_not_kept_a_reset_is_an_orderly_end() -> None:
    pumped = Pumped(is_reset_kept=False)
    pumped.near.sendall(b"x")
    assert pumped.far.recv(1) == b"x"
    pumped.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    pumped.near.close()
    assert pumped.far.recv(1) == b""
    pumped.wait()
    pumped.close()


def test_a_sink_that_does_not_read_stops_the_source_and_loses_nothing(pumped: Pumped) -> None:
    data = random.Random(3).randbytes(30_000_000)
    sender = threading.Thread(target=send_and_end, args=(pumped.near, data))
    sender.start()
    sender.join(0.5)
    assert sender.is_alive()  # the kernel's buffers are full, and ours is none
    assert read_all(pumped.far) == data
    sender.join()


def test_small_traffic_after_bulk_goes_back_to_copying(pumped: Pumped) -> None:
    """Bulk takes a pipe; a flow that has thinned out gives it back."""
    bulk = threading.Thread(target=pumped.near.sendall, args=(b"x" * 40_000_000,))
    bulk.start()
    left = 40_000_000
    while left:
        left -= len(pumped.far.recv(1 << 20))
    bulk.join()
    for _ in range(200):
        pumped.near.sendall(b"ping")
        assert pumped.far.recv(4) == b"ping"
    assert pumped.pump._up.pipe is None


def test_nothing_is_left_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        pumped = Pumped()
        bulk = threading.Thread(target=send_and_end, args=(pumped.near, b"x" * 20_000_000))
        bulk.start()
        read_all(pumped.far)
        bulk.join()
        pumped.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_pipes_are_bounded_and_reused() -> None:
    stock = PipeStock(limit=2)
    first, second = stock.take(), stock.take()
    assert first is not None
    assert second is not None
    assert stock.take() is None
    stock.give_back(first, is_empty=True)
    assert stock.take() == first
    stock.give_back(first, is_empty=False)  # bytes of another connection must never come out of it
    stock.give_back(second, is_empty=True)
    stock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first[0])
