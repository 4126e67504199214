"""What a head or trailer section may look like, line by line, and what is wrong with one that does not.

The reference codec asks before h11 sees a head; the lean codec asks only for the reason when its patterns
refused one. Faults are found in the order of the octets as far as an incomplete head shows them already, so
that the verdict does not depend on how the input was cut.
"""

from __future__ import annotations

import re
from typing import Final

from transport.http1 import grammar
from transport.http1.errors import Fault
from transport.http1.events import Header

_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]").fullmatch
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_WHITESPACE: Final = (b" ", b"\t")


def check_start(octets: bytes | bytearray, looked_at: int, *, is_request: bool) -> None:
    """What is wrong already with the beginning of a head, of which `looked_at` octets were checked before."""
    if not looked_at:
        _check_first_octet(bytes(octets[:1]), is_request=is_request)
    end_of_line = octets.find(b"\n")
    if end_of_line >= looked_at:
        if octets[end_of_line - 1 : end_of_line] != b"\r":
            raise Fault("bare_line_feed")
        line = bytes(octets[: end_of_line - 1])
        if is_request:
            check_request_line(line)
        else:
            check_status_line(line)
    check_line_ends(octets, looked_at)


def check_line_ends(octets: bytes | bytearray, looked_at: int) -> None:
    """CRLF ends lines and nothing else does."""
    if grammar.bare_line_feed(octets, looked_at):
        raise Fault("bare_line_feed")


def _check_first_octet(octet: bytes, *, is_request: bool) -> None:
    if not is_request:
        if octet != b"H":
            raise Fault("status_line_malformed")
    elif octet in (b"\r", b"\n"):
        raise Fault("leading_line_break")
    elif not b"A" <= octet <= b"Z":
        raise Fault("method_malformed")


def check_request_line(line: bytes) -> None:
    """RFC 9112 3: method, target and version with one space between, no more and no less."""
    if b"\r" in line:
        raise Fault("bare_carriage_return")
    words = line.split(b" ")
    if len(words) != 3:
        raise Fault("request_line_malformed")
    method, target, version = words
    if not grammar.is_method(method):
        raise Fault("method_malformed")
    if not grammar.is_target(target):
        raise Fault("target_malformed")
    if version == b"HTTP/1.0":
        raise Fault("http_1_0", 426)
    if not _VERSION(version):
        raise Fault("request_line_malformed")
    if version != b"HTTP/1.1":
        raise Fault("version_unsupported", 505)


def check_status_line(line: bytes) -> None:
    """RFC 9112 4; without a reason phrase its space may be missing too."""
    if b"\r" in line:
        raise Fault("bare_carriage_return")
    if _VERSION(line[:8]) and line[:8] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Fault("version_unsupported")
    if not grammar.status_line(line + b"\r\n"):
        raise Fault("status_line_malformed")


def check_head(head: bytes, max_count: int, *, is_request: bool) -> list[Header]:
    """A complete head, its blank line included; returns its fields as they came. Raises Fault."""
    check_start(head, 0, is_request=is_request)
    return check_fields(head.split(b"\r\n")[1:-2], max_count)


def check_fields(lines: list[bytes], max_count: int) -> list[Header]:
    """The lines between start line and blank line, or those of a trailer section."""
    if len(lines) > max_count:
        raise Fault("too_many_headers", 431)
    return [_check_field(line, is_first=line is lines[0]) for line in lines]


def _check_field(line: bytes, *, is_first: bool) -> Header:
    if line.startswith(_WHITESPACE):
        raise Fault("whitespace_before_header" if is_first else "obsolete_line_folding")
    name, colon, value = line.partition(b":")
    if not colon:
        raise Fault("header_without_colon")
    if not name:
        raise Fault("header_name_empty")
    if name.endswith(_WHITESPACE):
        raise Fault("whitespace_before_colon")
    if not grammar.is_token(name):
        raise Fault("header_name_malformed")
    if b"\r" in value:
        raise Fault("bare_carriage_return")
    if _BAD_VALUE(value):
        raise Fault("header_value_malformed")
    return name, value.strip(b" \t")
