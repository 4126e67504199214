"""Formats of access logs in Envoy's language of operators: `%RESPONSE_CODE% %REQ(X-A?:PATH):20%`. Pure.

A format is parsed once; what is not of the documented subset is refused by name then. Values are escaped as
in JSON's texts, so that nothing a client sends ends a line or a quotation; where there is no value a line has
`-` and JSON has null. Bounds: `MAX_CHARACTERS` of a format, `MAX_LABELS`, `MAX_VALUE` characters of a value.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from proto.mycelia.worker_pb2 import Exchange
from transport.errors import Blame, MeshError

MAX_CHARACTERS: Final = 4096
MAX_LABELS: Final = 64
MAX_VALUE: Final = 4096

Value = str | int | None
Read = Callable[[Exchange], Value]


class FormatRejected(MeshError):
    """A format of an access log has an operator that is not supported, or is none."""

    code: ClassVar[str] = "MYC-1905"
    blame: ClassVar[Blame] = Blame.REMOTE


@dataclass(frozen=True, slots=True)
class Format:
    """`pieces` are texts and what stands for operators; headers are those that are asked for, in small
    letters.
    """

    pieces: tuple[str | Read, ...]
    request_headers: frozenset[str]
    response_headers: frozenset[str]

    def line(self, exchange: Exchange) -> str:
        """As a line, without newline."""
        return "".join(each if isinstance(each, str) else _shown(each(exchange)) for each in self.pieces)

    def value(self, exchange: Exchange) -> Value:
        """As the value of a label: a number stays one where the format is nothing but its operator."""
        if len(self.pieces) != 1:
            return "".join(each if isinstance(each, str) else _plain(each(exchange)) for each in self.pieces)
        (piece,) = self.pieces
        return piece if isinstance(piece, str) else piece(exchange)


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """One JSON object for each line."""

    labels: tuple[tuple[str, Format], ...]

    def line(self, exchange: Exchange) -> str:
        found = {name: format_.value(exchange) for name, format_ in self.labels}
        return json.dumps(found, separators=(",", ":")).replace("\x7f", "\\u007f")

    @property
    def request_headers(self) -> frozenset[str]:
        return frozenset().union(*(each.request_headers for _, each in self.labels))

    @property
    def response_headers(self) -> frozenset[str]:
        return frozenset().union(*(each.response_headers for _, each in self.labels))


_OPERATOR: Final = re.compile(r"%%|%([A-Z_]+)(?:\(([^()%]*)\))?(?::([0-9]{1,4}))?%|%")
_NAME: Final = re.compile(r":?[A-Za-z0-9!#$&'*+.^_`|~-]+").fullmatch


def parse_format(text: str) -> Format:
    """Raises FormatRejected. A newline at the end is the line's own and is dropped."""
    text = text.removesuffix("\n")
    if len(text) > MAX_CHARACTERS:
        raise FormatRejected(f"a format has {len(text)} characters; at most {MAX_CHARACTERS}")
    if any(ord(char) < 32 and char != "\t" for char in text):
        raise FormatRejected("a format is one line without control characters")
    parser = _Parser()
    at = 0
    for found in _OPERATOR.finditer(text):
        parser.add(text[at : found.start()])
        parser.add("%" if found[0] == "%%" else parser.operator(found, text))
        at = found.end()
    parser.add(text[at:])
    return Format(tuple(parser.pieces), frozenset(parser.request_headers), frozenset(parser.response_headers))


def parse_labels(labels: Mapping[str, str]) -> LabelFormat:
    """Raises FormatRejected."""
    if len(labels) > MAX_LABELS:
        raise FormatRejected(f"a format has {len(labels)} labels; at most {MAX_LABELS}")
    return LabelFormat(tuple((name, parse_format(text)) for name, text in labels.items()))


class _Parser:
    def __init__(self) -> None:
        self.pieces: list[str | Read] = []
        self.request_headers: set[str] = set()
        self.response_headers: set[str] = set()

    def add(self, piece: str | Read) -> None:
        if isinstance(piece, str) and self.pieces and isinstance(self.pieces[-1], str):
            self.pieces[-1] += piece
        elif piece != "":
            self.pieces.append(piece)

    def operator(self, found: re.Match[str], text: str) -> Read:
        name, argument, length = found.groups()
        if name is None:
            raise FormatRejected(f"{text[found.start() :][:30]!r} is no operator; a percent sign is %%")
        limit = MAX_VALUE if length is None else min(int(length), MAX_VALUE)
        if name in ("REQ", "RESP"):
            return _cut(self._header(name, argument or ""), limit)
        if name == "START_TIME" and argument is None:
            return _cut(_start_time, limit)
        read = _READ.get(name)
        if read is None or argument is not None:
            raise FormatRejected(f"operator {found[0]} is not supported")
        return read if length is None else _cut(read, limit)

    def _header(self, name: str, argument: str) -> Read:
        names = [each.lower() for each in argument.split("?")]
        if len(names) > 2 or not all(_NAME(each) for each in names):
            raise FormatRejected(f"%{name}({argument})% names no header")
        if name == "RESP":
            self.response_headers.update(each for each in names if each not in _RESPONSE)
            reads = [_RESPONSE.get(each) or _response_header(each) for each in names]
        else:
            self.request_headers.update(each for each in names if each not in _REQUEST)
            reads = [_REQUEST.get(each) or _request_header(each) for each in names]
        first, other = reads[0], reads[-1]
        return lambda exchange: found if (found := first(exchange)) is not None else other(exchange)


