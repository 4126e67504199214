"""Asking over gRPC: Envoy's `envoy.service.auth.v3.Authorization/Check`. Pure.

Dynamic metadata of the answer is not looked at; query parameters are not changed, so an answer that wants it
is refused rather than half obeyed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from proto.envoy import external_authorization_pb2 as pb
from transport.http2.events import Header
from waypoint.state.external_authorizer import ExternalAuthorizer
from waypoint.state.timeouts import format_grpc_timeout
from waypoint.worker.external.http_check import PARTIAL_BODY, joined
from waypoint.worker.external.verdict import Allowed, Change, Failed, Verdict, denied, is_ours, is_writable
from waypoint.worker.headers import Request, value_of
from waypoint.worker.plan import Source

PATH: Final = b"/envoy.service.auth.v3.Authorization/Check"
_PREFIX: Final = struct.Struct(">BI")


class _Unusable(Exception):
    """Something in the answer cannot be done."""


def check_head(authorizer: ExternalAuthorizer, authority: bytes, size: int) -> list[Header]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", authority),
        (b":path", PATH),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-timeout", format_grpc_timeout(authorizer.timeout_s)),
        (b"content-length", b"%d" % size),
    ]


def framed(message: bytes) -> bytes:
    return _PREFIX.pack(0, len(message)) + message


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about. `own_principal` is the waypoint's, `protocol` what the client speaks."""

    request: Request
    source: Source
    own_principal: str
    protocol: str
    now_s: float


def check_request(
    authorizer: ExternalAuthorizer, subject: Subject, body: bytes | None, *, is_whole: bool
) -> bytes:
    request, source = subject.request, subject.source
    headers = {_text(name): _text(value) for name, value in joined(request.headers).items()}
    headers |= {
        ":method": _text(request.method),
        ":path": _text(request.target),
        ":authority": _text(request.authority),
        ":scheme": _text(request.scheme),
    }
    length = value_of(request.headers, b"content-length")
    http = pb.AttributeContext.HttpRequest(
        id=_text(request.request_id),
        method=_text(request.method),
        headers=headers,
        path=_text(request.target),
        host=_text(request.authority),
        scheme=_text(request.scheme),
        size=int(length) if length.isdigit() and len(length) < 19 else -1,
        protocol=subject.protocol,
    )
    if body is not None:
        http.headers[PARTIAL_BODY.decode()] = "false" if is_whole else "true"
        if authorizer.body is not None and authorizer.body.as_bytes:
            http.raw_body = body
        else:
            http.body = body.decode("utf-8", "replace")
    identity = source.identity
    context = pb.AttributeContext(
        source=_peer(source.address, "" if identity is None else str(identity)),
        destination=_peer(source.destination, subject.own_principal),
        request=pb.AttributeContext.Request(http=http),
    )
    context.request.time.FromNanoseconds(int(subject.now_s * 1e9))
    return pb.CheckRequest(attributes=context).SerializeToString()


def _text(octets: bytes) -> str:
    """Whatever a header holds, protobuf's text is UTF-8 (CVE-2023-27488)."""
    return octets.decode("utf-8", "replace")


def _peer(address: tuple[str, int], principal: str) -> pb.AttributeContext.Peer:
    place = pb.SocketAddress(address=address[0], port_value=address[1])
    return pb.AttributeContext.Peer(address=pb.Address(socket_address=place), principal=principal)


def read_reply(status: int, headers: Sequence[Header], trailers: Sequence[Header], body: bytes) -> Verdict:
    if status != 200:
        return Failed(f"the provider answered HTTP {status}")
    code = value_of(trailers, b"grpc-status") or value_of(headers, b"grpc-status")
    if code != b"0":
        return Failed(f"the provider answered gRPC status {code[:8].decode('ascii', 'replace') or 'none'}")
    if len(body) < _PREFIX.size or body[0] or _PREFIX.unpack_from(body)[1] != len(body) - _PREFIX.size:
        return Failed("the provider's answer is no gRPC message")
    response = pb.CheckResponse()
    try:
        response.ParseFromString(body[_PREFIX.size :])
    except DecodeError:
        return Failed("the provider's answer is no CheckResponse")
    return _verdict(response)


def _verdict(response: pb.CheckResponse) -> Verdict:
    is_denied = response.HasField("denied_response")
    if response.status.code or is_denied:
        refused = response.denied_response
        fields = [(change.name, change.value) for change in _usable(refused.headers)]
        return denied(refused.status.code or 403, fields, refused.body.encode())
    allowed = response.ok_response
    if allowed.query_parameters_to_set or allowed.query_parameters_to_remove:
        return Failed("the provider wants to change query parameters", is_final=True)
    try:
        changes = tuple(_strict(allowed.headers))
        client = tuple(_strict(allowed.response_headers_to_add, joins=True))
    except _Unusable as error:
        return Failed(f"the provider wants a change that cannot be made: {error}", is_final=True)
    removed = tuple(name for text in allowed.headers_to_remove if not is_ours(name := text.lower().encode()))
    return Allowed(changes, removed, client)


def _strict(options: Iterable[pb.HeaderValueOption], *, joins: bool = False) -> Iterable[Change]:
    for option in options:
        change = _change(option, joins=joins)
        if is_ours(change.name) or not is_writable(change.name, change.value):
            raise _Unusable(f"header {change.name[:64]!r}")
        yield change


def _usable(options: Iterable[pb.HeaderValueOption]) -> Iterable[Change]:
    return (_change(option, joins=True) for option in options)


def _change(option: pb.HeaderValueOption, *, joins: bool) -> Change:
    """Unless `append` or another action says otherwise, a request's header is overwritten (Envoy's default
    here); a response's is added.
    """
    name = option.header.key.lower().encode()
    value = option.header.raw_value or option.header.value.encode()
    if option.HasField("append"):
        return Change(name, value, joins=option.append.value)
    match option.append_action:
        case pb.HeaderValueOption.ADD_IF_ABSENT:
            return Change(name, value, only_absent=True)
        case pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD:
            return Change(name, value)
        case pb.HeaderValueOption.OVERWRITE_IF_EXISTS:
            return Change(name, value, only_present=True)
        case _:
            return Change(name, value, joins=joins)
