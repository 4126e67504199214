"""What the first bytes of a stream say about its protocol (waypoint-facts 1.2). Pure.

On a port of undeclared protocol everything that does not begin like HTTP/2 or an HTTP/1.1 request is plain
TCP; HTTP/1.0 too. Nobody speaks before the client there, so a protocol in which the server does must be
declared. On a port declared HTTP only the version is looked for.
"""

from __future__ import annotations

import enum
import re
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_SNIFFED: Final = 60 * 1024

_REQUEST_LINE: Final = re.compile(rb"[A-Z][A-Z0-9_\-]{0,31} [\x21-\x7e]+ HTTP/1\.1\r\n").match
_MAY_BECOME: Final = re.compile(
    rb"[A-Z][A-Z0-9_\-]{0,31}(?: (?:[\x21-\x7e]+(?: (.{0,9}))?)?)?\Z", re.DOTALL
).match
_VERSION: Final = b"HTTP/1.1\r"


class Verdict(enum.Enum):
    """What the bytes so far mean."""

    MORE = enum.auto()
    HTTP1 = enum.auto()
    HTTP2 = enum.auto()
    TCP = enum.auto()


def sniff(first: bytes | bytearray, *, is_http_declared: bool) -> Verdict:
    """Judge the beginning of a stream; MORE asks for more bytes."""
    if first[: len(PREFACE)] == PREFACE[: len(first)]:
        return Verdict.HTTP2 if len(first) >= len(PREFACE) else Verdict.MORE
    if is_http_declared:
        return Verdict.HTTP1
    if _REQUEST_LINE(first):
        return Verdict.HTTP1
    start = _MAY_BECOME(first) if len(first) < MAX_SNIFFED else None
    if start is not None and _VERSION.startswith(start[1] or b""):
        return Verdict.MORE
    return Verdict.TCP
