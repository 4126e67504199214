"""Codes, grpc-message, metadata and grpc-timeout: tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.grpc.metadata import (
    MAX_TIMEOUT_S,
    Metadata,
    decode_timeout,
    encode_metadata,
    encode_timeout,
)
from transport.grpc.status import (
    GrpcError,
    GrpcStatus,
    decode_message,
    encode_message,
    status_from_http,
    status_from_reset,
    status_from_text,
)


@given(st.text(max_size=300))
def test_messages_survive_percent_encoding(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert encoded == encoded.strip(b" ")
    assert decode_message(encoded) == text


@given(st.binary(max_size=200))
def test_any_grpc_message_of_a_peer_decodes(raw: bytes) -> None:
    decode_message(raw)


def test_long_messages_are_cut() -> None:
    assert len(decode_message(encode_message("é" * 10_000))) <= 4096


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", GrpcStatus.OK),
        (b"16", GrpcStatus.UNAUTHENTICATED),
        (b"17", GrpcStatus.UNKNOWN),
        (b"", GrpcStatus.UNKNOWN),
        (b"-1", GrpcStatus.UNKNOWN),
        (b"99999999999", GrpcStatus.UNKNOWN),
        (b"OK", GrpcStatus.UNKNOWN),
        (None, GrpcStatus.UNKNOWN),
    ],
)
def test_status_from_text(value: bytes | None, status: GrpcStatus) -> None:
    assert status_from_text(value) is status


def test_http_and_reset_codes_map_as_documented() -> None:
    assert status_from_http(503) is GrpcStatus.UNAVAILABLE
    assert status_from_http(404) is GrpcStatus.UNIMPLEMENTED
    assert status_from_http(302) is GrpcStatus.UNKNOWN
    assert status_from_reset(0x7) is GrpcStatus.UNAVAILABLE
    assert status_from_reset(0x8) is GrpcStatus.CANCELLED
    assert status_from_reset(0x2) is GrpcStatus.INTERNAL
    assert status_from_reset(0xFFFF) is GrpcStatus.INTERNAL


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1S", 1), (b"5m", 0.005), (b"7u", 7e-6), (b"3n", 3e-9), (b"2M", 120), (b"1H", 3600), (b"0S", 0)],
)
def test_timeouts_decode(value: bytes, seconds: float) -> None:
    assert decode_timeout(value) == pytest.approx(seconds)


def test_a_huge_timeout_means_as_long_as_possible() -> None:
    assert decode_timeout(b"99999999H") == MAX_TIMEOUT_S


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"-1S", b"1.5S", b"999999999S", b"1s", b"1S ", b"\xb2S", b"1SS"]
)
def test_malformed_timeouts_are_refused(value: bytes) -> None:
    with pytest.raises(GrpcError) as caught:
        decode_timeout(value)
    assert caught.value.status is GrpcStatus.INVALID_ARGUMENT


@given(st.floats(min_value=0, max_value=1e12))
def test_an_encoded_timeout_is_never_shorter(seconds: float) -> None:
    assert decode_timeout(encode_timeout(seconds)) >= min(seconds, MAX_TIMEOUT_S) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a b", "x"),
        ("grpc-status", "0"),
        (":path", "/x"),
        ("content-type", "x"),
        ("te", "x"),
        ("", "x"),
        ("a", "line\r\nother: y"),
        ("a", "nul\0"),
        ("a", "é"),
    ],
)
def test_metadata_cannot_inject_fields(key: str, value: str) -> None:
    with pytest.raises(GrpcError):
        encode_metadata([(key, value)])


@given(st.binary(max_size=100))
def test_binary_metadata_survives(raw: bytes) -> None:
    assert Metadata.from_headers(encode_metadata([("trace-bin", raw)])).get_all("trace-bin") == [raw]


def test_metadata_keeps_order_and_leaves_out_protocol_fields() -> None:
    metadata = Metadata.from_headers(
        [
            (b":path", b"/x"),
            (b"grpc-timeout", b"1S"),
            (b"a", b"1"),
            (b"b", b"2"),
            (b"a", b"3"),
            (b"c-bin", b"*"),
        ]
    )
    assert list(metadata) == [("a", "1"), ("b", "2"), ("a", "3")]
    assert metadata.get("a") == "1"
    assert metadata.get_all("a") == ["1", "3"]
    assert metadata.get("missing") is None
