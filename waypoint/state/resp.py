"""The Redis protocol (RESP2), as far as a counter needs it. Pure: bytes in, replies out.

Why no library: the well-kept client is asyncio's or blocks, and a data worker has neither; what is needed is
one script call and its reply.

Bounds: a reply of more than `MAX_REPLY_BYTES` or `MAX_ITEMS`, nested deeper than `_MAX_DEPTH`, or anything
that is no RESP, raises; the connection is of no use then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

MAX_REPLY_BYTES: Final = 64 * 1024
MAX_ITEMS: Final = 256
_MAX_DEPTH: Final = 4


class NotResp(Exception):
    """What arrived is no reply of a Redis server."""


class _Incomplete(Exception):
    """More bytes are to come."""


@dataclass(frozen=True, slots=True)
class RespError:
    """The server's own error."""

    text: str


Reply: TypeAlias = "bytes | int | RespError | list[Reply] | None"


def encode_command(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


class ReplyReader:
    """Feed it what arrives; it gives whole replies, in order."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Raises `NotResp`."""
        self._held += data
        while self._held:
            try:
                reply, end = _read(self._held, 0, 0)
            except _Incomplete:
                if len(self._held) > MAX_REPLY_BYTES:
                    raise NotResp(f"a reply of more than {MAX_REPLY_BYTES} bytes") from None
                return
            self._held = self._held[end:]
            yield reply


def _read(data: bytes, at: int, depth: int) -> tuple[Reply, int]:
    if depth > _MAX_DEPTH:
        raise NotResp("a reply nested too deep")
    end = data.find(b"\r\n", at, at + MAX_REPLY_BYTES)
    if end < 0:
        if data[at : at + 1] not in (b"", b"+", b"-", b":", b"$", b"*"):
            raise NotResp("it does not begin like a reply")
        raise _Incomplete
    kind, text, after = data[at : at + 1], data[at + 1 : end], end + 2
    match kind:
        case b"+":
            return text, after
        case b"-":
            return RespError(text.decode("utf-8", "replace")), after
        case b":":
            return _number(text), after
        case b"$":
            return _bulk(data, _number(text), after)
        case b"*":
            return _array(data, _number(text), after, depth)
        case _:
            raise NotResp("it does not begin like a reply")


def _bulk(data: bytes, size: int, at: int) -> tuple[Reply, int]:
    if size < 0:
        return None, at
    if size > MAX_REPLY_BYTES:
        raise NotResp(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    if len(data) < at + size + 2:
        raise _Incomplete
    if data[at + size : at + size + 2] != b"\r\n":
        raise NotResp("text without its end")
    return data[at : at + size], at + size + 2


def _array(data: bytes, count: int, at: int, depth: int) -> tuple[Reply, int]:
    if count < 0:
        return None, at
    if count > MAX_ITEMS:
        raise NotResp(f"a reply of more than {MAX_ITEMS} items")
    items: list[Reply] = []
    for _ in range(count):
        item, at = _read(data, at, depth + 1)
        items.append(item)
    return items, at


def _number(text: bytes) -> int:
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19:
        raise NotResp("a number that is none")
    return int(text)


def words_of(reply: Reply) -> Sequence[int]:
    """An array of numbers; raises `NotResp`."""
    if not isinstance(reply, list):
        raise NotResp("no list where one was due")
    found = []
    for item in reply:
        if not isinstance(item, int):
            raise NotResp("no number where one was due")
        found.append(item)
    return found
