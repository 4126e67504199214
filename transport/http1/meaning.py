"""What a lexed head means: target, framing, persistence (RFC 9112 3, 6, 9; RFC 9110 7). Both codecs ask here.

The result is HTTP/2's form of the message. Connection's nominations are not followed: what is about the
connection is known by name and removed always, and a peer cannot make anything else disappear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transport.http1 import grammar
from transport.http1.authority import canonical_authority
from transport.http1.errors import Fault
from transport.http1.events import Header
from transport.http1.lexing import Fields

CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2

_ABSOLUTE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?]*)(.*)").fullmatch
_NOT_AN_UPGRADE: Final = frozenset({b"h2c", b"h2", b""})  # HTTP/2 begins with its preface, never like this


@dataclass(slots=True)
class RequestHead:
    """A request as HTTP/2 has it, and what the codec keeps of it."""

    headers: list[Header]
    content: int  # octets, or CHUNKED
    keeps_alive: bool
    is_head: bool
    expects_continue: bool
    upgrade: tuple[bytes, ...]  # protocols it offers to change to, lower-case


@dataclass(slots=True)
class ResponseHead:
    """A response as HTTP/2 has it, and what the codec keeps of it."""

    status: int
    headers: list[Header]
    content: int  # octets, CHUNKED or UNTIL_CLOSE
    keeps_alive: bool


def read_request(method: bytes, target: bytes, fields: Fields, scheme: bytes) -> RequestHead:
    """Judge a request."""
    plain, special = fields
    host: bytes | None = None
    for name, value in special:
        if name == b"host":
            if host is not None:
                raise Fault("host_repeated")
            host = value
    authority = _check_host(method, host)
    path = target
    if target[0] != 0x2F or b"#" in target:
        scheme, path = _read_target(method, target, authority, scheme)
    headers = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)]
    headers += plain
    if len(special) == 1:  # just Host
        return RequestHead(headers, 0, True, method == b"HEAD", False, ())
    about = _About(special)
    if about.expects_other:
        raise Fault("expectation_unknown", 417)
    content = about.content(0)
    upgrade: tuple[bytes, ...] = ()
    if about.upgrade and b"upgrade" in about.connection:
        upgrade = tuple(each for each in about.upgrade if each not in _NOT_AN_UPGRADE)
        if upgrade and content:
            raise Fault("upgrade_with_content")
    headers += about.to_keep
    if about.has_te_trailers:
        headers.append((b"te", b"trailers"))
    if upgrade:
        headers.append((b"upgrade", b", ".join(upgrade)))
    return RequestHead(
        headers, content, b"close" not in about.connection, method == b"HEAD", about.expects_continue, upgrade
    )


def read_response(
    status: int, is_1_0: bool, fields: Fields, *, is_to_head: bool, offered: tuple[bytes, ...]
) -> ResponseHead:
    """Judge a response to a request that was HEAD or not and `offered` these protocols."""
    plain, special = fields
    headers = [(b":status", b"%d" % status), *plain]
    about = _About(special)
    content = about.content(UNTIL_CLOSE)
    if is_1_0 and about.transfer_encoding is not None:
        raise Fault("transfer_encoding_in_http_1_0")
    keeps_alive = not is_1_0 and b"close" not in about.connection
    if status < 200 or status == 204:
        if content > 0 or content == CHUNKED:
            raise Fault("content_not_allowed")
        if status == 101:
            if b"upgrade" not in about.connection or not about.upgrade or not {*about.upgrade} <= {*offered}:
                raise Fault("upgrade_not_requested")
            headers.append((b"upgrade", b", ".join(about.upgrade)))
        return ResponseHead(status, headers, 0, keeps_alive)
    headers += about.to_keep
    if is_to_head or status == 304:
        return ResponseHead(status, headers, 0, keeps_alive)
    return ResponseHead(status, headers, content, keeps_alive and content != UNTIL_CLOSE)


def read_trailers(fields: Fields) -> list[Header]:
    """What may be passed on of a trailer section; the rest is dropped."""
    return [field for field in fields[0] if grammar.may_be_trailer(field[0])]


def _check_host(method: bytes, host: bytes | None) -> bytes:
    if method == b"CONNECT":
        raise Fault("connect_not_supported")
    if not host:
        raise Fault("host_missing" if host is None else "host_empty")
    authority = canonical_authority(host)
    if authority is None:
        raise Fault("host_malformed")
    return authority


class _About:
    """The fields that say how a message is framed and what becomes of the connection."""

    def __init__(self, fields: Sequence[Header]) -> None:
        self.length: bytes | None = None
        self.transfer_encoding: bytes | None = None
        self.connection: frozenset[bytes] = frozenset()
        self.upgrade: tuple[bytes, ...] = ()
        self.has_te_trailers = False
        self.expects_continue = False
        self.expects_other = False
        self.to_keep: list[Header] = []
        for name, value in fields:
            self._take(name, value)

    def _take(self, name: bytes, value: bytes) -> None:
        match name:
            case b"content-length":
                if self.length is not None:
                    raise Fault("content_length_repeated")
                if not grammar.is_length(value):
                    raise Fault("content_length_malformed")
                self.length = value
                self.to_keep.append((name, value))
            case b"transfer-encoding":
                if self.transfer_encoding is not None:
                    raise Fault("transfer_encoding_repeated")
                self.transfer_encoding = value
            case b"connection":
                self.connection |= frozenset(tokens(value))
            case b"upgrade":
                self.upgrade += tokens(value)
            case b"te":
                self.has_te_trailers = self.has_te_trailers or b"trailers" in tokens(value)
            case b"expect":
                self.expects_continue = value.lower() == b"100-continue"
                self.expects_other = self.expects_other or not self.expects_continue
                if not any(kept == b"expect" for kept, _ in self.to_keep):
                    self.to_keep.append((name, value))
            case _:
                pass  # Keep-Alive, Proxy-Connection, HTTP2-Settings

    def content(self, neither: int) -> int:
        """How long the content is; `neither` if no field says so."""
        if self.transfer_encoding is not None:
            if self.length is not None:
                raise Fault("content_length_and_transfer_encoding")
            if self.transfer_encoding.lower() != b"chunked":
                raise Fault("transfer_coding_unsupported", 501)
            return CHUNKED
        return neither if self.length is None else int(self.length)


def tokens(value: bytes) -> tuple[bytes, ...]:
    """The members of a comma-separated list, lower-case."""
    return tuple(member for each in value.lower().split(b",") if (member := each.strip(b" \t")))


def _read_target(method: bytes, target: bytes, host: bytes, scheme: bytes) -> tuple[bytes, bytes]:
    """Scheme and path of a target that is not simply a path (RFC 9112 3.2). The fragment goes."""
    target = target.partition(b"#")[0]
    if target[:1] == b"/":
        return scheme, target
    if target == b"*":
        if method != b"OPTIONS":
            raise Fault("asterisk_without_options")
        return scheme, target
    absolute = _ABSOLUTE(target)
    if absolute is None:
        raise Fault("target_form_unsupported")
    scheme, authority, path = absolute.groups()
    scheme = scheme.lower()
    if scheme not in (b"http", b"https"):
        raise Fault("scheme_unknown")
    if b"@" in authority:
        raise Fault("authority_has_userinfo")
    canonical = canonical_authority(authority)
    if canonical is None:
        raise Fault("authority_malformed")
    if canonical.lower() != host.lower():
        raise Fault("host_differs_from_target")
    if not path and method == b"OPTIONS":
        return scheme, b"*"
    return scheme, path if path[:1] == b"/" else b"/" + path
