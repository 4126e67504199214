"""Properties that hold for any input, with the hpack and h2 libraries as oracles.

The reference codec stands on h2 and judges frames by a path of its own, so wherever the two codecs tell the
same story about a random exchange, two implementations agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import hpack
import pytest
from hpack.huffman_table import decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.http2.wire import (
    CONNECT,
    GET,
    OK,
    POST,
    PREFACE,
    PRIORITY,
    SETTINGS_ACK,
    Rig,
    data,
    frame,
    goaway,
    merged,
    ping,
    rst,
    window_update,
)
from tests.transport.http2.wire import Headers as PeerHeaders
from tests.transport.http2.wire import settings as settings_frame
from transport.http2.codec import CodecKind, make_codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import ConnectionFailed, DataReceived, Event, HeadersReceived
from transport.http2.hpack import huffman
from transport.http2.hpack.decoder import Decoder
from transport.http2.hpack.encoder import Encoder
from transport.http2.hpack.table import STATIC, HpackError
from transport.http2.settings import Http2Settings, Role

Headers = list[tuple[bytes, bytes]]

NAMES = st.sampled_from([name for name, _ in STATIC[1:]]) | st.binary(max_size=12)
VALUES = st.sampled_from([value for _, value in STATIC[1:]]) | st.binary(max_size=60)
COMMON = st.sampled_from(
    [
        (b"a", b"1"),
        (b"b", b"2"),
        (b"forwarded", b"for=x"),
        (b":path", b"/again"),
        (b"big", b"v" * 1500),
        (b"huge", b"v" * 5000),
        (b"cookie", b"c"),
    ]
)
HEADER_LISTS = st.lists(COMMON | st.tuples(NAMES, VALUES), max_size=12)


def plain(headers: Iterable[hpack.HeaderTuple]) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in headers]


@given(st.lists(HEADER_LISTS, max_size=8), st.booleans())
def test_decoder_reads_what_the_hpack_library_writes(lists: list[Headers], is_huffman: bool) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(1 << 20, 1000)
    for headers in lists:
        assert decoder.decode(encoder.encode(headers, huffman=is_huffman)).headers == headers


@given(st.lists(st.tuples(HEADER_LISTS, st.none() | st.integers(0, 6000)), max_size=8))
def test_hpack_library_reads_what_the_encoder_writes(steps: list[tuple[Headers, int | None]]) -> None:
    encoder, decoder, own = Encoder(), hpack.Decoder(max_header_list_size=1 << 20), Decoder(1 << 20, 1000)
    for headers, limit in steps:
        if limit is not None:
            encoder.limit_table(limit)
            decoder.max_allowed_table_size = min(limit, 4096)
        block = encoder.encode(headers)
        assert plain(decoder.decode(block, raw=True)) == headers
        assert own.decode(block).headers == headers


@given(st.binary(max_size=80))
def test_huffman_agrees_with_the_hpack_library(octets: bytes) -> None:
    assert huffman.decode(huffman.encode(octets)) == octets
    try:
        expected = decode_huffman(octets)
    except hpack.HPACKError:
        with pytest.raises(HpackError):
            huffman.decode(octets)
    else:
        assert huffman.decode(octets) == expected


FIELD_STARTS = st.sampled_from(
    [b"\x82", b"\xbe", b"\xbf", b"\x40", b"\x00", b"\x10", b"\x20", b"\x3f\x11", b"\x7e"]
)
STRINGS = st.binary(max_size=6).map(lambda octets: bytes([len(octets)]) + octets)
BLOCKS = st.lists(FIELD_STARTS | STRINGS | st.binary(max_size=3), max_size=10).map(b"".join)


@given(st.lists(BLOCKS, max_size=5))
def test_any_block_means_the_same_to_the_hpack_library(blocks: list[bytes]) -> None:
    own, oracle = Decoder(1 << 20, 10_000), hpack.Decoder(max_header_list_size=1 << 20)
    for block in blocks:
        try:
            expected = plain(oracle.decode(block, raw=True))
        except hpack.HPACKError:
            with pytest.raises(HpackError):
                own.decode(block)
            return
        assert own.decode(block).headers == expected


# Random exchanges

IDS = st.sampled_from([1, 3, 5, 7, 0, 2, 9])
REQUESTS: st.SearchStrategy[PeerHeaders] = st.sampled_from(
    [CONNECT, GET, POST, [*POST, (b"content-length", b"4")], [*GET, (b"Bad", b"")]]
)
RESPONSES: st.SearchStrategy[PeerHeaders] = st.sampled_from(
    [OK, [(b":status", b"103")], [*OK, (b"content-length", b"4")], [(b"x", b"y")]]
)
TRAILERS: st.SearchStrategy[PeerHeaders] = st.just([(b"x-sum", b"1")])
INCREMENTS = st.sampled_from([0, 1, 1000, 2**31 - 1])
CODES = st.sampled_from([0, 7, 8, 0xFFFF])

Step = Callable[[Rig], bytes]


def _headers_step(choice: tuple[int, PeerHeaders, bool]) -> Step:
    stream, headers, ends = choice
    return lambda rig: rig.headers(stream, headers, end=ends)


def _plain_step(octets: bytes) -> Step:
    return lambda _: octets


PLAIN_FRAMES = st.one_of(
    st.builds(
        data,
        IDS,
        st.sampled_from([b"", b"ab", b"abcd", bytes(40_000)]),
        end=st.booleans(),
        padding=st.sampled_from([None, None, 0, 3]),
    ),
    st.builds(rst, IDS, CODES),
    st.builds(window_update, IDS, INCREMENTS),
    st.builds(goaway, st.sampled_from([0, 1, 3, 2**31 - 1])),
    st.sampled_from(
        [
            ping(),
            ping(ack=True),
            SETTINGS_ACK,
            settings_frame((4, 70_000)),
            settings_frame((4, 0)),
            settings_frame((5, 20_000), (3, 5)),
            frame(PRIORITY, 0, 3, bytes(5)),
            frame(0xEE, 0, 3, b"??"),
        ]
    ),
    st.builds(frame, st.integers(0, 10), st.integers(0, 255), IDS, st.binary(max_size=9)),
)


def steps(first: st.SearchStrategy[PeerHeaders]) -> st.SearchStrategy[list[Step]]:
    """Scripts of a peer: mostly sensible, sometimes not."""
    heads = st.tuples(IDS, first, st.booleans()).map(_headers_step)
    trailers = st.tuples(IDS, TRAILERS, st.booleans()).map(_headers_step)
    return st.lists(st.one_of(heads, heads, trailers, PLAIN_FRAMES.map(_plain_step)), max_size=14)


ACTIONS = st.lists(st.sampled_from(["respond", "finish", "reset", "consume", "look", "send"]), max_size=6)


def act(rig: Rig, action: str, events: list[Event]) -> None:
    """What a caller does to the first open stream of these events."""
    codec = rig.codec
    for event in events:
        if isinstance(event, DataReceived) and action == "consume":
            codec.consumed(event.stream_id, event.flow_bytes)
        if isinstance(event, HeadersReceived) and not event.is_trailers:
            stream = event.stream_id
            if codec.is_going_away and action == "reset":
                codec.reset(stream, ErrorCode.CANCEL)
            elif action == "respond" and rig.is_server:
                codec.send_headers(stream, OK)
                codec.sendable(stream)
            elif action == "finish" and rig.is_server:
                codec.send_headers(stream, OK, end_stream=True)
            elif action == "reset":
                codec.reset(stream, ErrorCode.CANCEL)
            elif action == "look":
                codec.sendable(stream)
            elif action == "send" and rig.is_server:
                codec.send_headers(stream, OK)
                codec.send_data(stream, bytes(min(codec.sendable(stream), 100)))


SMALL = Http2Settings(initial_window=66_000, connection_window=100_000, max_concurrent_streams=3)


def story(
    role: Role, kind: CodecKind, script: list[Step], actions: list[str], cuts: list[int]
) -> list[Event]:
    """What the codec tells when the script's frames come one by one, or cut at the given lengths."""
    rig = Rig(role, kind, SMALL)
    told: list[Event] = []
    if role is Role.CLIENT:
        for _ in range(3):
            rig.codec.open_stream(POST)
        rig.codec.open_stream(CONNECT)
        opening = settings_frame()
    else:
        opening = PREFACE + settings_frame()
    told += rig.gets(opening)
    for number, step in enumerate(script):
        octets = step(rig)
        events: list[Event] = []
        while octets:
            size = cuts[len(octets) % len(cuts)] if cuts else len(octets)
            events = merged([*events, *rig.gets(octets[:size])])
            octets = octets[size:]
        if actions:
            act(rig, actions[number % len(actions)], events)
        told += events
        rig.codec.take_output()
    return merged(told)


