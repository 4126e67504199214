"""HPACK decoding with bounded effort, and a cache of whole blocks.

A block that inserts nothing decodes to the same list until the dynamic table changes, so its result is kept
under its octets and handed out again: the usual case for a peer that repeats a response or a request. A block
with a secret in it, by its name or because the peer says so (7.1.3), is not kept. A header list over the
limits is still decoded to its end, because the table must stay in step with the peer's, but nothing of it is
kept: the fault is the stream's, not the connection's.
"""

from __future__ import annotations

from typing import Final

from transport.http2.events import SECRETS, Header, HeaderList
from transport.http2.headers import RequestHead, ResponseHead
from transport.http2.hpack import huffman
from transport.http2.hpack.table import DEFAULT_TABLE_BYTES, STATIC, STATIC_COUNT, HpackError, entry_bytes

_CACHED_BLOCKS: Final = 64
_MAX_CACHED_BYTES: Final = 1024
_MAX_INTEGER_OCTETS: Final = 4  # 28 bits beyond the prefix: more than any length or index we accept


class HeaderBlock:
    """One decoded block. `excess` names the limit that it passed ("" if none; `headers` is cut then).

    What the codec concluded from the headers, and for which question, is kept with a cached block.
    """

    __slots__ = ("excess", "headers", "request", "response")

    def __init__(self, headers: list[Header], excess: str) -> None:
        self.headers = headers
        self.excess = excess
        self.request: tuple[bool, RequestHead] | None = None
        self.response: tuple[bool, RequestHead, ResponseHead] | None = None


def decode_integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer whose prefix octet, before `position`, was all ones (5.1): (value, next position)."""
    value, shift = prefix, 0
    for octet in block[position : position + _MAX_INTEGER_OCTETS]:
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
    raise HpackError("integer too long or cut off")


class Decoder:
    """One direction's decoding state."""

    def __init__(self, max_list_bytes: int, max_list_count: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._max_list_count = max_list_count
        self._entries: list[Header] = []  # oldest first: index 62 is the last one
        self._table_bytes = 0
        self._table_limit = DEFAULT_TABLE_BYTES
        self._cache: dict[bytes, HeaderBlock] = {}

    def decode(self, block: bytes) -> HeaderBlock:
        """Decode a complete block. Raises HpackError, after which the decoder is of no more use."""
        cached = self._cache.get(block)
        if cached is not None:
            return cached
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("block cut off, or index beyond the table") from None

    def _decode(self, block: bytes) -> HeaderBlock:  # noqa: C901 - one loop over octets; calls per field cost
        headers: list[Header] = []
        entries = self._entries
        room = self._max_list_bytes
        excess = ""
        is_cacheable = True
        position, end = 0, len(block)
        while position < end:
            first = block[position]
            position += 1
            if first & 0x80:  # 6.1: indexed
                index = first & 0x7F
                if index == 0x7F:
                    index, position = decode_integer(block, position, 0x7F)
                header = STATIC[index] if index <= STATIC_COUNT else entries[STATIC_COUNT - index]
                if index == 0:
                    raise HpackError("index 0")
            elif first & 0xE0 == 0x20:  # 6.3: table size update
                if headers or excess:
                    raise HpackError("table size update behind a field")
                size = first & 0x1F
                if size == 0x1F:
                    size, position = decode_integer(block, position, 0x1F)
                self._resize(size)
                is_cacheable = False
                continue
            else:  # 6.2: literal, with incremental indexing or without
                mask = 0x3F if first & 0x40 else 0x0F
                if first & 0x50:  # inserts, or is a secret
                    is_cacheable = False
                index = first & mask
                if index == mask:
                    index, position = decode_integer(block, position, mask)
                if index == 0:
                    name, position = self._string(block, position)
                elif index <= STATIC_COUNT:
                    name = STATIC[index][0]
                else:
                    name = entries[STATIC_COUNT - index][0]
                # The string of _string(), inline: this is the hot part of a block with unique values.
                first_of_value = block[position]
                length = first_of_value & 0x7F
                position += 1
                if length == 0x7F:
                    length, position = decode_integer(block, position, 0x7F)
                value = block[position : position + length]
                position += length
                if position > end:
                    raise HpackError("string longer than its block")
                if first_of_value & 0x80:
                    value = huffman.decode(value)
                header = (name, value)
                if name in SECRETS:
                    is_cacheable = False
                if mask == 0x3F:
                    self._insert(header)
            room -= len(header[0]) + len(header[1]) + 32
            if room >= 0 and not excess:
                headers.append(header)
            elif not excess:
                excess = "header_list_too_large"
        if len(headers) > self._max_list_count and not excess:
            excess = "too_many_headers"
        is_cacheable = is_cacheable and not excess and end <= _MAX_CACHED_BYTES
        result = HeaderBlock(HeaderList(headers) if is_cacheable else headers, excess)
        if is_cacheable:
            if len(self._cache) >= _CACHED_BLOCKS:
                self._cache.clear()
            self._cache[block] = result
        return result

    def _string(self, block: bytes, position: int) -> tuple[bytes, int]:
        """A string literal (5.2) and the position behind it."""
        first = block[position]
        length = first & 0x7F
        position += 1
        if length == 0x7F:
            length, position = decode_integer(block, position, 0x7F)
        raw = block[position : position + length]
        if len(raw) != length:
            raise HpackError("string longer than its block")
        return (huffman.decode(raw) if first & 0x80 else raw), position + length

    def _insert(self, header: Header) -> None:
        self._cache.clear()
        self._entries.append(header)
        self._table_bytes += entry_bytes(header)
        if self._table_bytes > self._table_limit:
            self._evict()

    def _resize(self, limit: int) -> None:
        if limit > DEFAULT_TABLE_BYTES:
            raise HpackError("table size beyond what we allow")
        self._cache.clear()
        self._table_limit = limit
        self._evict()

    def _evict(self) -> None:
        """Drop the oldest until the rest fits; an entry larger than the table empties it (4.4)."""
        count = 0
        for header in self._entries:
            if self._table_bytes <= self._table_limit:
                break
            self._table_bytes -= entry_bytes(header)
            count += 1
        del self._entries[:count]
