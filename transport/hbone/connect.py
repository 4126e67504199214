"""CONNECT requests and responses of HBONE: header lists from values and values from header lists, no I/O.

Formats are those of ztunnel-facts 2.3 and 2.5. Only `:method` and `:authority` pseudo-headers exist in a
request. What is known about a destination is turned into a `RequestTemplate` once; a connection then adds two
headers.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from transport.hbone.errors import MalformedTunnelResponse

Headers = list[tuple[bytes, bytes]]

_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_AUTHORITY = re.compile(rb"[!-~]{1,262}")  # a host of 255 octets, a colon and a port at most
_METHOD = (b":method", b"CONNECT")
_NOT_IN_CONNECT = frozenset((b":path", b":scheme", b":protocol"))


def socket_text(host: str, port: int) -> str:
    """`host:port`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class RequestTemplate:
    """The request headers to one destination, all but what differs between connections."""

    __slots__ = ("_authority", "_baggage", "_extra", "_forwarded_tail")

    def __init__(
        self, authority: str, *, baggage: bytes, service_host: str = "", forwarded_network: str = ""
    ) -> None:
        self._authority = (b":authority", authority.encode())
        self._baggage = (b"baggage", baggage)
        self._forwarded_tail = f'";host={service_host}' if service_host else '"'
        self._extra = [(b"x-forwarded-network", forwarded_network.encode())] if forwarded_network else []

    def headers(self, source_ip: str, source_port: int, traceparent: bytes) -> Headers:
        source = f"[{source_ip}]:{source_port}" if ":" in source_ip else f"{source_ip}:{source_port}"
        return [
            _METHOD,
            self._authority,
            self._baggage,
            (b"forwarded", f'for="{source}{self._forwarded_tail}'.encode()),
            (b"traceparent", traceparent),
            *self._extra,
        ]


def new_traceparent() -> bytes:
    """A fresh W3C trace context; identifiers for logs, not secrets."""
    bits = random.getrandbits(192)
    return b"00-%032x-%016x-00" % (bits >> 64 or 1, bits & 0xFFFFFFFFFFFFFFFF or 1)


@dataclass(slots=True)
class ConnectRequest:
    """A request to open a tunnel. Texts are empty where the peer sent none that can be used.

    Not frozen: a frozen dataclass takes five times as long to make, and each tunnel makes one.
    """

    authority: bytes
    forwarded_host: str
    traceparent: bytes
    forwarded_network: str
    baggage: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MalformedRequest:
    """Not a CONNECT that we can serve; `status` is the answer (ztunnel-facts 2.5)."""

    status: int
    reason: str


def parse_request(headers: Headers) -> ConnectRequest | MalformedRequest:
    """What the peer asks for. The codec has refused malformed header lists; this checks the meaning."""
    fields = dict(headers)
    method = fields.get(b":method", b"")
    if method != b"CONNECT":
        return MalformedRequest(400, f"method {method[:32].decode('ascii', 'replace')!r} is not CONNECT")
    if not _NOT_IN_CONNECT.isdisjoint(fields):
        return MalformedRequest(400, "a CONNECT request has no :path, :scheme or :protocol")
    authority = fields.get(b":authority", b"")
    if _AUTHORITY.fullmatch(authority) is None:
        return MalformedRequest(400, "the authority is missing or malformed")
    traceparent = fields.get(b"traceparent", b"")
    if _TRACEPARENT.fullmatch(traceparent) is None:
        traceparent = b""
    baggage: tuple[bytes, ...] = ()
    if b"baggage" in fields:
        baggage = tuple(value for name, value in headers if name == b"baggage")
    forwarded = fields.get(b"forwarded")
    network = fields.get(b"x-forwarded-network")
    return ConnectRequest(
        authority,
        _forwarded_host(forwarded) if forwarded else "",
        traceparent,
        network.decode("ascii", "ignore") if network else "",
        baggage,
    )


def _forwarded_host(value: bytes) -> str:
    """The `host=` part of a Forwarded header; its `for=` is never trusted."""
    if not value.isascii():
        return ""
    for part in value.decode().split(";"):
        part = part.strip()
        if part.startswith("host="):
            return part[5:].removeprefix('"').removesuffix('"')
    return ""


def response_status(headers: Headers) -> int:
    """The status of a response. Raises MalformedTunnelResponse."""
    for name, value in headers:
        if name == b":status":
            if len(value) == 3 and value.isdigit():
                return int(value)
            break
    raise MalformedTunnelResponse("the peer's answer to CONNECT has no valid :status")
