"""What is done with a request that a rule matched: immutable forms of waypoint.proto's HttpRule.

Invariants: what cannot be meant is refused with `RoutesRejected` when the resource arrives, so a decision at
run time never meets it. Durations are seconds, names of headers are lower-case bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.matching import Test, string_test
from waypoint.state.regex import Pattern, check_substitution
from waypoint.state.request import Header

_FORBIDDEN_IN_NAMES = frozenset(b'\x00\r\n\t "(),/;<=>?@[\\]{}')
# What frames a message on the wire is the codecs' own: a rule that changed it would open a way to smuggle.
_FRAMING = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# Envoy's names; what each means is retry.py's. HTTP/3 is not spoken, so its condition never holds.
RETRY_CONDITIONS = frozenset(
    {
        "5xx",
        "cancelled",
        "connect-failure",
        "deadline-exceeded",
        "envoy-ratelimited",
        "gateway-error",
        "http3-post-connect-failure",
        "internal",
        "refused-stream",
        "reset",
        "reset-before-request",
        "resource-exhausted",
        "retriable-4xx",
        "retriable-status-codes",
        "unavailable",
    }
)


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """Removals come first, then `set`, then `add` (config-api 6.3)."""

    set: tuple[Header, ...] = ()
    add: tuple[Header, ...] = ()
    remove: frozenset[bytes] = frozenset()
    replaced: frozenset[bytes] = field(init=False)  # names whose present lines go

    def __post_init__(self) -> None:
        object.__setattr__(self, "replaced", self.remove.union(name for name, _ in self.set))


@dataclass(frozen=True, slots=True)
class Backend:
    """A destination; with `failure_status` one that does not exist: its share gets that status."""

    service: str
    port: int
    weight: int = 1
    subset: str = ""
    failure_status: int = 0
    problem: str = ""
    request_headers: HeaderChanges | None = None
    response_headers: HeaderChanges | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Backends by weight; `cumulative` is None where there is only one to choose."""

    backends: tuple[Backend, ...]
    cumulative: tuple[int, ...] | None

    def choose(self, random: float) -> Backend | None:
        """The backend for a number in [0, 1); None where all weights are zero: 500 (config-api 6.4)."""
        if self.cumulative is None:
            return self.backends[0] if self.backends else None
        return self.backends[bisect_right(self.cumulative, int(random * self.cumulative[-1]))]


@dataclass(frozen=True, slots=True)
class FullPath:
    path: bytes


@dataclass(frozen=True, slots=True)
class PrefixPath:
    """Takes the place of what the rule's path match matched."""

    replacement: bytes


@dataclass(frozen=True, slots=True)
class RegexPath:
    pattern: Pattern
    substitution: bytes


PathChange: TypeAlias = FullPath | PrefixPath | RegexPath


@dataclass(frozen=True, slots=True)
class Redirect:
    """Empty and zero fields keep what the request has."""

    scheme: bytes = b""
    hostname: bytes = b""
    path: PathChange | None = None
    port: int = 0
    status: int = 302
    keeps_port_of_host: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    status: int
    body: bytes = b""


Action: TypeAlias = Forward | Redirect | DirectResponse


@dataclass(frozen=True, slots=True)
class Rewrite:
    authority: bytes = b""
    path: PathChange | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A share of requests, numerator in denominator."""

    numerator: int
    denominator: int

    def includes(self, random: float) -> bool:
        return random * self.denominator < self.numerator


@dataclass(frozen=True, slots=True)
class Mirror:
    backend: Backend
    share: Share


@dataclass(frozen=True, slots=True)
class Cors:
    allow_origins: tuple[Test, ...]
    allow_methods: tuple[bytes, ...] = ()
    allow_headers: tuple[bytes, ...] = ()
    expose_headers: tuple[bytes, ...] = ()
    max_age_s: int | None = None
    allow_credentials: bool = False
    forwards_unmatched_preflights: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    delay_share: Share | None = None
    delay_s: float = 0.0
    abort_share: Share | None = None
    abort_status: int = 0
    abort_grpc_status: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`on` empty: the safe default conditions, for as many attempts."""

    attempts: int
    on: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    per_try_timeout_s: float | None = None
    backoff_s: float = 0.025
    may_use_remote_localities: bool = False
    may_repeat_hosts: bool = False


