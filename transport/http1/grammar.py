"""Octets of HTTP/1 (RFC 9112 2-5, 7.1), and the sets of header names that mean something to a codec.

No input makes a pattern slow: runs of one class never go back (possessive), and a group that repeats starts
with an octet that cannot stand behind it. Groups themselves are not possessive: CPython 3.11.2,
which is Debian 12's, then matches the half of a group (`(?:;b++)*+c` takes `;c`).
"""

from __future__ import annotations

import re
from typing import Final

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSIONS: Final = rb"(?:;" + TOKEN + rb"++(?:=(?:" + TOKEN + rb"++|" + _QUOTED + rb"))?)*"
_SIZE_LINE: Final = rb"([0-9A-Fa-f]{1,15}+)(" + _EXTENSIONS + rb")\r\n"

blank_line = re.compile(rb"\r\n\r\n").search
bare_line_feed = re.compile(rb"(?<!\r)\n").search
is_token = re.compile(TOKEN + rb"+").fullmatch
is_method = re.compile(rb"[A-Z][A-Z0-9_\-]{0,31}").fullmatch
is_target = re.compile(rb"[\x21-\x7e]+").fullmatch
is_length = re.compile(rb"[0-9]{1,18}").fullmatch

# Start lines, without their ends.
request_line = re.compile(rb"([A-Z][A-Z0-9_\-]{0,31}+) ([\x21-\x7e]++) HTTP/1\.1\r(?=\n)").match
status_line = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r(?=\n)").match
first_chunk = re.compile(_SIZE_LINE).match
next_chunk = re.compile(rb"\r\n" + _SIZE_LINE).match

# What frames a message or is about the connection. None of it is ever passed on; the codec writes its own.
CONNECTION_NAMES: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te",
        b"http2-settings",
    }
)  # fmt: skip
LOOKED_AT: Final = CONNECTION_NAMES | {b"host", b"content-length", b"expect"}

# What may not come (or be sent) after the content, since it frames, routes, authenticates or describes it
# (RFC 9110 6.5.1), or since a policy may have been decided by its absence.
_NOT_IN_TRAILERS: Final = LOOKED_AT | {
    b"trailer", b"authorization", b"proxy-authorization", b"proxy-authenticate", b"www-authenticate",
    b"authentication-info", b"proxy-authentication-info", b"cookie", b"set-cookie", b"cache-control",
    b"pragma", b"range", b"max-forwards", b"content-encoding", b"content-type", b"content-range",
    b"content-location", b"age", b"expires", b"date", b"location", b"retry-after", b"vary", b"warning",
    b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"forwarded",
    b"via", b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"origin",
}  # fmt: skip
_NOT_IN_TRAILERS_PREFIXES: Final = (
    b"x-forwarded-",
    b"x-envoy-",
    b"x-istio-",
    b"x-b3-",
    b"access-control-",
    b":",
)


def may_be_trailer(name: bytes) -> bool:
    """Whether a field of this (lower-case) name means in a trailer section what it says."""
    return name not in _NOT_IN_TRAILERS and not name.startswith(_NOT_IN_TRAILERS_PREFIXES)
