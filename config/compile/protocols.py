"""The application protocol of a service port (config-api 4)."""

from __future__ import annotations

from typing import Final

from proto.istio import workload_pb2 as pb
from proto.mycelia import waypoint_pb2

_BY_APP_PROTOCOL: Final = {
    "kubernetes.io/h2c": pb.HTTP2,
    "kubernetes.io/ws": pb.HTTP11,
    "kubernetes.io/wss": pb.TLS,
}
_BY_WORD: Final = {
    "http": pb.HTTP11,
    "http_proxy": pb.HTTP11,
    "http2": pb.HTTP2,
    "grpc": pb.GRPC,
    "grpc-web": pb.HTTP11,
    "https": pb.TLS,
    "tls": pb.TLS,
    "tcp": pb.TCP,
    "mongo": pb.TCP,
    "redis": pb.TCP,
    "mysql": pb.TCP,
}
_AT_WAYPOINTS: Final = {
    pb.HTTP11: waypoint_pb2.HTTP,
    pb.HTTP2: waypoint_pb2.HTTP2,
    pb.GRPC: waypoint_pb2.GRPC,
    pb.TCP: waypoint_pb2.TCP,
    pb.TLS: waypoint_pb2.TCP,
}
# Servers that speak first: sniffing would wait for ever.
_SERVER_FIRST: Final = frozenset({25, 53, 3306, 27017})


def app_protocol(number: int, name: str, explicit: str = "") -> pb.AppProtocol.ValueType:
    """`explicit` is a Service port's appProtocol or a ServiceEntry port's protocol."""
    if explicit in _BY_APP_PROTOCOL:
        return _BY_APP_PROTOCOL[explicit]
    found = _of_word(explicit or name)
    if found == pb.UNKNOWN and number in _SERVER_FIRST:
        return pb.TCP
    return found


def _of_word(text: str) -> pb.AppProtocol.ValueType:
    folded = text.lower()
    if folded == "grpc-web" or folded.startswith("grpc-web-"):
        return _BY_WORD["grpc-web"]
    return _BY_WORD.get(folded.partition("-")[0], pb.UNKNOWN)


def waypoint_protocol(found: pb.AppProtocol.ValueType) -> waypoint_pb2.Protocol.ValueType:
    """How a waypoint reads the port: TLS is opaque to it, an undeclared protocol is looked for."""
    return _AT_WAYPOINTS.get(found, waypoint_pb2.DETECT)
