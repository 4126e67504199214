"""Complete heads cut into their parts: the hot path of receiving.

Theory of operation. A head is split at its CRLFs. If it holds as many control octets as those have, there is
no other one in it, wherever: no bare CR or LF, no NUL. Then each line needs but a colon and, before it, a
name that is a token, and names are looked up among those seen before. What does not fit is refused; border.py
says why. (A pattern that finds all fields at once takes half as long again.)
"""

from __future__ import annotations

from typing import Final, TypeAlias

from transport.http1 import border, grammar
from transport.http1.errors import Fault
from transport.http1.events import Header

# Fields with lower-case names: those that only pass through, and those that grammar.LOOKED_AT names.
Fields: TypeAlias = tuple[list[Header], list[Header]]

_CONTROLS: Final = bytes((*range(9), *range(10, 32), 127))
_HTTP_1_0: Final = b"0"
_MAX_NAMES: Final = 2048
_names: dict[bytes, bytes] = {}  # names as they came -> lower-case; only tokens, bounded


def lex_request(head: bytes, max_count: int) -> tuple[bytes, bytes, Fields]:
    """Method, target and fields of a head that ends with its blank line."""
    line = grammar.request_line(head)
    found = _fields(head, 1, max_count) if line else None
    if line is None or found is None:
        border.check_head(head, max_count, is_request=True)
        raise Fault("head_malformed")
    return line[1], line[2], found


def lex_response(head: bytes, max_count: int) -> tuple[int, bool, Fields]:
    """Status, whether it is of HTTP/1.0, and fields."""
    line = grammar.status_line(head)
    found = _fields(head, 1, max_count) if line else None
    if line is None or found is None:
        border.check_head(head, max_count, is_request=False)
        raise Fault("head_malformed")
    return int(line[2]), line[1] == _HTTP_1_0, found


def lex_trailers(section: bytes, max_count: int) -> Fields:
    """The fields of a trailer section that ends with its blank line."""
    found = _fields(section, 0, max_count)
    if found is None:
        border.check_line_ends(section, 0)
        border.check_fields(section.split(b"\r\n")[:-2], max_count)
        raise Fault("head_malformed")
    return found


def sort_fields(fields: list[Header]) -> Fields:
    """Fields that were cut apart elsewhere."""
    lowered = [(name.lower(), value) for name, value in fields]
    return (
        [field for field in lowered if field[0] not in grammar.LOOKED_AT],
        [field for field in lowered if field[0] in grammar.LOOKED_AT],
    )


def _fields(head: bytes, first: int, max_count: int) -> Fields | None:
    """The fields from line `first` on, or None if a line is not a field."""
    lines = head.split(b"\r\n")
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines) - 2:
        return None
    if len(lines) - first > max_count + 2:
        raise Fault("too_many_headers", 431)
    plain: list[Header] = []
    special: list[Header] = []
    for line in lines[first:-2]:
        name, colon, value = line.partition(b":")
        lowered = _names.get(name)
        if not colon or (lowered is None and not (lowered := _learn(name))):
            return None
        if lowered not in grammar.LOOKED_AT:
            plain.append((lowered, value.strip(b" \t")))
        else:
            special.append((lowered, value.strip(b" \t")))
    return plain, special


def _learn(name: bytes) -> bytes:
    """A name in lower case, remembered if there is room; empty if it is no token."""
    if not grammar.is_token(name):
        return b""
    lowered = name.lower()
    if len(name) <= 64 and len(_names) < _MAX_NAMES:
        _names[name] = lowered
    return lowered
