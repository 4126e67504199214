"""One open stream as the lean codec keeps it. A forgotten stream leaves at most a number behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from transport.http2.events import Header
from transport.http2.headers import (
    CONNECT_HEAD,
    HEAD_HEAD,
    NO_LENGTH,
    ORDINARY_HEAD,
    HeadFault,
    RequestHead,
    check_trailers,
)

_ORDINARY: Final = frozenset({(b":method", b"GET"), (b":method", b"POST")})


def describe_request(headers: Sequence[Header]) -> RequestHead:
    """What a client's codec must know of its own request to judge the response."""
    method, is_extended = b"", False
    if headers and headers[0] in _ORDINARY:
        return ORDINARY_HEAD
    for name, value in headers:
        if name == b":method":
            method = value
        elif name == b":protocol":
            is_extended = True
        elif name[:1] != b":":
            break
    if method == b"CONNECT" and not is_extended:
        return CONNECT_HEAD
    return HEAD_HEAD if method == b"HEAD" else ORDINARY_HEAD


class Stream:
    """States of RFC 9113 5.1 as two booleans; both closed means forgotten.

    What the peer may still send is `in_window`; `in_pending` was consumed but not announced yet. So what the
    caller still holds is: announced window - in_window - in_pending.
    """

    __slots__ = (
        "body_left",
        "has_head",
        "has_responded",
        "has_sent_data",
        "id",
        "in_pending",
        "in_window",
        "is_local_closed",
        "is_remote_closed",
        "is_tunnel",
        "out_window",
        "request",
    )

    def __init__(self, stream_id: int, request: RequestHead, out_window: int, in_window: int) -> None:
        self.id = stream_id
        self.request = request
        self.out_window = out_window
        self.in_window = in_window
        self.in_pending = 0
        self.body_left = NO_LENGTH  # octets that content-length still promises
        self.has_head = False  # client: the final response's head came; server: always
        self.has_responded = False  # server: the final response's head was sent
        self.has_sent_data = False
        self.is_tunnel = False  # CONNECT: only DATA from here on (8.5)
        self.is_local_closed = False
        self.is_remote_closed = False


def trailers_fault(stream: Stream, headers: Sequence[Header], excess: str, ends: bool) -> str:
    """Why a second header list on this stream cannot be its trailers; empty if it can."""
    if stream.is_tunnel:
        return "headers_on_tunnel"  # 8.5
    if not ends:
        return "trailers_without_end_of_stream"
    if stream.body_left > 0:
        return "body_differs_from_content_length"
    if excess:
        return excess
    try:
        check_trailers(headers)
    except HeadFault as fault:
        return fault.reason
    return ""
