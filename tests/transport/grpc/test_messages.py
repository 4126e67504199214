"""Message framing under every split of the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.grpc.messages import MessageDecoder, encode
from transport.grpc.status import GrpcError, GrpcStatus

from .harness import pieces


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_messages_come_out_whole_whatever_the_split(messages: list[bytes], size: int) -> None:
    decoder = MessageDecoder(300)
    raw = b"".join(map(encode, messages))
    found = [message for piece in pieces(raw, size) for message in decoder.feed(piece)]
    assert found == messages
    assert decoder.partial_bytes == 0


def test_an_oversized_message_is_refused_at_its_length() -> None:
    decoder = MessageDecoder(10)
    with pytest.raises(GrpcError) as caught:
        decoder.feed(b"\0\0\0\0\x0b")
    assert caught.value.status is GrpcStatus.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("flag", [1, 2, 255])
def test_a_compressed_message_is_refused(flag: int) -> None:
    with pytest.raises(GrpcError) as caught:
        MessageDecoder(10).feed(bytes([flag, 0, 0, 0, 1, 0]))
    assert caught.value.status is GrpcStatus.INTERNAL
