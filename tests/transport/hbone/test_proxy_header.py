"""PROXY v2 of ztunnel-facts 2.12."""

from __future__ import annotations

import struct

from transport.hbone.proxy_header import proxy_header
from transport.spiffe import SpiffeId

IDENTITY = SpiffeId("cluster.local", "a", "b")


def test_ipv4_with_identity() -> None:
    uri = str(IDENTITY).encode()
    assert proxy_header(("10.0.0.1", 1000), ("10.0.0.2", 80), IDENTITY) == (
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
        + struct.pack("!H", 12 + 3 + len(uri))
        + bytes([10, 0, 0, 1, 10, 0, 0, 2])
        + struct.pack("!HH", 1000, 80)
        + b"\xd0"
        + struct.pack("!H", len(uri))
        + uri
    )


def test_ipv6_without_identity() -> None:
    header = proxy_header(("fd00::1", 1), ("fd00::2", 2), None)
    assert header[12:16] == b"\x21\x21" + struct.pack("!H", 36)
    assert len(header) == 16 + 36


def test_mixed_families_are_mapped_to_ipv6() -> None:
    header = proxy_header(("10.0.0.1", 1), ("fd00::2", 2), None)
    assert header[16:32] == b"\0" * 10 + b"\xff\xff" + bytes([10, 0, 0, 1])
