"""Packet capture on a lab interface: tcpdump writes, our reader looks.

Invariant: what crossed the interface before `segments()` was called is in what it returns. tcpdump reads
packets some time after the fact, so a frame with a fresh token is sent through the interface and awaited in
the file first.
"""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from mesh.lab import pcap
from mesh.lab.errors import LabCommandError

ETHERTYPE_EXPERIMENT = 0x88B5  # IEEE: for local experiments
WAIT_S = 15.0
REPEAT_S = 0.5  # the kernel may drop a frame that tcpdump is too slow to take, the marker too
POLL_S = 0.002


class Capture:
    """A running capture. Made by `Lab.capture`; ended by `stop()`, by leaving its context, or with the
    lab.
    """

    def __init__(self, process: subprocess.Popen[bytes], path: Path, marker: socket.socket) -> None:
        self.path = path
        self._process = process
        self._marker = marker  # a packet socket bound to the interface
        self._await_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_start(self) -> None:
        """Returns when tcpdump has written the file header: its socket is open by then."""
        deadline = time.monotonic() + WAIT_S
        while not (self.path.exists() and self.path.stat().st_size >= 24):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabCommandError(f"tcpdump did not start (status {self._process.poll()})")
            time.sleep(POLL_S)

    def settle(self) -> None:
        """Returns when everything that crossed the interface before the call is in the file."""
        if self._process.poll() is not None:
            return
        token = secrets.token_bytes(32)
        hardware = self._marker.getsockname()[4]
        kind = ETHERTYPE_EXPERIMENT.to_bytes(2, "big")
        frame = hardware.ljust(6, b"\0") * 2 + kind + token
        self._marker.send(frame)
        sent = time.monotonic()
        deadline = sent + WAIT_S
        while token not in self.path.read_bytes():
            now = time.monotonic()
            if now - sent > REPEAT_S:
                self._marker.send(frame)
                sent = now
            if now > deadline:
                raise LabCommandError("tcpdump does not write what crosses the interface")
            time.sleep(POLL_S)

    def segments(self) -> list[pcap.Segment]:
        """The TCP segments so far."""
        self.settle()
        return list(pcap.segments(self.path.read_bytes()))

    def contains(self, text: bytes) -> bool:
        """True when a TCP stream on the interface carried these bytes, even spread over segments."""
        return any(text in stream for stream in pcap.streams(self.segments()).values())

    def destination_ports(self) -> set[int]:
        """Ports to which connections were opened."""
        return {segment.dst[1] for segment in self.segments() if segment.is_connection_attempt}

    def stop(self) -> None:
        """Ends tcpdump; what was captured can still be read. Idempotent."""
        if self._process.poll() is None:
            self.settle()
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._marker.close()
