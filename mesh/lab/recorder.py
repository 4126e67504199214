"""A program of its own: writes every frame of an interface to a pcap file, for where tcpdump cannot run.

    python -I -S recorder.py INTERFACE FILE

tcpdump always changes its supplementary groups, which the kernel forbids to an ordinary user's "root" (a user
namespace whose setgroups is denied), and then ends. This does there what the lab asks of `tcpdump -U
--immediate-mode -w`. The file's header is written when the packet socket is open; SIGINT ends it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
import time
from pathlib import Path

MAX_FRAME_BYTES = 262_144
BUFFER_BYTES = 16 * 1024 * 1024
EVERY_PROTOCOL = 0x0003  # ETH_P_ALL
LINK_ETHERNET = 1
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, MAX_FRAME_BYTES, LINK_ETHERNET)
RECORD_HEADER = struct.Struct("<IIII")


def is_needed() -> bool:
    """True where supplementary groups cannot be changed, so that tcpdump ends at once."""
    try:
        return Path("/proc/self/setgroups").read_text().strip() == "deny"
    except OSError:
        return False


def record(interface: str, path: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets, Path(path).open("wb") as file:
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        packets.bind((interface, EVERY_PROTOCOL))
        file.write(FILE_HEADER)
        file.flush()
        while True:
            frame = packets.recv(MAX_FRAME_BYTES)
            now = time.time()
            head = RECORD_HEADER.pack(int(now), int(now % 1 * 1e6), len(frame), len(frame))
            file.write(head + frame)
            file.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        record(*sys.argv[1:3])