def normalised(events: list[Event]) -> list[Event]:
    """Names of faults that only h2 knows are not compared; their codes are."""
    return [
        ConnectionFailed(event.code, "") if isinstance(event, ConnectionFailed) else event for event in events
    ]


@settings(max_examples=150)
@given(steps(REQUESTS), ACTIONS)
def test_both_codecs_tell_the_same_story_as_servers(script: list[Step], actions: list[str]) -> None:
    lean, reference = (story(Role.SERVER, kind, script, actions, []) for kind in ("lean", "reference"))
    assert normalised(lean) == normalised(reference)


@settings(max_examples=150)
@given(steps(RESPONSES), ACTIONS)
def test_both_codecs_tell_the_same_story_as_clients(script: list[Step], actions: list[str]) -> None:
    lean, reference = (story(Role.CLIENT, kind, script, actions, []) for kind in ("lean", "reference"))
    assert normalised(lean) == normalised(reference)


@given(
    st.sampled_from([Role.CLIENT, Role.SERVER]),
    steps(REQUESTS | RESPONSES),
    st.lists(st.integers(1, 40) | st.integers(1, 20_000), min_size=1, max_size=5),
)
def test_cutting_the_input_does_not_change_the_story(role: Role, script: list[Step], cuts: list[int]) -> None:
    for kind in ("lean", "reference"):
        whole = story(role, kind, script, [], [])
        assert story(role, kind, script, [], cuts) == whole


