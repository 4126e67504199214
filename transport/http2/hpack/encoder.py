"""HPACK encoding that pays off on a long connection with many like streams.

What repeats is put into the dynamic table once and costs an octet afterwards. What is new each time (trace
ids, the client's address) would push the rest out of the table, so it goes as a plain literal; only its
name is put there, with the first value. Paths and the like are indexed when the same value comes a second
time. Secrets are never indexed by anyone (7.1.3). Strings are Huffman-coded only where that is paid once:
on insertion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from transport.http2.events import SECRETS, Header
from transport.http2.hpack import huffman
from transport.http2.hpack.table import (
    DEFAULT_TABLE_BYTES,
    STATIC_COUNT,
    STATIC_NAMES,
    STATIC_PAIRS,
    entry_bytes,
)

_UNIQUE: Final = frozenset(
    {
        b"forwarded",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-forwarded-for",
        b"content-length",
        b"date",
        b"age",
        b"x-envoy-upstream-service-time",
    }
)
_VOLATILE: Final = frozenset(
    {
        b":path",
        b"etag",
        b"if-none-match",
        b"if-modified-since",
        b"last-modified",
        b"location",
        b"referer",
        b"range",
    }
)
_REMEMBERED_VOLATILE: Final = 128
_MAX_INDEXED_SHARE: Final = 2  # an entry over 1/2 of the table is not worth what it evicts

_STATIC_OCTETS: Final = {header: bytes([0x80 | index]) for header, index in STATIC_PAIRS.items()}


def encode_integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    """An integer (5.1) behind the pattern in its first octet."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    out = bytearray((pattern | limit,))
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _plain(string: bytes) -> bytes:
    size = len(string)
    return bytes((size,)) + string if size < 0x7F else encode_integer(size, 7, 0) + string


def _shortest(string: bytes) -> bytes:
    if huffman.encoded_bytes(string) >= len(string):
        return _plain(string)
    coded = huffman.encode(string)
    return encode_integer(len(coded), 7, 0x80) + coded


class Encoder:
    """One direction's encoding state. An entry is known by its number since birth; its index follows."""

    def __init__(self) -> None:
        self._pairs: dict[Header, int] = {}
        self._names: dict[bytes, int] = {}
        self._entries: deque[Header] = deque()  # oldest first
        self._inserted = 0
        self._table_bytes = 0
        self._table_limit = DEFAULT_TABLE_BYTES
        self._size_updates: list[int] = []
        self._seen_volatile: dict[Header, None] = {}
        # Octets that stay right until the next insertion: of whole fields, or of a unique field's name
        self._ready: dict[Header | bytes, bytes] = {}

    def limit_table(self, peer_limit: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE. The next block announces what we make of it (4.2)."""
        limit = min(peer_limit, DEFAULT_TABLE_BYTES)
        if limit == self._table_limit:
            return
        if self._size_updates and limit > min(self._size_updates):
            self._size_updates = [min(self._size_updates), limit]  # the smallest in between, then the last
        else:
            self._size_updates = [limit]
        self._table_limit = limit
        self._evict()

    def encode(self, headers: Sequence[Header]) -> bytes:
        """One complete block."""
        fields: list[bytes | None] = list(map(self._ready.get, headers))
        if None in fields:
            inserted = self._inserted
            for _ in range(fields.count(None)):
                place = fields.index(None)
                fields[place] = self._field(headers[place])
                if self._inserted != inserted:  # that moves all indices behind it
                    fields[place + 1 :] = map(self._field, headers[place + 1 :])
                    break
        block: bytes = b"".join(fields)  # type: ignore[arg-type]
        if self._size_updates:
            block = b"".join(encode_integer(size, 5, 0x20) for size in self._size_updates) + block
            self._size_updates = []
        return block

    def _field(self, header: Header) -> bytes:
        number = self._pairs.get(header)
        if number is not None:
            octets = encode_integer(STATIC_COUNT + self._inserted - number, 7, 0x80)
        else:
            static = _STATIC_OCTETS.get(header)
            if static is None:
                return self._literal(header)
            octets = static
        self._ready[header] = octets
        return octets

    def _literal(self, header: Header) -> bytes:
        name, value = header
        prefix = self._ready.get(name)
        if prefix is not None:
            return prefix + _plain(value)
        number = self._names.get(name)
        index = STATIC_NAMES.get(name, 0) if number is None else STATIC_COUNT + self._inserted - number
        if name in SECRETS:
            return encode_integer(index, 4, 0x10) + (b"" if index else _plain(name)) + _plain(value)
        if not self._is_worth_indexing(header, is_name_known=index > 0):
            prefix = encode_integer(index, 4, 0x00) + (b"" if index else _plain(name))
            if name in _UNIQUE:
                self._ready[name] = prefix
            return prefix + _plain(value)
        self._insert(header)
        return encode_integer(index, 6, 0x40) + (b"" if index else _shortest(name)) + _shortest(value)

    def _is_worth_indexing(self, header: Header, *, is_name_known: bool) -> bool:
        name = header[0]
        if entry_bytes(header) * _MAX_INDEXED_SHARE > self._table_limit:
            return False
        if name in _UNIQUE:
            return not is_name_known
        if name in _VOLATILE:
            if header in self._seen_volatile:
                return True
            if len(self._seen_volatile) >= _REMEMBERED_VOLATILE:
                self._seen_volatile.clear()
            self._seen_volatile[header] = None
            return False
        return True

    def _insert(self, header: Header) -> None:
        self._ready.clear()
        self._entries.append(header)
        self._inserted += 1
        self._pairs[header] = self._names[header[0]] = self._inserted - 1
        self._table_bytes += entry_bytes(header)
        if self._table_bytes > self._table_limit:
            self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._table_limit:
            number = self._inserted - len(self._entries)
            header = self._entries.popleft()
            self._ready.clear()
            self._table_bytes -= entry_bytes(header)
            if self._pairs.get(header) == number:
                del self._pairs[header]
            if self._names.get(header[0]) == number:
                del self._names[header[0]]
