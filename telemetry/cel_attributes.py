"""What an expression may ask of a request, by Envoy's names, and of which kind it is. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class Kind(enum.Enum):
    TEXT = "text"
    NUMBER = "a number"
    TRUTH = "true or false"
    HEADERS = "headers"
    LIST = "a list"


_TEXTS: Final = (
    *("request.path", "request.url_path", "request.query", "request.host", "request.scheme"),
    *("request.method", "request.protocol", "request.id", "request.referer", "request.useragent"),
    *("response.code_details", "response.flags_text"),
    *("source.address", "source.principal", "connection.uri_san_peer_certificate"),
    *("destination.address", "destination.namespace", "destination.service"),
    *("upstream.address", "upstream.transport_failure_reason"),
    *("xds.route_name", "xds.cluster_name"),
)
_NUMBERS: Final = (
    *("request.size", "request.total_size", "response.code", "response.grpc_status"),
    *("response.size", "response.total_size", "source.port", "destination.port", "upstream.port"),
    "upstream.request_attempt_count",
)
ATTRIBUTES: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        **dict.fromkeys(_TEXTS, Kind.TEXT),
        **dict.fromkeys(_NUMBERS, Kind.NUMBER),
        "connection.mtls": Kind.TRUTH,
        "request.headers": Kind.HEADERS,
        "response.headers": Kind.HEADERS,
    }
)
ROOTS: Final = frozenset(name.partition(".")[0] for name in ATTRIBUTES)
