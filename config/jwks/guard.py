"""Which addresses a URI out of a manifest may lead to. Pure.

Whoever may write a RequestAuthentication makes the control plane call somebody (SSRF, GHSA-fgw5-hp8f-xfhc):
never link-local addresses, where clouds keep their credentials, nor other metadata services. Private and
loopback addresses are allowed, as issuers run there too; an operator may forbid more. What is judged is the
address that is dialled, after the name is resolved, and again after each redirect.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORBIDDEN: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",  # metadata in Amazon's clouds
        "fd20:ce::/32",  # in Google's
        "100.100.100.200/32",  # in Alibaba's
        "192.0.0.192/32",  # in Oracle's
        "168.63.129.16/32",  # in Microsoft's
        "0.0.0.0/8",
        "::/128",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "ff00::/8",
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Guard:
    """`more` are further networks that are forbidden."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._forbidden = (*FORBIDDEN, *(ipaddress.ip_network(each, strict=False) for each in more))

    def is_allowed(self, text: str) -> bool:
        """Whether an address as text may be dialled, whatever it wraps."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return not any(
            each.version == network.version and each in network
            for each in _meant(address)
            for network in self._forbidden
        )


def _meant(address: Address) -> list[Address]:
    """The address, and the IPv4 address that it stands for."""
    found: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour]
        if address.teredo is not None:
            inner += list(address.teredo)
        if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 0xFFFF):
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        found += [each for each in inner if each is not None]
    return found
