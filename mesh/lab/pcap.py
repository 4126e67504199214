"""A small reader of packet captures: TCP segments of classic pcap files, IPv4 and IPv6, Ethernet and Linux
cooked.

Pure: bytes in, segments out. A file that is still being written may end in the middle of a record; that
tail is left out. Anything that is not TCP is skipped. Source: the pcap file format as tcpdump writes it
(`-w`), RFC 9293 headers.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mesh.lab.errors import BadCaptureError

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
LINK_ETHERNET, LINK_COOKED, LINK_COOKED_2 = 1, 113, 276
ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN = 0x0800, 0x86DD, 0x8100
IPPROTO_TCP = 6
IPV6_EXTENSIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options


@dataclass(frozen=True, slots=True)
class Segment:
    """One captured TCP segment. Addresses are canonical text."""

    time_s: float
    src: tuple[str, int]
    dst: tuple[str, int]
    flags: int
    sequence: int
    payload: bytes

    @property
    def ports(self) -> frozenset[int]:
        return frozenset((self.src[1], self.dst[1]))

    @property
    def is_connection_attempt(self) -> bool:
        return self.flags & (SYN | ACK) == SYN


def records(capture: bytes) -> Iterator[tuple[float, int, bytes]]:
    """(time, link type, frame) of each complete record. Raises BadCaptureError for a file that is no
    capture.
    """
    if len(capture) < 24:
        return
    formats = {
        b"\xd4\xc3\xb2\xa1": ("<", 1e6),
        b"\xa1\xb2\xc3\xd4": (">", 1e6),
        b"\x4d\x3c\xb2\xa1": ("<", 1e9),
        b"\xa1\xb2\x3c\x4d": (">", 1e9),
    }
    try:
        order, unit = formats[capture[:4]]
    except KeyError:
        raise BadCaptureError(f"not a pcap file: it starts with {capture[:4].hex()}") from None
    link = struct.unpack_from(order + "I", capture, 20)[0] & 0xFFFF
    offset = 24
    while offset + 16 <= len(capture):
        seconds, fraction, kept, _ = struct.unpack_from(order + "IIII", capture, offset)
        offset += 16
        if offset + kept > len(capture):
            return
        yield seconds + fraction / unit, link, capture[offset : offset + kept]
        offset += kept


def _network_layer(link: int, frame: bytes) -> tuple[int, bytes]:
    """(ethertype, what follows)."""
    if link == LINK_ETHERNET:
        offset, kind = 14, int.from_bytes(frame[12:14], "big")
        if kind == ETHERTYPE_VLAN:
            offset, kind = 18, int.from_bytes(frame[16:18], "big")
        return kind, frame[offset:]
    if link == LINK_COOKED:
        return int.from_bytes(frame[14:16], "big"), frame[16:]
    if link == LINK_COOKED_2:
        return int.from_bytes(frame[0:2], "big"), frame[20:]
    raise BadCaptureError(f"link type {link} is not supported")


def _transport(kind: int, packet: bytes) -> tuple[str, str, bytes] | None:
    """(source, destination, TCP header and payload), or None when it is not the start of TCP."""
    if kind == ETHERTYPE_IPV4 and len(packet) >= 20:
        header = (packet[0] & 0x0F) * 4
        total = int.from_bytes(packet[2:4], "big") or len(packet)  # 0: larger than 64 KiB, made by offloading
        is_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
        if packet[9] != IPPROTO_TCP or is_fragment:
            return None
        source, destination = packet[12:16], packet[16:20]
        body = packet[header:total]
    elif kind == ETHERTYPE_IPV6 and len(packet) >= 40:
        length = int.from_bytes(packet[4:6], "big")
        source, destination = packet[8:24], packet[24:40]
        body = packet[40 : 40 + length] if length else packet[40:]
        next_header = packet[6]
        while next_header in IPV6_EXTENSIONS and len(body) >= 8:
            next_header, body = body[0], body[(body[1] + 1) * 8 :]
        if next_header != IPPROTO_TCP:
            return None
    else:
        return None
    return str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)), body


def segments(capture: bytes) -> Iterator[Segment]:
    """The TCP segments of a capture, in its order."""
    for time_s, link, frame in records(capture):
        found = _transport(*_network_layer(link, frame))
        if found is None or len(found[2]) < 20:
            continue
        source, destination, body = found
        src_port, dst_port, sequence = struct.unpack_from(">HHI", body)
        yield Segment(
            time_s=time_s,
            src=(source, src_port),
            dst=(destination, dst_port),
            flags=body[13],
            sequence=sequence,
            payload=body[(body[12] >> 4) * 4 :],
        )


def streams(captured: Iterable[Segment]) -> dict[tuple[tuple[str, int], tuple[str, int]], bytes]:
    """The bytes of each direction of each connection, put in order, retransmissions dropped.

    A hole (the capture started late, or lost packets) is closed up: this is for looking for text, not for
    replay.
    """
    pieces: dict[tuple[tuple[str, int], tuple[str, int]], list[Segment]] = {}
    for segment in captured:
        if segment.payload:
            pieces.setdefault((segment.src, segment.dst), []).append(segment)
    joined: dict[tuple[tuple[str, int], tuple[str, int]], bytes] = {}
    for key, parts in pieces.items():
        first = parts[0].sequence

        def distance(segment: Segment, first: int = first) -> int:
            return (segment.sequence - first + 0x80000000) % 0x100000000

        out = bytearray()
        end = None
        for segment in sorted(parts, key=distance):
            start = distance(segment)
            skip = 0 if end is None else max(0, end - start)
            out += segment.payload[skip:]
            end = max(end or 0, start + len(segment.payload))
        joined[key] = bytes(out)
    return joined
