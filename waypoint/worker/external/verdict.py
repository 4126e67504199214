"""What a provider said, and what that does to a request and its response. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from transport.http2.events import Header
from waypoint.worker.answers import Answer

# About the connection, the length of the message, or set by the waypoint alone: no provider changes them.
_FRAMING: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-forwarded-client-cert",
    }
)
# Said to the waypoint by the provider's server, not to the client.
_OF_THE_PROVIDER: Final = frozenset({b"date", b"server"})
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch


def is_ours(name: bytes) -> bool:
    """Whether a provider has no say in this header."""
    folded = name.replace(b"_", b"-")
    return folded in _FRAMING or folded.startswith(b"x-envoy-") or name[:1] == b":"


def is_writable(name: bytes, value: bytes) -> bool:
    return _NAME(name) is not None and _VALUE(value) is not None


@dataclass(frozen=True, slots=True)
class Change:
    """To a header. `joins`: added to what is there; `only_absent`, `only_present`: by whether it is there."""

    name: bytes
    value: bytes
    joins: bool = False
    only_absent: bool = False
    only_present: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """`removed` goes from the request first, then `changes` are made; `response` is for the client."""

    changes: tuple[Change, ...] = ()
    removed: tuple[bytes, ...] = ()
    response: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied:
    status: int
    headers: tuple[Header, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Failed:
    """No verdict. `is_final`: there was an answer, but one that must not be acted on: never fails open."""

    reason: str
    is_final: bool = False


Verdict: TypeAlias = Allowed | Denied | Failed


def denied(status: int, headers: Sequence[Header], body: bytes) -> Denied:
    """A status that is none, or that would not end the request, becomes 403."""
    kept = tuple(
        (name, value)
        for name, value in headers
        if not is_ours(name) and name not in _OF_THE_PROVIDER and is_writable(name, value)
    )
    return Denied(status if 200 <= status <= 599 else 403, kept, body)


def answer_of(verdict: Denied) -> Answer:
    return Answer(verdict.status, "ext_authz_denied", "UAEX", verdict.body, verdict.headers)


def apply_changes(headers: Sequence[Header], changes: Sequence[Change]) -> list[Header]:
    """One after the other, each on what the one before left."""
    result = list(headers)
    for change in changes:
        is_there = any(name == change.name for name, _ in result)
        if (change.only_absent and is_there) or (change.only_present and not is_there):
            continue
        if not change.joins:
            result = [field for field in result if field[0] != change.name]
        result.append((change.name, change.value))
    return result
