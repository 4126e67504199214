"""Properties that hold for any input, with h11 as an oracle of its own beside the reference codec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.http1.wire import (
    GET,
    GET_OCTETS,
    OK,
    POST,
    UPGRADE_OCTETS,
    WEBSOCKET,
    Story,
    story,
)
from transport.http1.codec import CodecKind, Http1Codec, make_codec
from transport.http1.errors import CodecMisuse, UnwritableHead
from transport.http1.events import Event, Header, HeadersReceived
from transport.http1.settings import Http1Settings, Role

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=30).map(
    lambda octets: bytes(each for each in octets if each >= 0x20 and each != 0x7F).strip(b" \t")
)
RESERVED = {
    b"host", b"te", b"upgrade", b"connection", b"cookie", b"expect", b"trailer", b"via", b"age", b"date",
    b"vary", b"range", b"pragma", b"origin", b"baggage",
}  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES.filter(lambda name: name not in RESERVED), VALUES), max_size=6)
PATHS = st.text("abc/.%2Ff?&=;~", max_size=12).map(lambda text: b"/" + text.encode())
BODIES = st.lists(st.binary(min_size=1, max_size=3000), max_size=5)
KINDS = pytest.mark.parametrize("kind", ["lean", "reference"])
CUTS = st.lists(st.integers(0, 4000), max_size=12)

# Pieces out of which a smuggler would build; a draw is a stream of them.
PIECES = st.sampled_from(
    [
        GET_OCTETS, UPGRADE_OCTETS,
        b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nHost: web\r\n", b"HTTP/1.1 200 OK\r\n", b"Host: web\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n",
        b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b"a", b"abc", b"0\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n",
        b"3;x=y\r\n", b"X: y\r\n", b"GET ", b"HTTP/1.0\r\n", b"\x00", b"\xff", b"x" * 1500, b"f" * 20,
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES | st.binary(max_size=8), max_size=14).map(b"".join)
SMALL = Http1Settings(max_head=2000, max_trailers=100, max_held=4000, max_header_count=6, max_informational=2)


def cut(octets: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({place for place in places if place < len(octets)}), len(octets)]
    return [octets[start:end] for start, end in pairwise(edges)]


def all_events(role: Role, kind: CodecKind, pieces: Sequence[bytes]) -> tuple[Story, bytes, tuple[bool, ...]]:
    """What a codec makes of these pieces and the end. Requests are answered (101 where asked for) in the end;
    a client has asked for a websocket."""
    codec = make_codec(role, SMALL, kind)
    if role is Role.CLIENT:
        codec.open_stream(WEBSOCKET)
    told: list[tuple[object, ...]] = []
    for piece in pieces:
        told += note(codec.receive(piece))
    told += note(codec.receive_eof())
    while role is Role.SERVER and not codec.is_finished and codec.current_stream:
        before = codec.current_stream
        is_upgrade = any(
            event[0] == "headers" and event[1] == before and (b"upgrade", b"websocket") in event[2]  # type: ignore[operator]
            for event in told
        )
        if is_upgrade and before % 2:
            codec.send_headers(before, [(b":status", b"101"), (b"upgrade", b"websocket")])
        else:
            codec.send_headers(before, OK, end_stream=True)
        told += note(codec.resume())
        if codec.current_stream == before:
            break
    flags = codec.is_held, codec.is_finished, codec.is_output_ended
    return merged(told), bytes(codec.take_output()).lower(), flags


def note(events: Sequence[Event]) -> Story:
    """A story, before the next receive() makes the views invalid."""
    return story(events)


def merged(told: Story) -> Story:
    whole: Story = []
    for event in told:
        if event[0] == "data" and whole and whole[-1][:2] == event[:2] and not whole[-1][3]:
            event = ("data", event[1], str(whole.pop()[2]) + str(event[2]), event[3])
        whole.append(event)
    return [event for event in whole if event[0] != "data" or event[2] or event[3]]


@pytest.mark.parametrize("role", Role)
@given(octets=STREAMS, places=CUTS)
def test_any_cut_tells_the_same_story(role: Role, octets: bytes, places: list[int]) -> None:
    assert all_events(role, "lean", cut(octets, places)) == all_events(role, "lean", [octets])


@pytest.mark.parametrize("role", Role)
@given(octets=STREAMS, places=CUTS)
def test_both_codecs_tell_the_same_story(role: Role, octets: bytes, places: list[int]) -> None:
    pieces = cut(octets, places)
    reference = all_events(role, "reference", pieces)
    assert "refused_by_h11" not in str(reference)
    assert all_events(role, "lean", pieces) == reference


@KINDS
@pytest.mark.parametrize("role", Role)
@given(octets=st.binary(max_size=400))
def test_arbitrary_octets_raise_nothing(kind: CodecKind, role: Role, octets: bytes) -> None:
    all_events(role, kind, [octets])
    all_events(role, kind, [octets[:7], octets[7:]])


def feed(codec: Http1Codec, octets: bytes, places: Sequence[int]) -> Story:
    told: Story = []
    for piece in cut(octets, places):
        told += story(codec.receive(piece))
    return merged(told)


def expected(headers: list[Header], body: list[bytes], trailers: list[Header], *, is_chunked: bool) -> Story:
    whole = b"".join(body).decode("latin-1")
    if not is_chunked and not whole:
        return [("headers", 1, headers, True)]
    if trailers and is_chunked:
        content = [("data", 1, whole, False)] if whole else []
        return [("headers", 1, headers, False), *content, ("trailers", 1, trailers, True)]
    return [("headers", 1, headers, False), ("data", 1, whole, True)]


@KINDS
@given(FIELDS, PATHS, BODIES, FIELDS, st.booleans(), CUTS)
def test_a_request_arrives_as_it_was_sent(
    kind: CodecKind,
    fields: list[Header],
    path: bytes,
    body: list[bytes],
    trailers: list[Header],
    is_chunked: bool,
    places: list[int],
) -> None:
    client, server = make_codec(Role.CLIENT, kind=kind), make_codec(Role.SERVER, kind=kind)
    headers = [*POST[:3], (b":path", path), *fields]
    if not is_chunked:
        headers.append((b"content-length", b"%d" % sum(map(len, body))))
    client.open_stream(headers)
    for piece in body:
        client.send_data(1, piece)
    client.send_headers(1, trailers)
    told = feed(server, bytes(client.take_output()), places)
    assert told == expected(headers, body, trailers, is_chunked=is_chunked)


@KINDS
@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    FIELDS,
    BODIES,
    FIELDS,
    st.booleans(),
    CUTS,
)
def test_a_response_arrives_as_it_was_sent(
    kind: CodecKind,
    status: int,
    fields: list[Header],
    body: list[bytes],
    trailers: list[Header],
    is_chunked: bool,
    places: list[int],
) -> None:
    client, server = make_codec(Role.CLIENT, kind=kind), make_codec(Role.SERVER, kind=kind)
    client.open_stream(GET, end_stream=True)
    server.receive(bytes(client.take_output()))
    headers = [(b":status", b"%d" % status), *fields]
    if not is_chunked:
        headers.append((b"content-length", b"%d" % sum(map(len, body))))
    server.send_headers(1, headers)
    for piece in body:
        server.send_data(1, piece)
    server.send_headers(1, trailers)
    told = feed(client, bytes(server.take_output()), places)
    assert told == expected(headers, body, trailers, is_chunked=is_chunked)
    assert server.is_idle
    assert client.is_idle


@given(FIELDS, PATHS, BODIES, st.booleans())
def test_h11_reads_what_is_written(
    fields: list[Header], path: bytes, body: list[bytes], is_chunked: bool
) -> None:
    codec = make_codec(Role.CLIENT)
    headers = [*POST[:3], (b":path", path), *fields]
    if not is_chunked:
        headers.append((b"content-length", b"%d" % sum(map(len, body))))
    codec.open_stream(headers)
    for piece in body:
        codec.send_data(1, piece)
    codec.end_stream(1)
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(bytes(codec.take_output()))
    request = peer.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (b"POST", path)
    kept = [field for field in request.headers if field[0] not in (b"host", b"transfer-encoding")]
    assert sorted(kept) == sorted([*fields, *([] if is_chunked else headers[-1:])])
    received = b""
    while isinstance(event := peer.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == b"".join(body)


@given(FIELDS, PATHS, BODIES, st.booleans(), CUTS)
def test_what_h11_writes_is_read(
    fields: list[Header], path: bytes, body: list[bytes], is_chunked: bool, places: list[int]
) -> None:
    peer = h11.Connection(h11.CLIENT)
    framing = (
        (b"transfer-encoding", b"chunked") if is_chunked else (b"content-length", b"%d" % sum(map(len, body)))
    )
    octets = (
        peer.send(h11.Request(method="POST", target=path, headers=[(b"host", b"web"), *fields, framing]))
        or b""
    )
    for piece in body:
        octets += peer.send(h11.Data(data=piece)) or b""
    octets += peer.send(h11.EndOfMessage()) or b""
    headers = [*POST[:3], (b":path", path), *fields]
    if not is_chunked:
        headers.append(framing)
    told = feed(make_codec(Role.SERVER), octets, places)
    assert told == expected(headers, body, [], is_chunked=is_chunked)


@KINDS
@given(
    st.lists(
        st.tuples(st.binary(max_size=12).filter(lambda name: name != b"expect"), st.binary(max_size=12)),
        max_size=4,
    )
)
def test_no_header_list_writes_more_than_one_head(kind: CodecKind, fields: list[Header]) -> None:
    codec = make_codec(Role.CLIENT, kind=kind)
    try:
        codec.open_stream([*GET, *fields], end_stream=True)
    except (CodecMisuse, UnwritableHead):
        assert codec.take_output() == b""
        return
    octets = bytes(codec.take_output())
    assert octets.count(b"\r\n\r\n") == 1
    events = make_codec(Role.SERVER).receive(octets)
    assert [type(event) for event in events] == [HeadersReceived]
