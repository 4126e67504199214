"""The PROXY protocol's version 2 header, as an application behind an application tunnel gets it
(ztunnel-facts 2.12).
"""

from __future__ import annotations

import ipaddress
import struct

from transport.spiffe import SpiffeId

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_PROXY = 0x21
_TCP_4 = 0x11
_TCP_6 = 0x21
_IDENTITY_TLV = 0xD0


def proxy_header(source: tuple[str, int], destination: tuple[str, int], identity: SpiffeId | None) -> bytes:
    """Command PROXY, family of the addresses (IPv4 is mapped if they differ), the peer's identity as TLV
    0xD0.
    """
    addresses = ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])
    if all(address.version == 4 for address in addresses):
        family = _TCP_4
        packed = b"".join(address.packed for address in addresses)
    else:
        family = _TCP_6
        packed = b"".join(
            address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
            for address in addresses
        )
    body = packed + struct.pack("!HH", source[1], destination[1])
    if identity is not None:
        uri = str(identity).encode()
        body += struct.pack("!BH", _IDENTITY_TLV, len(uri)) + uri
    return _SIGNATURE + struct.pack("!BBH", _VERSION_2_PROXY, family, len(body)) + body
