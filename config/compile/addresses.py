"""Addresses in the forms the data plane's resources and names use."""

from __future__ import annotations

import ipaddress

from proto.istio import workload_pb2 as pb


def packed(address: str) -> bytes:
    """4 or 16 bytes of canonical text."""
    return ipaddress.ip_address(address).packed


def network_address(network: str, text: str) -> pb.NetworkAddress:
    """Of an address or a CIDR block."""
    address, slash, length = text.partition("/")
    message = pb.NetworkAddress(network=network, address=packed(address))
    if slash:
        message.length = int(length)
    return message


def address_key(network: str, text: str) -> str:
    """The alias under which on-demand clients ask for it."""
    return f"{network}/{text}"
