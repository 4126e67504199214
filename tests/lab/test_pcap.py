"""The reader of packet captures, on captures made byte by byte."""

from __future__ import annotations

import ipaddress
import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.lab.errors import BadCaptureError
from mesh.lab.pcap import ACK, LINK_COOKED, LINK_COOKED_2, LINK_ETHERNET, SYN, segments, streams

CLIENT, SERVER = ("10.77.1.10", 40000), ("10.77.2.10", 80)
CLIENT6, SERVER6 = ("fd77:1::10", 40000), ("fd77:2::10", 80)


def tcp(src: int, dst: int, payload: bytes, *, flags: int = ACK, sequence: int = 1) -> bytes:
    return struct.pack(">HHIIBBHHH", src, dst, sequence, 0, 0x50, flags, 100, 0, 0) + payload


def ipv4(
    payload: bytes,
    source: str = CLIENT[0],
    destination: str = SERVER[0],
    *,
    protocol: int = 6,
    fragment: int = 0,
) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed + payload


def ipv6(payload: bytes, *, next_header: int = 6) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, len(payload), next_header, 64)
    return head + ipaddress.ip_address(CLIENT6[0]).packed + ipaddress.ip_address(SERVER6[0]).packed + payload


def ethernet(packet: bytes, kind: int = 0x0800) -> bytes:
    return bytes(12) + kind.to_bytes(2, "big") + packet


def capture(*frames: bytes, link: int = LINK_ETHERNET, magic: int = 0xA1B2C3D4, order: str = "<") -> bytes:
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for number, frame in enumerate(frames):
        out += struct.pack(order + "IIII", number, 500_000, len(frame), len(frame)) + frame
    return out


PLAIN = ipv4(tcp(40000, 80, b"hello"))


def test_ipv4_segment() -> None:
    (found,) = segments(capture(ethernet(PLAIN)))
    assert (found.src, found.dst, found.payload, found.time_s) == (CLIENT, SERVER, b"hello", 0.5)
    assert found.ports == {40000, 80}
    assert not found.is_connection_attempt


def test_ipv6_segment_behind_extension_headers() -> None:
    hop_by_hop = bytes([6, 0]) + bytes(6)
    for packet in (
        ipv6(tcp(40000, 80, b"hello")),
        ipv6(hop_by_hop + tcp(40000, 80, b"hello"), next_header=0),
    ):
        (found,) = segments(capture(ethernet(packet, 0x86DD)))
        assert (found.src, found.dst, found.payload) == (CLIENT6, SERVER6, b"hello")


def test_padding_of_short_frames_is_no_payload() -> None:
    (found,) = segments(capture(ethernet(ipv4(tcp(1, 2, b"")) + bytes(20))))
    assert found.payload == b""


def test_vlan_and_cooked_frames() -> None:
    vlan = bytes(12) + b"\x81\x00\x00\x05\x08\x00" + PLAIN
    assert [each.payload for each in segments(capture(vlan))] == [b"hello"]
    cooked = bytes(14) + b"\x08\x00" + PLAIN
    assert [each.payload for each in segments(capture(cooked, link=LINK_COOKED))] == [b"hello"]
    cooked2 = b"\x08\x00" + bytes(18) + PLAIN
    assert [each.payload for each in segments(capture(cooked2, link=LINK_COOKED_2))] == [b"hello"]


def test_byte_orders_and_nanoseconds() -> None:
    for magic, order in ((0xA1B2C3D4, ">"), (0xA1B23C4D, "<"), (0xA1B23C4D, ">")):
        (found,) = segments(capture(ethernet(PLAIN), magic=magic, order=order))
        assert found.payload == b"hello"
        assert found.time_s == pytest.approx(0.5 if magic == 0xA1B2C3D4 else 0.0005)


def test_what_is_not_the_start_of_tcp_is_skipped() -> None:
    udp = ethernet(ipv4(bytes(30), protocol=17))
    fragment = ethernet(ipv4(tcp(1, 2, b"x"), fragment=100))
    arp = ethernet(bytes(28), 0x0806)
    short = ethernet(ipv4(bytes(10)))
    assert list(segments(capture(udp, fragment, arp, short))) == []


def test_a_record_cut_short_is_left_out() -> None:
    whole = capture(ethernet(PLAIN), ethernet(PLAIN))
    for cut in range(1, 60):
        assert len(list(segments(whole[:-cut]))) == 1
    assert list(segments(whole[:10])) == []


def test_connection_attempts() -> None:
    flags = {SYN: True, SYN | ACK: False, ACK: False}
    for bits, expected in flags.items():
        (found,) = segments(capture(ethernet(ipv4(tcp(1, 2, b"", flags=bits)))))
        assert found.is_connection_attempt is expected


def test_other_files_are_refused() -> None:
    with pytest.raises(BadCaptureError, match="not a pcap file"):
        list(segments(b"x" * 40))
    with pytest.raises(BadCaptureError, match="link type 105"):
        list(segments(capture(PLAIN, link=105)))


@given(st.binary(max_size=300))
def test_rubbish_in_frames_never_raises(frame: bytes) -> None:
    for kind in (0x0800, 0x86DD, 0x8100):
        list(segments(capture(ethernet(frame, kind))))


@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_streams_are_put_in_order(text: bytes, cuts: list[int], start: int, random: Random) -> None:
    pieces: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(text):
        length = cuts[len(pieces) % len(cuts)]
        pieces.append((offset, text[offset : offset + length]))
        offset += length
    first, *rest = pieces
    shuffled = [*rest, *rest[:2]]  # some come twice
    random.shuffle(shuffled)
    frames = [
        ethernet(ipv4(tcp(40000, 80, piece, sequence=(start + at) % 2**32)))
        for at, piece in [first, *shuffled]
    ]
    assert streams(segments(capture(*frames))) == {(CLIENT, SERVER): text}
