"""Two codecs talk to each other, and each to the raw h2 library: whole stories, no hand-made octets."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest

from tests.transport.http2.wire import CONNECT, GET, OK, POST, merged
from transport.http2.codec import CodecKind, Http2Codec, make_codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PeerSettings,
    PingAcked,
    StreamReset,
    WindowOpened,
)
from transport.http2.settings import Http2Settings, Role

KINDS: list[tuple[CodecKind, CodecKind]] = [
    ("lean", "lean"),
    ("lean", "reference"),
    ("reference", "lean"),
    ("reference", "reference"),
]


class Pair:
    """A client and a server joined back to back."""

    def __init__(
        self,
        client: CodecKind,
        server: CodecKind,
        settings: Http2Settings | None = None,
        chunk: int = 1 << 30,
    ) -> None:
        self.client: Http2Codec = make_codec(Role.CLIENT, settings, client)
        self.server: Http2Codec = make_codec(Role.SERVER, settings, server)
        self.chunk = chunk
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.client.start()
        self.server.start()
        self.settle()
        assert isinstance(self.client_events.pop(), PeerSettings)
        assert isinstance(self.server_events.pop(), PeerSettings)

    def settle(self) -> None:
        """Carry octets to and fro until nobody has any."""
        while True:
            to_server, to_client = self.client.take_output(), self.server.take_output()
            if not to_server and not to_client:
                return
            for octets, codec, events in (
                (to_server, self.server, self.server_events),
                (to_client, self.client, self.client_events),
            ):
                for start in range(0, len(octets), self.chunk):
                    # Views are valid until the next receive(): merged() copies them.
                    events[:] = merged([*events, *codec.receive(bytes(octets[start : start + self.chunk]))])

    def take(self) -> tuple[list[Event], list[Event]]:
        """What the client and the server saw since the last time."""
        self.settle()
        seen = self.client_events, self.server_events
        self.client_events, self.server_events = [], []
        return seen


@pytest.fixture(params=KINDS, ids=lambda kinds: f"{kinds[0]}-{kinds[1]}")
def kinds(request: pytest.FixtureRequest) -> tuple[CodecKind, CodecKind]:
    pair: tuple[CodecKind, CodecKind] = request.param
    return pair


@pytest.fixture(params=[1 << 30, 7], ids=["whole", "in-pieces"])
def pair(kinds: tuple[CodecKind, CodecKind], request: pytest.FixtureRequest) -> Pair:
    return Pair(*kinds, chunk=request.param)


def body(octets: bytes, stream: int = 1, *, end: bool = False) -> DataReceived:
    return DataReceived(stream, memoryview(octets), len(octets), end)


def test_tunnel_life(pair: Pair) -> None:
    stream = pair.client.open_stream(CONNECT)
    assert pair.take() == ([], [HeadersReceived(stream, list(CONNECT), False, False)])
    pair.server.send_headers(stream, OK)
    assert pair.take() == ([HeadersReceived(stream, list(OK), False, False)], [])
    pair.client.send_data(stream, b"question")
    pair.server.send_data(stream, b"answer")
    assert pair.take() == ([body(b"answer")], [body(b"question")])
    pair.client.end_stream(stream)
    assert pair.take() == ([], [body(b"", end=True)])
    pair.server.send_data(stream, b"the rest", end_stream=True)
    assert pair.take() == ([body(b"the rest", end=True)], [])
    assert pair.client.open_streams == pair.server.open_streams == 0


def test_refused_tunnel(pair: Pair) -> None:
    stream = pair.client.open_stream(CONNECT)
    pair.settle()
    pair.server.send_headers(stream, [(b":status", b"401")], end_stream=True)
    pair.client.end_stream(stream)
    assert pair.take()[0] == [HeadersReceived(stream, [(b":status", b"401")], True, False)]
    assert pair.client.open_streams == pair.server.open_streams == 0


def test_request_and_response_with_everything(pair: Pair) -> None:
    stream = pair.client.open_stream([*POST, (b"content-length", b"4")])
    pair.client.send_data(stream, b"body")
    pair.client.send_headers(stream, [(b"x-sum", b"1")], end_stream=True)
    pair.settle()
    pair.server.send_headers(stream, [(b":status", b"100")])
    pair.server.send_headers(stream, [*OK, (b"x-long", b"v" * 15_000)])
    pair.server.send_data(stream, b"response")
    pair.server.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
    client, server = pair.take()
    assert server == [
        HeadersReceived(stream, [*POST, (b"content-length", b"4")], False, False),
        body(b"body"),
        HeadersReceived(stream, [(b"x-sum", b"1")], True, True),
    ]
    assert client == [
        HeadersReceived(stream, [(b":status", b"100")], False, False),
        HeadersReceived(stream, [*OK, (b"x-long", b"v" * 15_000)], False, False),
        body(b"response"),
        HeadersReceived(stream, [(b"grpc-status", b"0")], True, True),
    ]
    assert pair.client.open_streams == pair.server.open_streams == 0


def test_reset_by_either_side(pair: Pair) -> None:
    first, second = pair.client.open_stream(CONNECT), pair.client.open_stream(CONNECT)
    pair.take()
    pair.client.reset(first, ErrorCode.CANCEL)
    pair.server.reset(second, ErrorCode.REFUSED_STREAM)
    assert pair.take() == (
        [StreamReset(second, ErrorCode.REFUSED_STREAM)],
        [StreamReset(first, ErrorCode.CANCEL)],
    )
    assert pair.client.open_streams == pair.server.open_streams == 0


def test_ping_and_goaway(pair: Pair) -> None:
    pair.client.open_stream(CONNECT)
    pair.take()
    pair.client.ping(b"abcdefgh")
    pair.server.goaway(debug=b"drain")
    assert pair.take() == ([GoAwayReceived(1, 0, b"drain"), PingAcked(b"abcdefgh")], [])
    assert pair.client.is_going_away
    assert pair.server.is_going_away
    assert pair.client.open_streams == 1


def test_bulk_of_many_streams_through_small_windows(kinds: tuple[CodecKind, CodecKind]) -> None:
    settings = Http2Settings(initial_window=70_000, connection_window=100_000)
    pair = Pair(*kinds, settings)
    streams = [pair.client.open_stream(CONNECT) for _ in range(5)]
    pair.take()
    left = dict.fromkeys(streams, 400_000)
    received = dict.fromkeys(streams, 0)
    for _ in range(2_000):
        for stream in streams:
            size = min(left[stream], pair.client.sendable(stream), 30_000)
            if size:
                pair.client.send_data(stream, bytes(size), end_stream=size == left[stream])
                left[stream] -= size
        for event in pair.take()[1]:
            assert isinstance(event, DataReceived)
            received[event.stream_id] += len(event.data)
            pair.server.consumed(event.stream_id, event.flow_bytes)
        woken = pair.take()[0]
        assert all(isinstance(event, WindowOpened) for event in woken)
        if not any(left.values()):
            break
    assert received == dict.fromkeys(streams, 400_000)


class RawH2:
    """The h2 library as it comes, as a peer."""

    def __init__(self, *, is_client: bool) -> None:
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=is_client, header_encoding=None)
        )
        self.connection.initiate_connection()
        self.events: list[h2.events.Event] = []

    def exchange(self, codec: Http2Codec) -> list[Event]:
        """Settle the two; returns what the codec saw."""
        seen: list[Event] = []
        while True:
            ours, theirs = codec.take_output(), self.connection.data_to_send()
            if not ours and not theirs:
                return merged(seen)
            self.events += self.connection.receive_data(bytes(ours))
            seen += codec.receive(theirs)

    def of(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def test_codec_as_server_of_the_h2_library(kind: CodecKind) -> None:
    codec = make_codec(Role.SERVER, kind=kind)
    codec.start()
    peer = RawH2(is_client=True)
    peer.connection.send_headers(1, list(POST))
    peer.connection.send_data(1, b"x" * 10_000, pad_length=100)
    peer.connection.end_stream(1)
    events = peer.exchange(codec)[1:]
    assert events == [HeadersReceived(1, list(POST), False, False), body(b"x" * 10_000, end=True)]
    codec.consumed(1, 10_000)
    codec.send_headers(1, [*OK, (b"baggage", b"a=b")])
    codec.send_data(1, b"y" * 30_000, end_stream=True)
    peer.exchange(codec)
    (response,) = peer.of(h2.events.ResponseReceived)
    assert isinstance(response, h2.events.ResponseReceived)
    assert [tuple(header) for header in response.headers or []] == [*OK, (b"baggage", b"a=b")]
    received = [event.data or b"" for event in peer.events if isinstance(event, h2.events.DataReceived)]
    assert b"".join(received) == b"y" * 30_000
    assert len(peer.of(h2.events.StreamEnded)) == 1
    assert codec.open_streams == 0


def test_codec_as_client_of_the_h2_library(kind: CodecKind) -> None:
    codec = make_codec(Role.CLIENT, kind=kind)
    codec.start()
    peer = RawH2(is_client=False)
    peer.exchange(codec)
    for number in range(1, 60, 2):
        stream = codec.open_stream([*CONNECT, (b"traceparent", b"%055d" % number)])
        codec.send_data(stream, b"hello")
        peer.exchange(codec)
        peer.connection.send_headers(stream, OK)
        peer.connection.send_data(stream, b"hi", end_stream=True)
        assert peer.exchange(codec) == [
            HeadersReceived(stream, list(OK), False, False),
            body(b"hi", stream, end=True),
        ]
        codec.end_stream(stream)
        peer.exchange(codec)
    assert len(peer.of(h2.events.RequestReceived)) == 30
    assert codec.open_streams == peer.connection.open_inbound_streams == 0


def test_small_first_window_of_the_h2_library_is_respected(kind: CodecKind) -> None:
    codec = make_codec(Role.CLIENT, kind=kind)
    codec.start()
    peer = RawH2(is_client=False)
    peer.exchange(codec)
    stream = codec.open_stream(GET)
    total = 0
    while total < 500_000:
        size = codec.sendable(stream)
        assert size > 0
        codec.send_data(stream, bytes(size))
        total += size
        peer.exchange(codec)
        for event in peer.events:
            if isinstance(event, h2.events.DataReceived):
                peer.connection.acknowledge_received_data(event.flow_controlled_length or 0, stream)
        peer.events.clear()
        assert WindowOpened(0) in peer.exchange(codec)
