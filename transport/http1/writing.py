"""Heads on their way out: from HTTP/2's form to the fields of the wire, and those to octets.

A plan settles framing and persistence and is the same for both codecs; encode_head() is the lean one's way to
write it. Nothing that could change a message's meaning gets out: names are tokens, targets and values hold
no control octets, and what frames a message is written here and nowhere else (UnwritableHead otherwise).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from transport.http1 import grammar
from transport.http1.authority import canonical_authority
from transport.http1.errors import CodecMisuse, UnwritableHead
from transport.http1.events import Header
from transport.http1.meaning import CHUNKED, tokens

_CONTROLS: Final = bytes((*range(9), *range(10, 32), 127))
_is_lower_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_is_status = re.compile(rb"[1-5][0-9][0-9]").fullmatch
_SPECIAL: Final = grammar.LOOKED_AT | {b"cookie"}
_CONTENT_EXPECTED: Final = frozenset({b"POST", b"PUT", b"PATCH"})  # RFC 9110 8.6: say that it is empty

_STATUS_LINES: Final = {
    b"%d" % status: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus
}
_BLANK_LINE: Final = b"\r\n"
_MAX_PLAIN: Final = 1024
_plain: set[bytes] = set()  # names seen that are tokens and mean nothing to us


@dataclass(slots=True)
class HeadPlan:
    """A head as it goes onto the wire, and what follows it."""

    start: tuple[bytes, bytes]  # method and target, or status and b""
    fields: list[Header]
    content: int  # octets, or CHUNKED
    upgrade: tuple[bytes, ...]


class _Fields:
    """Outgoing fields without those about the connection, which are known by their values here."""

    def __init__(self, headers: Sequence[Header], first: int) -> None:
        self.kept: list[Header] = []
        self.length: bytes | None = None
        self.host: bytes | None = None
        self.upgrade: tuple[bytes, ...] = ()
        self.has_te_trailers = False
        self.cookies: list[bytes] = []
        keep = self.kept.append
        for field in headers[first:]:
            name = field[0]
            if name in _plain:
                keep(field)
            elif name in _SPECIAL:
                self._take(name, field[1])
            else:
                learn_name(name)
                keep(field)

    def _take(self, name: bytes, value: bytes) -> None:
        match name:
            case b"content-length":
                if self.length is not None or not grammar.is_length(value):
                    raise UnwritableHead(f"content-length is repeated or no number: {value!r}")
                self.length = value
            case b"host":
                self.host = value
            case b"upgrade":
                self.upgrade += tokens(value)
            case b"te":
                self.has_te_trailers = b"trailers" in tokens(value)
            case b"cookie":
                self.cookies.append(value)
            case b"expect":
                self.kept.append((name, value))
            case _:
                pass


def is_plain(name: bytes) -> bool:
    """Whether a name was seen before and means nothing to us, so that its field changes no other."""
    return name in _plain


def learn_name(name: bytes) -> None:
    """Check a name once; the memory is bounded and then each further name is checked each time."""
    if not _is_lower_token(name):
        raise UnwritableHead(f"header name is no lower-case token: {name!r}")
    if len(_plain) < _MAX_PLAIN and len(name) <= 64:
        _plain.add(name)


def _request_start(headers: Sequence[Header]) -> tuple[bytes, bytes, bytes | None, int]:
    """Method, path, authority and how many pseudo-headers there are."""
    method = path = b""
    authority: bytes | None = None
    first = 0
    for name, value in headers:
        if name == b":method":
            method = value
        elif name == b":path":
            path = value
        elif name == b":authority":
            authority = value
        elif name != b":scheme":
            break
        first += 1
    if not grammar.is_method(method) or method == b"CONNECT":
        raise UnwritableHead(f"method cannot be sent over HTTP/1: {method!r}")
    if not grammar.is_target(path) or (path[:1] != b"/" and path != b"*"):
        raise UnwritableHead(f"path cannot be sent over HTTP/1: {path!r}")
    return method, path, authority, first


def plan_request(headers: Sequence[Header], *, end_stream: bool) -> HeadPlan:
    """A request in HTTP/2's form, with at least :method, :path and :authority (or host)."""
    method, path, authority, first = _request_start(headers)
    given = _Fields(headers, first)
    if authority is None:
        authority = given.host
    if not authority:
        raise UnwritableHead("a request without :authority cannot be sent over HTTP/1")
    if canonical_authority(authority) is None:
        raise UnwritableHead(f":authority cannot be sent over HTTP/1: {authority!r}")
    fields = [(b"host", authority), *given.kept]
    if given.cookies:
        fields.append((b"cookie", b"; ".join(given.cookies)))
    options = []
    if given.has_te_trailers:
        fields.append((b"te", b"trailers"))
        options.append(b"te")
    if given.upgrade:
        if end_stream or given.length not in (None, b"0"):
            raise CodecMisuse("an upgrade has no content, and its stream stays open")
        fields.append((b"upgrade", b", ".join(given.upgrade)))
        options.append(b"upgrade")
    if options:
        fields.append((b"connection", b", ".join(options)))
    if given.upgrade:
        return HeadPlan((method, path), fields, 0, given.upgrade)
    is_empty_told = method in _CONTENT_EXPECTED
    content = _frame(fields, given.length, end_stream=end_stream, is_empty_told=is_empty_told)
    return HeadPlan((method, path), fields, content, ())