@dataclass(frozen=True, slots=True)
class SessionPersistence:
    name: bytes
    is_header: bool = False
    absolute_timeout_s: int | None = None
    idle_timeout_s: int | None = None
    is_permanent: bool = False


@dataclass(frozen=True, slots=True)
class HttpRule:
    """All of a rule but its matches."""

    name: str
    action: Action
    request_headers: HeaderChanges | None = None
    response_headers: HeaderChanges | None = None
    rewrite: Rewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    fault: Fault | None = None
    timeout_s: float | None = None
    retries: RetryPolicy | None = None
    session_persistence: SessionPersistence | None = None
    is_grpc: bool = False


def http_rule(message: pb.HttpRule) -> HttpRule:
    """Raises `RoutesRejected` with what is wrong."""
    return HttpRule(
        name=message.name,
        action=_action(message),
        request_headers=_changes_of(message, "request_headers", message.request_headers),
        response_headers=_changes_of(message, "response_headers", message.response_headers),
        rewrite=_rewrite(message.rewrite) if message.HasField("rewrite") else None,
        mirrors=tuple(Mirror(backend(mirror.backend), _mirror_share(mirror)) for mirror in message.mirrors),
        cors=_cors(message.cors) if message.HasField("cors") else None,
        fault=_fault(message.fault) if message.HasField("fault") else None,
        timeout_s=_positive(seconds(message.timeout)) if message.HasField("timeout") else None,
        retries=retry_policy(message.retries) if message.HasField("retries") else None,
        session_persistence=(
            _session(message.session_persistence) if message.HasField("session_persistence") else None
        ),
        is_grpc=message.is_grpc,
    )


def backend(message: pb.Backend) -> Backend:
    if not message.service and not message.failure_status:
        raise RoutesRejected("a backend names no service")
    return Backend(
        service=message.service,
        port=message.port,
        weight=message.weight,
        subset=message.subset,
        failure_status=message.failure_status,
        problem=message.problem,
        request_headers=_changes_of(message, "request_headers", message.request_headers),
        response_headers=_changes_of(message, "response_headers", message.response_headers),
    )


def forward(backends: Iterable[Backend]) -> Forward:
    """Backends without weight are left out; one that remains needs no choice."""
    weighed = tuple(candidate for candidate in backends if candidate.weight)
    if len(weighed) < 2:
        return Forward(weighed, None)
    return Forward(weighed, tuple(accumulate(candidate.weight for candidate in weighed)))


def seconds(duration: Duration) -> float:
    if duration.seconds < 0 or duration.nanos < 0:
        raise RoutesRejected("a duration is negative")
    return duration.seconds + duration.nanos / 1e9


def share(message: pb.Fraction) -> Share:
    return Share(message.numerator, message.denominator or 100)


def _positive(duration_s: float) -> float | None:
    """Zero means without limit (Gateway API and Istio alike)."""
    return duration_s or None


def _action(message: pb.HttpRule) -> Action:
    match message.WhichOneof("action"):
        case "forward":
            return forward(backend(each) for each in message.forward.backends)
        case "redirect":
            return _redirect(message.redirect)
        case "direct_response":
            return DirectResponse(
                _status(message.direct_response.status), bytes(message.direct_response.body)
            )
        case _:
            raise RoutesRejected(f"rule {message.name} does nothing")


def _changes_of(
    owner: pb.HttpRule | pb.Backend, field: str, message: pb.HeaderChanges
) -> HeaderChanges | None:
    if not owner.HasField(field):  # type: ignore[arg-type]
        return None
    return HeaderChanges(
        tuple(_field(each) for each in message.set),
        tuple(_field(each) for each in message.add),
        frozenset(_removable(name) for name in message.remove),
    )


def _field(message: pb.HeaderChanges.Field) -> Header:
    value = message.value.encode()
    if any(octet in value for octet in (b"\x00", b"\r", b"\n")):
        raise RoutesRejected(f"the value for header {message.name} has a control character")
    return _name(message.name), value


