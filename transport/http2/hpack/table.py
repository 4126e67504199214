"""The tables of HPACK: the static one (RFC 7541 appendix A) and the dynamic one's arithmetic (section 4)."""

from __future__ import annotations

from typing import Final

from transport.http2.events import Header

ENTRY_OVERHEAD: Final = 32  # 4.1: what an entry counts beyond its octets
DEFAULT_TABLE_BYTES: Final = 4096

_NO_ENTRY: Final[Header] = (b"", b"")  # index 0 is not used; the decoder refuses it before it looks
STATIC: Final[tuple[Header, ...]] = (
    _NO_ENTRY,
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
STATIC_COUNT: Final = len(STATIC) - 1
STATIC_PAIRS: Final[dict[Header, int]] = {STATIC[index]: index for index in range(STATIC_COUNT, 0, -1)}
STATIC_NAMES: Final[dict[bytes, int]] = {STATIC[index][0]: index for index in range(STATIC_COUNT, 0, -1)}


class HpackError(Exception):
    """A header block that cannot be decoded: COMPRESSION_ERROR for the whole connection (RFC 9113 4.3)."""


def entry_bytes(header: Header) -> int:
    """What a header counts in a table and in a header list."""
    return len(header[0]) + len(header[1]) + ENTRY_OVERHEAD
