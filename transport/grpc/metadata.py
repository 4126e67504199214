"""Call metadata and the grpc-timeout header: text on our side, HTTP/2 fields on the wire.

Keys are lower-case; values of keys that end in `-bin` are bytes (base64 on the wire), all others are
printable ASCII. Invariant: nothing that a caller passes can inject another field or a reserved one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence

from transport.grpc.status import GrpcError, GrpcStatus

Headers = list[tuple[bytes, bytes]]
MetadataItems = Sequence[tuple[str, str | bytes]]

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS = frozenset({"te", "content-type", "user-agent", "host", "connection"})

MAX_TIMEOUT_S = 10 * 365 * 86400.0
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Metadata:
    """What the peer sent, in order; look-ups by lower-case key."""

    __slots__ = ("_items",)

    def __init__(self, items: MetadataItems = ()) -> None:
        self._items = tuple(items)

    @classmethod
    def from_headers(cls, headers: Headers) -> Metadata:
        """Leaves out pseudo-fields and gRPC's own; a `-bin` value that is no base64 is left out too."""
        items: list[tuple[str, str | bytes]] = []
        for key, value in headers:
            name = key.decode("latin-1")
            if name.startswith((":", "grpc-")) or name in _OURS:
                continue
            if not name.endswith("-bin"):
                items.append((name, value.decode("latin-1")))
                continue
            items.extend((name, raw) for part in value.split(b",") if (raw := _unbase64(part)) is not None)
        return cls(items)

    def get(self, key: str) -> str | None:
        """The only text value of `key`; None if absent. Repeated keys give the first."""
        return next((value for name, value in self._items if name == key and isinstance(value, str)), None)

    def get_all(self, key: str) -> list[str | bytes]:
        return [value for name, value in self._items if name == key]

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _unbase64(text: bytes) -> bytes | None:
    bare = text.strip().rstrip(b"=")
    try:
        return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
    except binascii.Error:
        return None


def encode_metadata(items: MetadataItems) -> Headers:
    """Raises GrpcError(INVALID_ARGUMENT) for keys or values that may not travel."""
    headers: Headers = []
    for key, value in items:
        name = key.lower()
        if not _KEY.fullmatch(name) or name.startswith("grpc-") or name in _OURS:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, f"metadata key {key!r} is not allowed")
        if name.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            headers.append((name.encode(), base64.b64encode(raw).rstrip(b"=")))
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        if not _VALUE.fullmatch(text):
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, f"metadata value of {key!r} is not printable ASCII")
        headers.append((name.encode(), text.strip(" ").encode()))
    return headers


def encode_timeout(seconds: float) -> bytes:
    """At most eight digits, rounded up to the unit, so that a server never gives up before its client."""
    for unit, factor in (
        (b"n", 1e9),
        (b"u", 1e6),
        (b"m", 1e3),
        (b"S", 1.0),
        (b"M", 1 / 60),
        (b"H", 1 / 3600),
    ):
        amount = -int(-max(seconds, 0.0) * factor // 1)
        if amount < 100_000_000:
            return b"%d%s" % (amount, unit)
    return b"99999999H"


def decode_timeout(value: bytes) -> float:
    """Seconds, at most `MAX_TIMEOUT_S`; raises GrpcError(INVALID_ARGUMENT) for another grammar.

    A huge value means "as long as possible" and never overflows (CVE-2021-28682 is that crash).
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "malformed grpc-timeout")
    return min(int(match[1]) * _UNIT_S[match[2]], MAX_TIMEOUT_S)