@given(
    st.sampled_from([Role.CLIENT, Role.SERVER]),
    steps(REQUESTS | RESPONSES),
    ACTIONS,
    st.lists(st.integers(1, 40) | st.integers(1, 20_000), max_size=5),
)
def test_pieces_tell_the_same_story_as_events(
    role: Role, script: list[Step], actions: list[str], cuts: list[int]
) -> None:
    plain = story(role, "lean", script, actions, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rig, "takes_pieces", True)
        assert story(role, "lean", script, actions, cuts) == plain


OPENINGS = st.sampled_from([b"", PREFACE, PREFACE + settings_frame(), settings_frame()])


@settings(max_examples=150)
@given(st.sampled_from([Role.CLIENT, Role.SERVER]), OPENINGS, st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_octets_never_raise(role: Role, opening: bytes, inputs: list[bytes]) -> None:
    for kind in ("lean", "reference"):
        codec = make_codec(role, SMALL, kind)
        codec.start()
        failed = False
        for octets in [opening, *inputs]:
            events = codec.receive(octets)
            assert not (failed and events)
            failed = failed or any(isinstance(event, ConnectionFailed) for event in events)
        assert len(codec.take_output()) < 5_000


@settings(max_examples=150)
@given(
    steps(REQUESTS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_damaged_frames_never_raise_and_mean_the_same(
    script: list[Step], damage: list[tuple[int, int]]
) -> None:
    maker = Rig(Role.SERVER, "lean")
    octets = bytearray(b"".join(step(maker) for step in script) or b"\x00")
    for position, change in damage:
        octets[position % len(octets)] ^= change
    script = [_plain_step(bytes(octets))]
    stories = [normalised(story(Role.SERVER, kind, script, [], [])) for kind in ("lean", "reference")]
    # The lean codec judges a DATA frame, and hands on what there is of it, before the frame is complete.
    lean, reference = ([each for each in told if not isinstance(each, DataReceived)] for told in stories)
    assert lean[: len(reference)] == reference


@settings(max_examples=60)
@given(
    st.integers(1, 200_000),
    st.integers(65_535, 200_000),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90_000)), min_size=1, max_size=40),
    st.sampled_from(["lean", "reference"]),
)
def test_windows_never_overrun_and_never_stall(
    window: int, connection_window: int, sends: list[tuple[int, int]], kind: CodecKind
) -> None:
    limits = Http2Settings(initial_window=window, connection_window=connection_window)
    client, server = make_codec(Role.CLIENT, limits, "lean"), make_codec(Role.SERVER, limits, kind)
    client.start()
    server.start()

    def exchange() -> None:
        while True:
            up, down = client.take_output(), server.take_output()
            if not up and not down:
                return
            for event in merged(server.receive(up)):
                assert not isinstance(event, ConnectionFailed)
                if isinstance(event, DataReceived):
                    server.consumed(event.stream_id, event.flow_bytes)
            for event in client.receive(down):
                assert not isinstance(event, ConnectionFailed)

    exchange()
    streams = [client.open_stream(CONNECT) for _ in range(3)]
    exchange()
    for which, wanted in sends:
        size = min(wanted, client.sendable(streams[which]))
        assert size > 0, "everything was consumed, so there must be credit"
        client.send_data(streams[which], bytes(size))
        exchange()