def _removable(text: str) -> bytes:
    name = _name(text)
    if name == b":authority":
        raise RoutesRejected("the host of a request cannot be removed")
    return name


def _name(text: str) -> bytes:
    name = text.lower().encode()
    if name == b"host":
        return b":authority"
    if not name or not _FORBIDDEN_IN_NAMES.isdisjoint(name) or not name.isascii():
        raise RoutesRejected(f"{text!r} is no header name")
    if name in _FRAMING or (name.startswith(b":") and name != b":authority"):
        raise RoutesRejected(f"header {text} cannot be changed")
    return name


def _path_change(message: pb.PathChange) -> PathChange:
    match message.WhichOneof("kind"):
        case "full":
            return FullPath(message.full.encode())
        case "prefix":
            return PrefixPath(message.prefix.encode())
        case "regex":
            return RegexPath(Pattern(message.regex.match), check_substitution(message.regex.substitution))
        case _:
            raise RoutesRejected("a path change says nothing")


def _redirect(message: pb.Redirect) -> Redirect:
    return Redirect(
        scheme=message.scheme.lower().encode(),
        hostname=message.hostname.encode(),
        path=_path_change(message.path) if message.HasField("path") else None,
        port=message.port,
        status=_status(message.status or 302),
        keeps_port_of_host=message.keeps_port_of_host,
    )


def _rewrite(message: pb.Rewrite) -> Rewrite:
    return Rewrite(
        message.authority.encode(), _path_change(message.path) if message.HasField("path") else None
    )


def _mirror_share(message: pb.Mirror) -> Share:
    return share(message.share) if message.HasField("share") else Share(1, 1)


def _cors(message: pb.Cors) -> Cors:
    return Cors(
        allow_origins=tuple(string_test(origin) for origin in message.allow_origins),
        allow_methods=tuple(method.encode() for method in message.allow_methods),
        allow_headers=tuple(name.encode() for name in message.allow_headers),
        expose_headers=tuple(name.encode() for name in message.expose_headers),
        max_age_s=int(seconds(message.max_age)) if message.HasField("max_age") else None,
        allow_credentials=message.allow_credentials,
        forwards_unmatched_preflights=message.forwards_unmatched_preflights,
    )


def _fault(message: pb.Fault) -> Fault:
    has_abort = message.HasField("abort_share")
    if has_abort and not message.abort_status and not message.abort_grpc_status:
        raise RoutesRejected("a fault aborts without a status")
    return Fault(
        delay_share=share(message.delay_share) if message.HasField("delay_share") else None,
        delay_s=seconds(message.delay),
        abort_share=share(message.abort_share) if has_abort else None,
        abort_status=_status(message.abort_status) if message.abort_status else 0,
        abort_grpc_status=message.abort_grpc_status,
    )


def retry_policy(message: pb.RetryPolicy) -> RetryPolicy:
    """Raises `RoutesRejected`."""
    has_per_try = message.HasField("per_try_timeout")
    on = frozenset(name.strip().lower() for name in message.on if name.strip())
    if unknown := on - RETRY_CONDITIONS:
        raise RoutesRejected(f"retries on {', '.join(sorted(unknown))} are not supported")
    return RetryPolicy(
        attempts=message.attempts,
        on=on,
        statuses=frozenset(message.statuses),
        per_try_timeout_s=_positive(seconds(message.per_try_timeout)) if has_per_try else None,
        backoff_s=(seconds(message.backoff) if message.HasField("backoff") else 0.0) or 0.025,
        may_use_remote_localities=message.may_use_remote_localities,
        may_repeat_hosts=message.may_repeat_hosts,
    )


def _session(message: pb.SessionPersistence) -> SessionPersistence:
    return SessionPersistence(
        name=_name(message.name) if message.is_header else message.name.encode(),
        is_header=message.is_header,
        absolute_timeout_s=(
            int(seconds(message.absolute_timeout)) if message.HasField("absolute_timeout") else None
        ),
        idle_timeout_s=int(seconds(message.idle_timeout)) if message.HasField("idle_timeout") else None,
        is_permanent=message.is_permanent,
    )


def _status(status: int) -> int:
    if not 200 <= status <= 599:
        raise RoutesRejected(f"{status} is no status that can be answered")
    return status
