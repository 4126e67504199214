"""Whom action CUSTOM asks, as a waypoint knows it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proto.mycelia import authorization_l7_pb2 as pb
from waypoint.state.errors import RoutesRejected

MAX_BODY_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NamePatterns:
    """Names of headers: exact, by prefix, by suffix. Empty: none."""

    exact: frozenset[bytes] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    suffixes: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> NamePatterns:
        texts = [pattern.encode() for pattern in patterns]
        return cls(
            frozenset(text for text in texts if b"*" not in text),
            tuple(text[:-1] for text in texts if text.endswith(b"*")),
            tuple(text[1:] for text in texts if text.startswith(b"*") and text != b"*"),
        )

    def __bool__(self) -> bool:
        return bool(self.exact or self.prefixes or self.suffixes)

    def match(self, name: bytes) -> bool:
        return name in self.exact or name.startswith(self.prefixes) or name.endswith(self.suffixes)

    @property
    def is_everything(self) -> bool:
        return b"" in self.prefixes


@dataclass(frozen=True, slots=True)
class BodyWanted:
    max_bytes: int
    may_be_partial: bool
    as_bytes: bool


@dataclass(frozen=True, slots=True)
class ExternalAuthorizer:
    """authorization_l7.proto's message of that name. Two that are equal are one provider."""

    service: str
    port: int
    timeout_s: float
    fails_open: bool
    error_status: int
    clears_route: bool
    body: BodyWanted | None
    is_grpc: bool
    path_prefix: bytes
    request_headers: NamePatterns
    additional_headers: tuple[tuple[bytes, bytes], ...]
    upstream_headers: NamePatterns
    deny_headers: NamePatterns
    allow_headers: NamePatterns


def parse_authorizer(message: pb.ExternalAuthorizer) -> ExternalAuthorizer:
    """Raises RoutesRejected for what nobody can ask."""
    timeout_s = message.timeout.seconds + message.timeout.nanos / 1e9
    if not message.service or not 1 <= message.port <= 65535 or timeout_s <= 0:
        raise RoutesRejected("its provider has no service, port or timeout")
    if not 400 <= message.error_status <= 599:
        raise RoutesRejected(f"its provider's status on errors is {message.error_status}")
    body = message.body if message.HasField("body") else None
    if body is not None and not 1 <= body.max_bytes <= MAX_BODY_BYTES:
        raise RoutesRejected(f"its provider wants {body.max_bytes} bytes of each body")
    return ExternalAuthorizer(
        message.service,
        message.port,
        timeout_s,
        message.fails_open,
        message.error_status,
        message.clears_route,
        None if body is None else BodyWanted(body.max_bytes, body.may_be_partial, body.as_bytes),
        message.is_grpc,
        message.path_prefix.encode(),
        NamePatterns.of(message.request_headers),
        tuple((line.name.encode(), line.value.encode()) for line in message.additional_headers),
        NamePatterns.of(message.upstream_headers),
        NamePatterns.of(message.deny_headers),
        NamePatterns.of(message.allow_headers),
    )
