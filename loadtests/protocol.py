"""What a load connection says first: sixteen bytes that choose the server's behaviour.

One port serves every mode, so that a contestant needs one route only. Layout, network order: magic `MYLT`,
one byte of mode, three zero bytes, and a 64-bit amount that only `SOURCE` reads.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

MAGIC = b"MYLT"
LAYOUT = struct.Struct("!4sB3xQ")
HEADER_BYTES = LAYOUT.size
COUNT = struct.Struct("!Q")


class Mode(enum.IntEnum):
    ECHO = 1  # every byte comes back
    SINK = 2  # bytes are counted; the count comes back (64 bit) after the client's end of stream
    SOURCE = 3  # the server sends `amount` bytes and ends; without end if 0


class Header(NamedTuple):
    mode: Mode
    amount: int


def encode(mode: Mode, amount: int = 0) -> bytes:
    return LAYOUT.pack(MAGIC, mode, amount)


def decode(head: bytes) -> Header:
    """Of exactly HEADER_BYTES. Raises ValueError for a stranger's."""
    magic, mode, amount = LAYOUT.unpack(head)
    if magic != MAGIC:
        raise ValueError(f"not a load connection: it begins with {head[:4]!r}")
    return Header(Mode(mode), amount)
