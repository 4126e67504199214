"""What a waypoint does to header lists by itself: pure functions, one pass each.

Sources: waypoint-facts 3 and 3.1, authz-cases 6. The codecs have removed what is about the connection.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from transport.http1.authority import canonical_authority
from transport.http2.events import Header, HeaderList
from transport.http_path import PathNormalization, Refusal, normalise

SERVER: Final = (b"server", b"mycelia")
_GRPC: Final = b"application/grpc"
_PLAIN_PATH: Final = re.compile(rb"/(?:[0-9A-Za-z_~/=&+,;:@!$'()*-]|(?<!/)\.)*").fullmatch

# Never passed on. x-envoy-* steered retries, timeouts and traces of proxies that believed a client
# (CVE-2024-45806, CVE-2023-27487); the others claim an identity, which only a certificate proves.
_DROPPED: Final = frozenset(
    {
        b"x-forwarded-client-cert",
        b"x-envoy-peer-metadata",
        b"x-envoy-peer-metadata-id",
        b"x-istio-source",
        b"x-forwarded-network",
        b"x-istio-attributes",
    }
)
_DROPPED_PREFIX: Final = b"x-envoy-"
_LOOKED_AT: Final = frozenset(
    {
        b"host",
        b"x-request-id",
        b"x-forwarded-proto",
        b"content-type",
        b"upgrade",
        b"grpc-timeout",
        b"content-length",
    }
)
_NOT_MERGING: Final = (PathNormalization.BASE, PathNormalization.NONE)
_MAX_PLAIN: Final = 1024
_plain: set[bytes] = set()  # names that were seen and mean nothing here; bounded

_GRPC_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(slots=True)
class Request:
    """A request as policy and routing see it and as it is forwarded: a plan may change it before it leaves.

    `path` is normalised and has no query; `query` None means that there is none. `headers` holds no
    pseudo-headers.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    query: bytes | None
    headers: list[Header]
    is_grpc: bool = False
    upgrade: bytes = b""
    grpc_timeout_s: float | None = None
    request_id: bytes = b""
    received_bytes: int = 0  # of all fields as they came, see `octets_of`

    @property
    def target(self) -> bytes:
        """What stands in the request line."""
        return self.path if self.query is None else self.path + b"?" + self.query

    def head(self) -> list[Header]:
        """The header list that is sent."""
        return [
            (b":method", self.method),
            (b":scheme", self.scheme),
            (b":authority", self.authority),
            (b":path", self.target),
            *self.headers,
        ]


class _Read:
    """What `read_request` made of a list that comes again."""

    __slots__ = ("level", "request")

    def __init__(self, level: PathNormalization, request: Request) -> None:
        self.level = level
        self.request = request


def read_request(
    received: list[Header], level: PathNormalization = PathNormalization.BASE
) -> Request | Refusal:
    """The request that a header list makes, freed of what a client may not say, and with what we say of it:
    an id, and how it came to us, unless someone before us did.
    """
    about = received.about if type(received) is HeaderList else None
    if type(about) is _Read and about.level is level:
        known = about.request
    else:
        read = _read_request(received, level)
        if isinstance(read, Refusal):
            return read
        known = read
        if type(received) is HeaderList:
            received.about = _Read(level, known)
    headers = known.headers.copy()
    request_id = known.request_id
    if not request_id:
        request_id = new_request_id()
        headers.append((b"x-request-id", request_id))
    return Request(
        known.method,
        known.scheme,
        known.authority,
        known.path,
        known.query,
        headers,
        known.is_grpc,
        known.upgrade,
        known.grpc_timeout_s,
        request_id,
        known.received_bytes,
    )


def _read_request(received: list[Header], level: PathNormalization) -> Request | Refusal:
    kept: list[Header] = []
    keep = kept.append
    special: list[Header] | None = None
    pseudo: dict[bytes, bytes] = {}
    for field in received:
        name = field[0]
        if name in _plain:
            keep(field)
        elif name[:1] == b":":
            pseudo[name] = field[1]
        elif name in _LOOKED_AT:
            if special is None:
                special = []
            special.append(field)
        elif not _may_not_be_said(name):
            if len(_plain) < _MAX_PLAIN and len(name) <= 64:
                _plain.add(name)
            keep(field)
    method, target = pseudo[b":method"], pseudo.get(b":path", b"")
    if method == b"CONNECT":
        return Refusal("connect_not_supported", 404)
    if _PLAIN_PATH(target) and (level in _NOT_MERGING or b"//" not in target):
        path: bytes = target
        query: bytes | None = None
    else:
        normal = normalise(target, level)
        if isinstance(normal, Refusal):
            return normal
        path, query = normal.path, normal.query
    scheme, authority = pseudo.get(b":scheme", b"http"), pseudo.get(b":authority", b"")
    request = Request(method, scheme, authority, path, query, kept, received_bytes=octets_of(received))
    if special is not None:
        _take_special(request, special)
    else:
        keep((b"x-forwarded-proto", scheme))
    refusal = _settle_authority(request)
    return request if refusal is None else refusal


