"""Complete heads cut into their parts by one pattern each: the hot path of receiving.

A head that the patterns do not take as a whole is refused; border.py then says why.
"""

from __future__ import annotations

from typing import Final

from transport.http1 import border, grammar
from transport.http1.errors import Fault
from transport.http1.events import Header

_HTTP_1_0: Final = b"0"


def lex_request(head: bytes, max_count: int) -> tuple[bytes, bytes, list[Header]]:
    """Method, target and fields of a head that ends with its blank line. Names are not lower-cased yet."""
    line = grammar.request_line(head)
    found = _fields(head, line.end(), max_count) if line else None
    if line is None or found is None:
        border.check_head(head, max_count, is_request=True)
        raise Fault("head_malformed")
    method, target = line.groups()
    return method, target, found


def lex_response(head: bytes, max_count: int) -> tuple[int, bool, list[Header]]:
    """Status, whether it is of HTTP/1.0, and fields."""
    line = grammar.status_line(head)
    found = _fields(head, line.end(), max_count) if line else None
    if line is None or found is None:
        border.check_head(head, max_count, is_request=False)
        raise Fault("head_malformed")
    return int(line[2]), line[1] == _HTTP_1_0, found


def lex_trailers(section: bytes, max_count: int) -> list[Header]:
    """The fields of a trailer section that ends with its blank line."""
    found = _fields(b"\r\n" + section, 1, max_count)
    if found is None:
        border.check_line_ends(section, 0)
        border.check_fields(section.split(b"\r\n")[:-2], max_count)
        raise Fault("head_malformed")
    return found


def _fields(head: bytes, start: int, max_count: int) -> list[Header] | None:
    """The fields from the LF at `start` on, or None if a line is not a field.

    Each match is a whole line, and each line ends with a LF: so no line was skipped if the numbers agree.
    """
    found: list[Header] = grammar.fields(head, start)
    if head.count(b"\n") != len(found) + 2:
        return None
    if len(found) > max_count:
        raise Fault("too_many_headers", 431)
    if b" \r" in head or b"\t\r" in head:
        return [(name, value.rstrip(b" \t")) for name, value in found]
    return found
