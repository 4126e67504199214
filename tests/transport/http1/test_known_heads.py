"""Heads that come or leave again: they mean and read the same, are bounded, and keep no secret."""

from __future__ import annotations

import pytest

from transport.http1 import lean
from transport.http1.codec import make_codec
from transport.http1.errors import UnwritableHead
from transport.http1.events import DataReceived, Event, Header, HeadersReceived, HeadersRejected
from transport.http1.settings import Http1Settings, Role

GET = b"GET /a HTTP/1.1\r\nHost: shop\r\nAccept: */*\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
ASKED = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"shop"),
    (b":path", b"/a"),
    (b"x-a", b"1"),
]


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    for known in (lean._written_requests, lean._written_responses, lean._known):
        known.clear()


def head_of(events: list[Event]) -> HeadersReceived:
    (found,) = (each for each in events if isinstance(each, HeadersReceived))
    return found


def served(head: bytes = GET, settings: Http1Settings | None = None) -> list[Event]:
    return make_codec(Role.SERVER, settings).receive(head)


def answered(octets: bytes, *, asked: list[Header] | None = None) -> list[Event]:
    codec = make_codec(Role.CLIENT)
    codec.open_stream(asked or ASKED, end_stream=True)
    return codec.receive(octets)


def kept_requests() -> int:
    return sum(len(known.requests) for known in lean._known.values())


@pytest.mark.parametrize(
    "head",
    [
        GET,
        b"POST /a?b=c HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\n\r\n",
    ],
)
def test_a_request_means_the_same_again(head: bytes) -> None:
    first, again = head_of(served(head)), head_of(served(head))
    assert kept_requests() == 1
    assert (first.headers, first.end_stream) == (again.headers, again.end_stream)
    assert again.headers is head_of(served(head)).headers  # handed out again, not made again


def test_a_response_is_judged_by_its_request() -> None:
    assert head_of(answered(OK)).end_stream is False
    to_head = [(b":method", b"HEAD"), *ASKED[1:]]
    assert head_of(answered(OK, asked=to_head)).end_stream is True
    assert head_of(answered(OK)).end_stream is False


def test_content_of_a_known_response_is_its_own() -> None:
    for content in (b"ab", b"cd"):
        events = answered(OK + content)
        assert [bytes(each.data) for each in events if isinstance(each, DataReceived)] == [content]


def test_settings_share_nothing() -> None:
    served()
    strict = Http1Settings(max_header_count=1)
    assert [each.status for each in served(settings=strict) if isinstance(each, HeadersRejected)] == [431]
    assert head_of(served(settings=Http1Settings(scheme=b"https"))).headers[1] == (b":scheme", b"https")


@pytest.mark.parametrize("name", [b"Authorization", b"Cookie", b"Proxy-Authorization"])
def test_no_secret_is_kept(name: bytes) -> None:
    served(GET[:-2] + name + b": secret\r\n\r\n")
    assert kept_requests() == 0
    client = make_codec(Role.CLIENT)
    client.open_stream([*ASKED[:4], (name.lower(), b"secret"), ASKED[4]], end_stream=True)
    assert not lean._written_requests
    answered(b"HTTP/1.1 200 OK\r\nSet-Cookie: secret\r\nContent-Length: 0\r\n\r\n")
    assert not any(known.responses for known in lean._known.values())


def test_large_heads_are_not_kept_and_many_are_bounded() -> None:
    served(GET[:-2] + b"x-a: " + b"a" * 2000 + b"\r\n\r\n")
    assert kept_requests() == 0
    for number in range(1500):
        served(GET.replace(b"/a", b"/%d" % number))
    assert 0 < kept_requests() <= 512


def written(headers: list[Header]) -> bytes:
    codec = make_codec(Role.CLIENT)
    codec.open_stream(headers, end_stream=True)
    return bytes(codec.take_output())


def test_a_request_is_written_the_same_again_but_for_its_last_field() -> None:
    first = written(ASKED)
    assert written(ASKED) == first
    assert written([*ASKED[:4], (b"x-a", b"2")]) == first.replace(b"x-a: 1", b"x-a: 2")
    assert len(lean._written_requests) == 1


def test_the_last_field_is_checked_each_time() -> None:
    written(ASKED)
    codec = make_codec(Role.CLIENT)
    with pytest.raises(UnwritableHead):
        codec.open_stream([*ASKED[:4], (b"x-a", b"1\r\nx-b: 2")], end_stream=True)
    assert codec.take_output() == b""


def test_a_last_field_that_frames_the_message_is_no_field_like_others() -> None:
    framed = [(b":method", b"POST"), *ASKED[1:4], (b"content-length", b"2")]
    for _ in range(2):
        codec = make_codec(Role.CLIENT)
        stream = codec.open_stream(framed)
        codec.send_data(stream, b"ab", end_stream=True)
        assert bytes(codec.take_output()).endswith(b"content-length: 2\r\n\r\nab")


def test_a_response_is_written_as_the_connection_needs_it() -> None:
    def answer(*, is_last: bool, method: bytes = b"GET") -> bytes:
        codec = make_codec(Role.SERVER)
        codec.receive(GET.replace(b"GET", method))
        if is_last:
            codec.goaway()
        codec.send_headers(1, [(b":status", b"200"), (b"x-a", b"1")], end_stream=True)
        return bytes(codec.take_output())

    for _ in range(2):
        assert b"connection: close" not in answer(is_last=False)
        assert b"connection: close" in answer(is_last=True)
        assert b"content-length: 0" in answer(is_last=False)
        assert b"content-length" not in answer(is_last=False, method=b"HEAD")
