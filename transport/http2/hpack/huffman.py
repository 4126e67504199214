"""The Huffman code of HPACK (RFC 7541 5.2 and appendix B).

The code is canonical: codes of one length are consecutive numbers in symbol order, and shorter codes come
first. So the 257 lengths below are the whole of appendix B.

Decoding is a state machine over whole octets. A state is an inner node of the code tree; for each state and
octet one row holds the octets that come out (0 to 2; codes have 5 bits at least) and the next state. Rows
are made when a state is first met: 256 rows exist at most, a few dozen in practice.
"""

from __future__ import annotations

from typing import Final

from transport.http2.hpack.table import HpackError

_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END_OF_STRING: Final = 256
_DEAD: Final = -1  # reached by the EOS code only, which must not be decoded


def _codes() -> list[tuple[int, int]]:
    """(code, length) per symbol, derived from the lengths."""
    codes = [(0, 0)] * 257
    code = previous = 0
    for symbol in sorted(range(257), key=_LENGTHS.__getitem__):
        code <<= _LENGTHS[symbol] - previous
        previous = _LENGTHS[symbol]
        codes[symbol] = (code, previous)
        code += 1
    return codes


_CODES: Final = _codes()


def _tree() -> tuple[list[list[int]], frozenset[int]]:
    """Inner nodes as [child for 0, child for 1], a leaf as ~symbol; and the nodes where a string may end."""
    nodes = [[0, 0]]
    for symbol, (code, length) in enumerate(_CODES):
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes.append([0, 0])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
    accepting, node = [0], 0
    for _ in range(7):  # padding: up to 7 bits, all ones
        node = nodes[node][1]
        accepting.append(node)
    return nodes, frozenset(accepting)


_NODES, _ACCEPTING = _tree()
_Row = tuple[list[bytes], list[int]]
_ROWS: Final[dict[int, _Row]] = {}


def _row(state: int) -> _Row:
    """What each octet makes in this state: octets out, next state."""
    emitted: list[bytes] = []
    following: list[int] = []
    for octet in range(256):
        node, out = state, bytearray()
        for shift in range(7, -1, -1):
            node = _NODES[node][octet >> shift & 1]
            if node < 0:
                if ~node == _END_OF_STRING:
                    node = _DEAD
                    break
                out.append(~node)
                node = 0
        emitted.append(bytes(out))
        following.append(node)
    row = _ROWS[state] = emitted, following
    return row


def decode(data: bytes) -> bytes:
    """The string behind these octets. Raises HpackError for EOS in the string and for wrong padding (5.2)."""
    out: list[bytes] = []
    state = 0
    for octet in data:
        row = _ROWS.get(state)
        if row is None:
            if state == _DEAD:
                break
            row = _row(state)
        out.append(row[0][octet])
        state = row[1][octet]
    if state not in _ACCEPTING:
        raise HpackError("huffman string with EOS or wrong padding")
    return b"".join(out)


def encode(data: bytes) -> bytes:
    """The shortest octets for this string, padded with ones."""
    bits = length = 0
    codes = _CODES
    for octet in data:
        code, size = codes[octet]
        bits = bits << size | code
        length += size
    padding = -length % 8
    return (bits << padding | (1 << padding) - 1).to_bytes((length + 7) // 8, "big")


def encoded_bytes(data: bytes) -> int:
    """How many octets encode() would make."""
    return (sum(map(_LENGTHS.__getitem__, data)) + 7) // 8
