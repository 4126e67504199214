"""What makes a header list a valid request, response or trailer section (RFC 9113 8, and stricter).

Both codecs judge by these tables, so that one border has one strictness. A verdict is either a head (what
the codec itself must know of the message) or a `HeadFault`: who is to blame is clear by then, so all that
is left to say is how a server answers. A list that is malformed in form gets RST_STREAM(PROTOCOL_ERROR)
(status 0); one that is well formed but means nothing acceptable gets 400, a list over the limits 431.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transport.http2.events import Header

NO_LENGTH: Final = -1

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_BAD_OCTET: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_TARGET_BAD: Final = re.compile(rb"[\x00-\x20\x7f]").search
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_LENGTH: Final = re.compile(rb"[0-9]{1,18}").fullmatch
_STATUS: Final = re.compile(rb"[1-5][0-9][0-9]").fullmatch
_COLON: Final = 0x3A
_MAX_AUTHORITY: Final = 255  # longer ones have crashed proxies (CVE-2024-32475), and no name is that long

_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
_LOOKED_AT: Final = _CONNECTION_SPECIFIC | {b"te", b"content-length", b"host"}
_KNOWN_GOOD_NAMES: Final = frozenset(
    {
        b"accept", b"accept-encoding", b"accept-language", b"authorization", b"baggage", b"cache-control",
        b"content-encoding", b"content-type", b"cookie", b"date", b"etag", b"forwarded", b"grpc-encoding",
        b"grpc-accept-encoding", b"grpc-message", b"grpc-status", b"grpc-timeout", b"location", b"origin",
        b"referer", b"server", b"set-cookie", b"traceparent", b"tracestate", b"user-agent", b"vary", b"via",
        b"x-b3-sampled", b"x-b3-spanid", b"x-b3-traceid", b"x-forwarded-client-cert", b"x-forwarded-for",
        b"x-forwarded-network", b"x-forwarded-proto", b"x-istio-source", b"x-request-id",
    }
)  # fmt: skip
_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})


class HeadFault(Exception):
    """Why a header list is refused: the status a server answers with (0: reset) and a snake_case reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a codec keeps of a request: framing of its body and of the response's."""

    content_length: int  # NO_LENGTH if not given
    is_connect: bool  # plain CONNECT: a tunnel once it is answered with 2xx
    is_head: bool


CONNECT_HEAD: Final = RequestHead(NO_LENGTH, is_connect=True, is_head=False)
HEAD_HEAD: Final = RequestHead(NO_LENGTH, is_connect=False, is_head=True)
ORDINARY_HEAD: Final = RequestHead(NO_LENGTH, is_connect=False, is_head=False)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a codec keeps of a response."""

    status: int
    content_length: int

    @property
    def is_informational(self) -> bool:
        return self.status < 200


def _check_fields(headers: Sequence[Header], first: int) -> int:
    """The regular fields from `first` on; returns the content length. Raises HeadFault."""
    content_length = NO_LENGTH
    for name, value in headers[first:] if first else headers:
        if name not in _KNOWN_GOOD_NAMES:
            if name in _LOOKED_AT:
                if name in _CONNECTION_SPECIFIC:
                    raise HeadFault(0, "connection_specific_header")
                if name == b"te" and value.lower() != b"trailers":
                    raise HeadFault(0, "te_other_than_trailers")
                if name == b"content-length":
                    if content_length != NO_LENGTH:
                        raise HeadFault(400, "content_length_repeated")
                    if not _LENGTH(value):
                        raise HeadFault(400, "content_length_malformed")
                    content_length = int(value)
            elif not _NAME(name):
                pseudo = name[:1] == b":"
                raise HeadFault(0, "pseudo_header_misplaced" if pseudo else "header_name_malformed")
        if _BAD_OCTET(value) or value.strip(b" \t") != value:
            raise HeadFault(0, "header_value_malformed")
    return content_length


def _pseudo(headers: Sequence[Header], allowed: frozenset[bytes]) -> dict[bytes, bytes]:
    """The pseudo-headers at the front of the list (8.3). Raises HeadFault."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if not name or name[0] != _COLON:
            break
        if name not in allowed:
            raise HeadFault(0, "pseudo_header_unknown")
        if name in found:
            raise HeadFault(0, "pseudo_header_repeated")
        found[name] = value
    return found