def _text(value: bytes) -> str | None:
    return value[: MAX_VALUE * 4].decode("utf-8", "replace") or None


def _request_header(name: str) -> Read:
    return lambda exchange: _text(exchange.request_headers.get(name, b""))


def _response_header(name: str) -> Read:
    return lambda exchange: _text(exchange.response_headers.get(name, b""))


def _cut(read: Read, limit: int) -> Read:
    def cut(exchange: Exchange) -> Value:
        found = read(exchange)
        return found[:limit] if isinstance(found, str) else found

    return cut


def _plain(value: Value) -> str:
    return "-" if value is None else str(value)


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return json.dumps(value)[1:-1].replace("\x7f", "\\u007f")


def _start_time(exchange: Exchange) -> Value:
    moment = dt.datetime.fromtimestamp(exchange.time, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _grpc_status(exchange: Exchange) -> Value:
    status = exchange.grpc_status
    return int(status) if status.isdigit() and len(status) < 10 else None


def _without_port(address: str) -> str | None:
    return address.rpartition(":")[0].strip("[]") or None


_REQUEST: Final[Mapping[str, Read]] = {
    ":method": lambda exchange: _text(exchange.method),
    ":path": lambda exchange: _text(exchange.path),
    ":authority": lambda exchange: _text(exchange.authority),
    "host": lambda exchange: _text(exchange.authority),
    "user-agent": lambda exchange: _text(exchange.user_agent),
    "x-request-id": lambda exchange: _text(exchange.request_id),
    "x-forwarded-for": lambda exchange: _text(exchange.forwarded_for),
    "x-envoy-original-path": lambda exchange: _text(exchange.original_path),
}


def _nothing(_: Exchange) -> Value:
    """What this proxy does not tell: `-`, so that Istio's own formats can be written."""
    return None


def _port(address: str) -> int | None:
    port = address.rpartition(":")[2]
    return int(port) if port.isdigit() else None


def _upstream_time(exchange: Exchange) -> int | None:
    """Milliseconds until the response began."""
    seconds = exchange.upstream_time_s
    return None if seconds < 0 else round(seconds * 1000)


_RESPONSE: Final[Mapping[str, Read]] = {"x-envoy-upstream-service-time": _upstream_time}


def _grpc_name(exchange: Exchange) -> Value:
    """As Envoy spells it; the number where it is none of gRPC's."""
    number = _grpc_status(exchange)
    if not isinstance(number, int) or number >= len(_GRPC_NAMES):
        return number
    return _GRPC_NAMES[number]


_GRPC_NAMES: Final = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange"),
    *("Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)

_READ: Final[Mapping[str, Read]] = {
    "PROTOCOL": lambda exchange: exchange.protocol or None,
    "RESPONSE_CODE": lambda exchange: exchange.status,
    "RESPONSE_FLAGS": lambda exchange: exchange.flags or "-",
    "RESPONSE_CODE_DETAILS": lambda exchange: exchange.details or None,
    "CONNECTION_TERMINATION_DETAILS": lambda exchange: exchange.termination or None,
    "UPSTREAM_TRANSPORT_FAILURE_REASON": lambda exchange: exchange.failure or None,
    "BYTES_RECEIVED": lambda exchange: exchange.request_body_bytes,
    "BYTES_SENT": lambda exchange: exchange.response_body_bytes,
    "REQUEST_HEADERS_BYTES": lambda exchange: exchange.request_header_bytes,
    "RESPONSE_HEADERS_BYTES": lambda exchange: exchange.response_header_bytes,
    "DURATION": lambda exchange: round(exchange.duration_s * 1000),
    "RESPONSE_DURATION": _upstream_time,
    "UPSTREAM_HOST": lambda exchange: exchange.upstream_host or None,
    "UPSTREAM_REMOTE_ADDRESS": lambda exchange: exchange.upstream_host or None,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda exchange: _without_port(exchange.upstream_host),
    "UPSTREAM_REMOTE_PORT": lambda exchange: _port(exchange.upstream_host),
    "UPSTREAM_CLUSTER": lambda exchange: exchange.upstream_cluster or None,
    "UPSTREAM_CLUSTER_RAW": lambda exchange: exchange.upstream_cluster or None,
    "UPSTREAM_LOCAL_ADDRESS": _nothing,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": lambda exchange: exchange.attempts,
    "DOWNSTREAM_LOCAL_ADDRESS": lambda exchange: exchange.downstream_local or None,
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": lambda exchange: _without_port(exchange.downstream_local),
    "DOWNSTREAM_REMOTE_ADDRESS": lambda exchange: exchange.downstream_remote or None,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda exchange: _without_port(exchange.downstream_remote),
    "DOWNSTREAM_PEER_URI_SAN": lambda exchange: exchange.source_principal or None,
    "DOWNSTREAM_LOCAL_PORT": lambda exchange: _port(exchange.downstream_local),
    "DOWNSTREAM_REMOTE_PORT": lambda exchange: _port(exchange.downstream_remote),
    "REQUESTED_SERVER_NAME": lambda exchange: exchange.server_name or None,
    "ROUTE_NAME": lambda exchange: exchange.route_name or None,
    "GRPC_STATUS": _grpc_name,
    "GRPC_STATUS_NUMBER": _grpc_status,
    "POLICY": lambda exchange: exchange.policy or None,
    "TRACE_ID": lambda exchange: exchange.span.trace_id.hex() or None,
}
