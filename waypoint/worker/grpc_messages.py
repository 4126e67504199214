"""How many messages a gRPC call has carried in each direction (waypoint-facts 12): frames are a flag octet, a
4-octet length and so many octets. Only lengths are looked at, nothing is kept but the rest of a split prefix.
"""

from __future__ import annotations

from typing import Final

_PREFIX: Final = 5


class FrameCounter:
    """Counts the frames that have begun. Works on any cut of the octets; a piece costs a step per frame."""

    __slots__ = ("_prefix", "_skip", "count")

    def __init__(self) -> None:
        self.count = 0
        self._skip = 0  # octets of the current message that are still to come
        self._prefix = b""

    def feed(self, data: memoryview | bytes) -> None:
        size, at = len(data), self._skip
        if not at and size >= _PREFIX and not self._prefix:
            at = _PREFIX + int.from_bytes(data[1:_PREFIX], "big")
            self.count += 1
            if at == size:  # one whole message, as most often
                return
        if self._prefix:
            had = len(self._prefix)
            prefix = self._prefix + bytes(data[: _PREFIX - had])
            if len(prefix) < _PREFIX:
                self._prefix = prefix
                return
            self._prefix = b""
            self.count += 1
            at = _PREFIX - had + int.from_bytes(prefix[1:], "big")
        while at + _PREFIX <= size:
            self.count += 1
            at += _PREFIX + int.from_bytes(data[at + 1 : at + _PREFIX], "big")
        if at < size:
            self._prefix = bytes(data[at:])
            at = size
        self._skip = at - size


class CallMessages:
    """Both directions of a call, and what of them was counted already."""

    __slots__ = ("_told_requests", "_told_responses", "requests", "responses")

    def __init__(self) -> None:
        self.requests = FrameCounter()
        self.responses = FrameCounter()
        self._told_requests = 0
        self._told_responses = 0

    def take(self) -> tuple[int, int]:
        """Messages since the last time: requests, responses."""
        requests, responses = self.requests.count, self.responses.count
        fresh = requests - self._told_requests, responses - self._told_responses
        self._told_requests, self._told_responses = requests, responses
        return fresh
