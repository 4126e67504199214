"""The server name in a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3). Pure: nothing is decrypted or changed.

A client may spread the message over several records; it is looked at as soon as it is there as a whole, or
too long to be one.
"""

from __future__ import annotations

import enum
from typing import Final

MAX_CLIENT_HELLO: Final = 16 * 1024 + 5  # one record of the largest size; real ones are below 2 KiB
_MAX_RECORDS: Final = 16  # for one ClientHello: looking again at each octet that comes stays cheap
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_MAX_NAME: Final = 255


class Peeked(enum.Enum):
    """What there is instead of a name."""

    MORE = enum.auto()
    NO_NAME = enum.auto()  # TLS without one
    NO_TLS = enum.auto()


def server_name(first: bytes | bytearray) -> str | Peeked:
    """The name that the stream's first bytes ask for, in lower case."""
    message = _handshake(first)
    if isinstance(message, Peeked):
        return message
    try:
        name = _find_name(message)
        text = None if name is None else name.decode("ascii").lower()
    except (IndexError, UnicodeDecodeError):
        return Peeked.NO_TLS
    return text or Peeked.NO_NAME


def _handshake(first: bytes | bytearray) -> bytes | Peeked:
    """The ClientHello's body out of its records."""
    message = bytearray()
    position = 0
    for _ in range(_MAX_RECORDS):
        head = first[position : position + 5]
        if (head and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != 3):
            return Peeked.NO_TLS
        if len(head) < 5:
            return Peeked.MORE if len(first) < MAX_CLIENT_HELLO else Peeked.NO_TLS
        size = int.from_bytes(head[3:5], "big")
        if size == 0:
            return Peeked.NO_TLS  # RFC 8446 5.1
        message += first[position + 5 : position + 5 + size]
        if message and message[0] != _CLIENT_HELLO:
            return Peeked.NO_TLS
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_CLIENT_HELLO:
                return Peeked.NO_TLS
            if len(message) >= wanted:
                return bytes(message[4:wanted])
        position += 5 + size
        if position > len(first):
            return Peeked.MORE if len(first) < MAX_CLIENT_HELLO else Peeked.NO_TLS
    return Peeked.NO_TLS


def _find_name(hello: bytes) -> bytes | None:
    position = 2 + 32  # version, random
    position += 1 + hello[position]  # session
    position += 2 + _number(hello, position)  # cipher suites
    position += 1 + hello[position]  # compression
    if position == len(hello):
        return None
    end = position + 2 + _number(hello, position)
    position += 2
    while position < end:
        kind, size = _number(hello, position), _number(hello, position + 2)
        if kind == _SERVER_NAME:
            return _host_name(hello[position + 4 : position + 4 + size])
        position += 4 + size
    return None


def _host_name(names: bytes) -> bytes | None:
    position = 2
    while position < len(names):
        size = _number(names, position + 1)
        name = names[position + 3 : position + 3 + size]
        if names[position] == _HOST_NAME and len(name) == size <= _MAX_NAME:
            return name
        position += 3 + size
    return None


def _number(data: bytes, position: int) -> int:
    return data[position] << 8 | data[position + 1]
