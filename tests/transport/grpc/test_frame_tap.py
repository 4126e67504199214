"""The frame tap: transparent but for GOAWAY, and the flood rules of authz-cases 11."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from transport.grpc.frame_tap import FrameRefused, FrameTap, GoAway, TapLimits

from .harness import PREFACE, pieces

LIMITS = TapLimits()


def feed(tap: FrameTap, raw: bytes, size: int = 1 << 20, now: float = 0.0) -> tuple[bytes, list[GoAway]]:
    seen, goaways = b"", []
    for piece in pieces(raw, size):
        for part in tap.feed(piece, now):
            if isinstance(part, GoAway):
                goaways.append(part)
            else:
                seen += bytes(part)
    return seen, goaways


frames = st.one_of(
    st.builds(lambda n: DataFrame(1, data=b"d" * n), st.integers(1, 60)),
    st.builds(lambda n: GoAwayFrame(0, last_stream_id=n, additional_data=b"x" * n), st.integers(0, 20)),
    st.builds(lambda: PingFrame(0, opaque_data=b"12345678")),
    st.builds(lambda: SettingsFrame(0)),
    st.builds(lambda: WindowUpdateFrame(0, window_increment=5)),
)


@given(st.lists(frames, max_size=12), st.integers(1, 40), st.booleans())
def test_all_but_goaway_passes_unchanged_whatever_the_split(
    sequence: list[Frame], size: int, is_server: bool
) -> None:
    raw = (PREFACE if is_server else b"") + b"".join(frame.serialize() for frame in sequence)
    seen, goaways = feed(FrameTap(LIMITS, is_server=is_server), raw, size)
    others = b"".join(frame.serialize() for frame in sequence if not isinstance(frame, GoAwayFrame))
    assert seen == (PREFACE if is_server else b"") + others
    expected = [frame.last_stream_id for frame in sequence if isinstance(frame, GoAwayFrame)]
    assert [goaway.last_stream_id for goaway in goaways] == expected


def refused(make: Callable[[int], bytes], count: int) -> int | None:
    """The error code after feeding `count` frames; None if all pass."""
    tap = FrameTap(LIMITS, is_server=False)
    try:
        for number in range(count):
            list(tap.feed(make(number), 0.0))
    except FrameRefused as error:
        return error.error_code
    return None


def _stream_and_reset(number: int) -> bytes:
    headers = HeadersFrame(2 * number + 1, data=b"", flags=["END_HEADERS"])
    return headers.serialize() + RstStreamFrame(2 * number + 1).serialize()


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        ("ping flood", lambda _: PingFrame(0).serialize(), 0xB),
        ("settings flood", lambda _: SettingsFrame(0).serialize(), 0xB),
        ("priority flood", lambda _: PriorityFrame(1, depends_on=3).serialize(), 0xB),
        ("window update flood", lambda _: WindowUpdateFrame(0, window_increment=1).serialize(), 0xB),
        ("unknown frames", lambda _: b"\0\0\0\xfa\0\0\0\0\0", 0xB),
        ("empty data", lambda _: DataFrame(1).serialize(), 0xB),
        ("rapid reset", _stream_and_reset, 0xB),
        ("endless continuation", lambda _: ContinuationFrame(1, data=b"x" * 1000).serialize(), 0xB),
    ],
)
def test_floods_end_the_connection(name: str, make: Callable[[int], bytes], code: int) -> None:
    assert refused(make, 5000) == code, name
    assert refused(make, 10) is None, name


def test_acknowledged_pings_and_settings_cost_nothing() -> None:
    assert refused(lambda _: PingFrame(0, flags=["ACK"]).serialize(), 5000) is None
    assert refused(lambda _: SettingsFrame(0, flags=["ACK"]).serialize(), 5000) is None


def test_window_updates_that_our_data_earned_are_fine() -> None:
    tap = FrameTap(LIMITS, is_server=False)
    for _ in range(20_000):
        tap.earn()
        list(tap.feed(WindowUpdateFrame(0, window_increment=1).serialize() * 4, 0.0))


def test_control_frames_at_a_sane_pace_are_fine() -> None:
    tap = FrameTap(LIMITS, is_server=False)
    for second in range(10_000):
        list(tap.feed(PingFrame(0).serialize() * 50, float(second)))


def test_a_frame_above_the_announced_size_is_refused_at_its_header() -> None:
    tap = FrameTap(LIMITS, is_server=False)
    with pytest.raises(FrameRefused) as caught:
        list(tap.feed(b"\xff\xff\xff\0\0\0\0\0\1", 0.0))
    assert caught.value.error_code == 0x6


@pytest.mark.parametrize(
    ("raw", "code"),
    [(b"\0\0\x08\x07\0\0\0\0\1", 0x1), (b"\0\0\x04\x07\0\0\0\0\0", 0x6)],
    ids=["stream", "short"],
)
def test_malformed_goaway_is_refused(raw: bytes, code: int) -> None:
    with pytest.raises(FrameRefused) as caught:
        list(FrameTap(LIMITS, is_server=False).feed(raw, 0.0))
    assert caught.value.error_code == code
