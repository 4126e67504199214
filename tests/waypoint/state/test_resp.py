"""RESP2: whole replies whatever the cuts, and nothing that is none."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.state.resp import NotResp, Reply, ReplyReader, RespError, encode_command, words_of

REPLIES: list[tuple[bytes, Reply]] = [
    (b"+OK\r\n", b"OK"),
    (b"-ERR no\r\n", RespError("ERR no")),
    (b":-12\r\n", -12),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*3\r\n:1\r\n*1\r\n+x\r\n$0\r\n\r\n", [1, [b"x"], b""]),
]


@given(st.lists(st.integers(0, 120), max_size=8))
def test_replies_come_whole_whatever_the_cuts(cuts: list[int]) -> None:
    data = b"".join(each for each, _ in REPLIES)
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    reader = ReplyReader()
    found = [reply for begin, end in pairwise(edges) for reply in reader.feed(data[begin:end])]
    assert found == [reply for _, reply in REPLIES]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400\r\n",
        b"\x00",
        b":x\r\n",
        b":\r\n",
        b":99999999999999999999\r\n",
        b"$99999999\r\n",
        b"$1\r\nabc\r\n",
        b"*9999\r\n",
        b"*1\r\n" * 6 + b":1\r\n",
        b"+" + b"x" * 70_000,
    ],
)
def test_what_is_no_reply_raises(data: bytes) -> None:
    with pytest.raises(NotResp):
        list(ReplyReader().feed(data))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_that(data: bytes) -> None:
    with suppress(NotResp):
        list(ReplyReader().feed(data))


def test_commands_and_numbers() -> None:
    assert encode_command(b"GET", b"") == b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"
    assert words_of([1, 2]) == [1, 2]
    for reply in (None, 1, [b"x"]):
        with pytest.raises(NotResp):
            words_of(reply)  # type: ignore[arg-type]