def _may_not_be_said(name: bytes) -> bool:
    """Applications behind CGI or WSGI cannot tell `x_envoy_a` from `x-envoy-a`, so neither is passed on."""
    folded = name.replace(b"_", b"-")
    return folded in _DROPPED or folded.startswith(_DROPPED_PREFIX)


def _settle_authority(request: Request) -> Refusal | None:
    """One spelling for routes, policies and the upstream, whichever protocol it came by."""
    if not request.authority:
        return Refusal("missing_host_header")
    canonical = canonical_authority(request.authority)
    if canonical is None:
        return Refusal("authority_malformed")
    request.authority = canonical
    return None


def _take_special(request: Request, special: list[Header]) -> None:
    keep = request.headers.append
    proto = b""
    for name, value in special:
        match name:
            case b"host":
                request.authority = request.authority or value  # the codec saw that they agree
            case b"x-request-id":
                if not request.request_id and value:
                    request.request_id = value
                    keep((name, value))
            case b"x-forwarded-proto":
                proto = proto or value
            case b"content-type":
                request.is_grpc = request.is_grpc or is_grpc_type(value)
                keep((name, value))
            case b"upgrade":
                request.upgrade = value
            case b"grpc-timeout":
                request.grpc_timeout_s = parse_grpc_timeout(value)
                keep((name, value))
            case _:
                keep((name, value))
    # Kept if it can be true; it says how the first client came, and decides nothing here.
    keep((b"x-forwarded-proto", proto if proto in (b"http", b"https") else request.scheme))
    if request.upgrade:
        keep((b"upgrade", request.upgrade))


def value_of(headers: Iterable[Header], wanted: bytes) -> bytes:
    """The first line's value; empty where there is none."""
    return next((value for name, value in headers if name == wanted), b"")


def is_grpc_type(value: bytes) -> bool:
    """`application/grpc`, `application/grpc+proto`, not `application/grpc-web`."""
    return value.startswith(_GRPC) and value[len(_GRPC) : len(_GRPC) + 1] in (b"", b"+", b";")


def parse_grpc_timeout(value: bytes) -> float | None:
    """Seconds; None for what is no timeout: then there is none."""
    found = _GRPC_TIMEOUT(value)
    if found is None:
        return None
    seconds = int(found[1]) * _UNITS_S[found[2]]
    return seconds if math.isfinite(seconds) else None


def new_request_id() -> bytes:
    """A random UUID (version 4); an identifier for logs, not a secret."""
    bits = random.getrandbits(128)
    text = b"%032x" % (bits & ~(0xF000 << 64 | 0xC000 << 48) | 0x4000 << 64 | 0x8000 << 48)
    return b"%b-%b-%b-%b-%b" % (text[:8], text[8:12], text[12:16], text[16:20], text[20:])


def read_response(received: list[Header], service_time_ms: int) -> list[Header]:
    """A final response's header list on its way to the client. `received` starts with :status."""
    is_kept = type(received) is HeaderList
    known = received.about if is_kept else None  # type: ignore[attr-defined]
    if type(known) is list:
        kept: list[Header] = known.copy()
    else:
        kept = [
            field
            for field in received
            if field[0] != b"server" and (field[0][:2] != b"x-" or not _is_dropped_from_response(field[0]))
        ]
        kept.append(SERVER)
        if is_kept:
            received.about = kept.copy()  # type: ignore[attr-defined]
    kept.append((b"x-envoy-upstream-service-time", b"%d" % service_time_ms))
    return kept


def _is_dropped_from_response(name: bytes) -> bool:
    return name in (
        b"x-envoy-upstream-service-time",
        b"x-envoy-decorator-operation",
        b"x-envoy-peer-metadata",
        b"x-envoy-peer-metadata-id",
    )


def octets_of(headers: list[Header]) -> int:
    """As HTTP/1.1 would write them, for the metrics of sizes."""
    return 4 * len(headers) + sum(map(len, chain.from_iterable(headers)))