def _check_authority(authority: bytes) -> None:
    if len(authority) > _MAX_AUTHORITY:
        raise HeadFault(400, "authority_too_long")
    if _TARGET_BAD(authority):
        raise HeadFault(400, "authority_malformed")
    if b"@" in authority:
        raise HeadFault(400, "authority_has_userinfo")


def _check_host(headers: Sequence[Header], first: int, authority: bytes | None) -> None:
    """Host is allowed beside :authority if it says the same, and instead of it (8.3.1)."""
    hosts = [value for name, value in headers[first:] if name == b"host"]
    if len(hosts) > 1:
        raise HeadFault(400, "host_repeated")
    if hosts and hosts[0]:
        _check_authority(hosts[0])
        if authority is not None and hosts[0].lower() != authority.lower():
            raise HeadFault(400, "host_differs_from_authority")
    elif hosts or authority is None:
        raise HeadFault(400, "authority_missing")


def check_request(
    headers: Sequence[Header], *, end_stream: bool, is_connect_protocol_enabled: bool
) -> RequestHead:
    """Judge a request's header list (8.3.1, 8.5; RFC 8441). Raises HeadFault."""
    pseudo = _pseudo(headers, _REQUEST_PSEUDO)
    first = len(pseudo)
    content_length = _check_fields(headers, first)
    method = pseudo.get(b":method")
    if method is None:
        raise HeadFault(0, "method_missing")
    if not _METHOD(method):
        raise HeadFault(400, "method_malformed")
    authority = pseudo.get(b":authority")
    if authority is not None:
        _check_authority(authority)
    is_extended = b":protocol" in pseudo
    if is_extended and (method != b"CONNECT" or not is_connect_protocol_enabled):
        raise HeadFault(0, "protocol_not_enabled")
    if method == b"CONNECT" and not is_extended:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise HeadFault(0, "connect_with_scheme_or_path")
        if not authority:
            raise HeadFault(400, "authority_missing")
        return CONNECT_HEAD
    _check_target(pseudo, method)
    _check_host(headers, first, authority)
    if end_stream and content_length > 0:
        raise HeadFault(400, "content_length_without_body")
    if content_length != NO_LENGTH:
        return RequestHead(content_length, is_connect=False, is_head=method == b"HEAD")
    return HEAD_HEAD if method == b"HEAD" else ORDINARY_HEAD


def _check_target(pseudo: dict[bytes, bytes], method: bytes) -> None:
    """:scheme and :path of anything but a plain CONNECT."""
    scheme = pseudo.get(b":scheme")
    path = pseudo.get(b":path")
    if scheme is None or not path:
        raise HeadFault(0, "scheme_or_path_missing")
    if scheme.lower() not in (b"http", b"https"):
        raise HeadFault(400, "scheme_unknown")
    if path[0] != 0x2F and not (path == b"*" and method == b"OPTIONS"):
        raise HeadFault(400, "path_without_slash")
    if _TARGET_BAD(path) or b"#" in path:
        raise HeadFault(400, "path_malformed")
    if pseudo.get(b":authority") == b"":
        raise HeadFault(400, "authority_missing")


_RESPONSE_PSEUDO: Final = frozenset({b":status"})


def check_response(headers: Sequence[Header], *, end_stream: bool, request: RequestHead) -> ResponseHead:
    """Judge a response's header list (8.3.2); `content_length` is what its body must have. Or HeadFault."""
    pseudo = _pseudo(headers, _RESPONSE_PSEUDO)
    content_length = _check_fields(headers, len(pseudo))
    text = pseudo.get(b":status")
    if text is None or not _STATUS(text):
        raise HeadFault(0, "status_missing_or_malformed")
    status = int(text)
    if status < 200:
        if end_stream or status == 101:  # 8.1, 8.6
            raise HeadFault(0, "informational_response_malformed")
        return ResponseHead(status, NO_LENGTH)
    if request.is_connect and status < 300:
        return ResponseHead(status, NO_LENGTH)  # RFC 9110 9.3.6: a tunnel; any content-length says nothing
    if request.is_head or status in (204, 304):
        return ResponseHead(status, 0)  # never has content, whatever content-length says
    if end_stream and content_length > 0:
        raise HeadFault(0, "content_length_without_body")
    return ResponseHead(status, content_length)


def check_trailers(headers: Sequence[Header]) -> None:
    """Judge a trailer section: fields only, and none that frames the message. Raises HeadFault."""
    if _check_fields(headers, 0) != NO_LENGTH:
        raise HeadFault(0, "content_length_in_trailers")