def plan_response(
    headers: Sequence[Header], *, end_stream: bool, is_to_head: bool, is_last: bool
) -> HeadPlan:
    """A response in HTTP/2's form, 1xx too; `is_last`: the connection ends after it, and it says so."""
    status = headers[0][1] if headers and headers[0][0] == b":status" else b""
    if not _is_status(status):
        raise UnwritableHead(f"no status, or one that is no number from 100 to 599: {status!r}")
    given = _Fields(headers, 1)
    fields = given.kept
    if given.host is not None:
        fields.append((b"host", given.host))
    fields += [(b"cookie", each) for each in given.cookies]
    if status[:1] == b"1":
        if status == b"101":
            fields.append((b"upgrade", b", ".join(given.upgrade)))
            fields.append((b"connection", b"upgrade"))
        return HeadPlan((status, b""), fields, 0, given.upgrade)
    if is_last:
        fields.append((b"connection", b"close"))
    if status == b"204":
        return HeadPlan((status, b""), fields, 0, ())
    if is_to_head or status == b"304":
        if given.length is not None:
            fields.append((b"content-length", given.length))
        return HeadPlan((status, b""), fields, 0, ())
    content = _frame(fields, given.length, end_stream=end_stream, is_empty_told=True)
    return HeadPlan((status, b""), fields, content, ())


def _frame(fields: list[Header], length: bytes | None, *, end_stream: bool, is_empty_told: bool) -> int:
    """Add the field that frames the content; returns its octets, or CHUNKED."""
    if length is not None:
        fields.append((b"content-length", length))
        if end_stream and int(length):
            raise CodecMisuse(f"content-length is {int(length)}, but no content follows")
        return int(length)
    if not end_stream:
        fields.append((b"transfer-encoding", b"chunked"))
        return CHUNKED
    if is_empty_told:
        fields.append((b"content-length", b"0"))
    return 0


def plan_trailers(headers: Sequence[Header]) -> list[Header]:
    """What may go into a trailer section; the rest is dropped."""
    fields = [field for field in headers if grammar.may_be_trailer(field[0])]
    for name, _ in fields:
        if name not in _plain:
            learn_name(name)
    return fields


def start_line(plan: HeadPlan) -> bytes:
    """The first line, without its end."""
    first, target = plan.start
    if target:
        return b"%b %b HTTP/1.1" % (first, target)
    return _STATUS_LINES.get(first) or b"HTTP/1.1 %b " % first


def encode_head(start: bytes, fields: Sequence[Header]) -> bytes:
    """A start line (or what ends before trailers) and its fields, with the blank line."""
    head = b"\r\n".join([start, *map(b": ".join, fields), b"", b""])
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(fields) + 4:
        raise UnwritableHead("a header value holds control octets")
    return head


def encode_without_end(plan: HeadPlan) -> bytes:
    """A head up to its blank line, for `encode_last` to go on with."""
    return encode_head(start_line(plan), plan.fields)[: -len(_BLANK_LINE)]


def encode_last(field: Header) -> bytes:
    """A head's last field, of a plain name, and the blank line."""
    name, value = field
    if len(value.translate(None, _CONTROLS)) != len(value):
        raise UnwritableHead("a header value holds control octets")
    return b"%b: %b\r\n\r\n" % (name, value)


def error_answer(status: int) -> bytes:
    """The answer to what could not be understood; the connection ends after it."""
    upgrade = (b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade, close")
    fields = [*(upgrade if status == 426 else [(b"connection", b"close")]), (b"content-length", b"0")]
    return encode_head(_STATUS_LINES[b"%d" % status], fields)
