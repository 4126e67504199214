"""Lines reach the descriptor in order, callers never wait, and what is lost is counted and said."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from telemetry.line_writer import LineWriter


def test_lines_arrive_in_order_and_close_flushes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LineWriter(file.fileno())
        writer.start()
        for number in range(1000):
            writer.put(f"line {number}")
        writer.close()
    assert path.read_text() == "".join(f"line {number}\n" for number in range(1000))
    assert writer.dropped == 0


def test_a_full_queue_drops_counts_and_says_so() -> None:
    reading, writing = os.pipe()
    try:
        writer = LineWriter(writing, capacity=3)
        for number in range(10):
            writer.put(f"line {number}")
        assert writer.dropped == 7
        writer.start()
        assert os.read(reading, 100) == b"line 0\nline 1\nline 2\n"
        writer.put("later")
        writer.close()
        assert os.read(reading, 1000) == b"7 log lines were dropped: the writer was too slow\nlater\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_reader_that_stops_reading_does_not_stop_the_caller() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        writer = LineWriter(writing, capacity=100)
        writer.start()
        for _ in range(1000):
            writer.put("x" * 1000)
        assert writer.dropped > 0
        drained = threading.Thread(target=drain, args=(reading,))
        drained.start()
        writer.close(timeout_s=10)
    finally:
        os.close(writing)
        drained.join()
        os.close(reading)


def drain(descriptor: int) -> None:
    while os.read(descriptor, 65536):
        pass


def test_a_non_blocking_descriptor_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    received = bytearray()
    collector = threading.Thread(target=lambda: collect(reading, received))
    writer = LineWriter(writing)
    writer.start()
    for number in range(300):
        writer.put(f"{number:0100}")
    collector.start()
    writer.close(timeout_s=10)
    os.close(writing)
    collector.join()
    os.close(reading)
    assert received.count(b"\n") == 300


def collect(descriptor: int, into: bytearray) -> None:
    while data := os.read(descriptor, 65536):
        into += data


def test_a_reader_that_is_gone_ends_writing_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer.start()
    writer.put("nobody")
    writer.close()
    for _ in range(10):
        writer.put("nobody")
    assert writer.dropped >= 9
    os.close(writing)
