"""Routes to what a waypoint tries in order (config-api 6, waypoint-facts 6). Pure.

Each rule is split into one candidate per match; candidates of all routes of a port are put in the order of
precedence, so that the first that matches decides. Defaults are filled in here: a waypoint has no opinion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from config.compile.messages import (
    DEFAULT_ATTEMPTS,
    DEFAULT_BACKOFF_MS,
    Target,
    duration,
    header_changes,
)
from config.compile.resource import SERVICE_ROUTES, Resource, make_resource
from config.compile.virtual_services import (
    Called,
    ResolveTarget,
    virtual_http_rules,
    virtual_stream_rules,
)
from config.objects import GrpcRoute, HttpRoute, Route, TcpRoute, TlsRoute
from config.routing_rules import (
    BackendRef,
    Cors,
    Filters,
    GrpcMatch,
    GrpcRule,
    HttpMatch,
    HttpRule,
    PathEdit,
    PathKind,
    Persistence,
    Retry,
    ValueMatch,
)
from config.virtual_routes import VirtualRoutes
from proto.mycelia import waypoint_pb2 as pb

# Who writes a retry stanza also means connections that break and attempts that take too long (`reset`).
STANZA_RETRY_ON: Final = (
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
    "retriable-status-codes",
    "reset",
)
SESSION_NAME: Final = "mycelia-session"
INVALID_STATUS: Final = 500

_PATH_RANK: Final = {kind: rank for rank, kind in enumerate(PathKind)}


Resolve = Callable[[BackendRef], Target]


@dataclass(frozen=True, slots=True)
class PortAttachment:
    """A service port and the routes that count on it, oldest first."""

    number: int
    protocol: pb.Protocol.ValueType
    http: tuple[HttpRoute | GrpcRoute, ...] = ()
    tls: tuple[TlsRoute, ...] = ()
    tcp: TcpRoute | TlsRoute | None = None
    # In place of the routes above, where there are none of the kind.
    virtual_http: tuple[VirtualRoutes, ...] = ()
    virtual_streams: tuple[VirtualRoutes, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedService:
    namespace: str
    hostname: str
    waypoints: tuple[str, ...]
    addresses: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class Resolvers:
    """Where backends of Gateway API routes and destinations of VirtualServices lead."""

    backend: Resolve
    target: ResolveTarget


def compile_routes(served: ServedService, ports: Iterable[PortAttachment], resolvers: Resolvers) -> Resource:
    message = pb.ServiceRoutes(
        namespace=served.namespace,
        hostname=served.hostname,
        ports=[_port(each, served, resolvers) for each in ports],
    )
    return make_resource(SERVICE_ROUTES, served.name, message, waypoints=served.waypoints)


def _port(port: PortAttachment, served: ServedService, resolvers: Resolvers) -> pb.PortRoutes:
    resolve = resolvers.backend
    called = Called(served.name, port.number, served.addresses, resolvers.target)
    return pb.PortRoutes(
        service_port=port.number,
        protocol=port.protocol,
        http_rules=[*http_rules(port.http, resolve), *virtual_http_rules(port.virtual_http, called)],
        tcp_rules=[
            *(rule for route in port.tls for rule in _stream_rules(route, [served.hostname], resolve)),
            *(_stream_rules(port.tcp, [], resolve) if port.tcp is not None else ()),
            *virtual_stream_rules(port.virtual_streams, called),
        ],
    )


def http_rules(routes: Iterable[HttpRoute | GrpcRoute], resolve: Resolve) -> list[pb.HttpRule]:
    """In the order of precedence (config-api 6.2, 6.5)."""
    candidates: list[tuple[tuple[object, ...], pb.HttpRule]] = []
    for route in routes:
        for index in range(len(route.rules)):
            made = (
                _http(route, index, resolve) if isinstance(route, HttpRoute) else _grpc(route, index, resolve)
            )
            age = (*route.meta.age_key, index)
            candidates += [((*key, *age, position), rule) for position, (key, rule) in enumerate(made)]
    candidates.sort(key=lambda candidate: candidate[0])
    return [rule for _, rule in candidates]


def rule_name(route: Route, index: int) -> str:
    meta = route.meta
    return f"{meta.ref.kind}/{meta.namespace}/{meta.name}/{route.rules[index].name or index}"


# ---- HTTPRoute ----


def _http(route: HttpRoute, index: int, resolve: Resolve) -> Iterator[tuple[tuple[object, ...], pb.HttpRule]]:
    rule = route.rules[index]
    whole = _rule(rule_name(route, index), rule, resolve)
    timeout = _route_timeout(rule)
    if timeout:
        whole.timeout.CopyFrom(duration(timeout))
    if rule.retry is not None:
        whole.retries.CopyFrom(_retries(rule, rule.retry))
    for match in rule.matches:
        yield _http_key(match), _with_match(whole, _http_match(match))


def _http_key(match: HttpMatch) -> tuple[object, ...]:
    return (
        _PATH_RANK[match.path.kind],
        -len(match.path.value),
        not match.method,
        -len(match.headers),
        -len(match.query),
    )


def _with_match(whole: pb.HttpRule, match: pb.HttpMatch) -> pb.HttpRule:
    made = pb.HttpRule()
    made.CopyFrom(whole)
    made.matches.append(match)
    return made


def _http_match(match: HttpMatch) -> pb.HttpMatch:
    path = match.path.value
    made = pb.HttpMatch(
        method=match.method,
        headers=_values(match.headers),
        query_parameters=_values(match.query),
    )
    match match.path.kind:
        case PathKind.EXACT:
            made.path.exact = path
        case PathKind.PREFIX:
            made.path.prefix = path.rstrip("/") or "/"
        case PathKind.REGEX:
            made.path.regex = path
    return made


def _values(matches: Iterable[ValueMatch]) -> list[pb.ValueMatch]:
    return [
        pb.ValueMatch(name=each.name, regex=each.value)
        if each.is_regex
        else pb.ValueMatch(name=each.name, exact=each.value)
        for each in matches
    ]


def _route_timeout(rule: HttpRule) -> int:
    """0: none. Without a retry stanza `backendRequest` bounds the whole."""
    if rule.retry is None and rule.backend_timeout_ms:
        return rule.backend_timeout_ms
    return rule.request_timeout_ms or 0


def _retries(rule: HttpRule, stanza: Retry) -> pb.RetryPolicy:
    attempts = DEFAULT_ATTEMPTS if stanza.attempts is None else stanza.attempts
    if attempts == 0:
        return pb.RetryPolicy()
    made = pb.RetryPolicy(
        attempts=attempts,
        on=STANZA_RETRY_ON,
        statuses=stanza.codes,
        backoff=duration(stanza.backoff_ms or DEFAULT_BACKOFF_MS),
    )
    if rule.backend_timeout_ms:
        made.per_try_timeout.CopyFrom(duration(rule.backend_timeout_ms))
    return made


# ---- GRPCRoute ----


def _grpc(route: GrpcRoute, index: int, resolve: Resolve) -> Iterator[tuple[tuple[object, ...], pb.HttpRule]]:
    rule = route.rules[index]
    whole = _rule(rule_name(route, index), rule, resolve)
    whole.is_grpc = True
    for match in rule.matches:
        yield _grpc_key(match), _with_match(whole, _grpc_match(match))


def _grpc_key(match: GrpcMatch) -> tuple[object, ...]:
    return (match.is_regex, -len(match.service), -len(match.method), -len(match.headers))


def _grpc_match(match: GrpcMatch) -> pb.HttpMatch:
    made = pb.HttpMatch(headers=_values(match.headers))
    if not match.service and not match.method:
        made.path.prefix = "/"
    elif match.is_regex:
        made.path.regex = f"/{_group(match.service)}/{_group(match.method)}"
    elif match.service and match.method:
        made.path.exact = f"/{match.service}/{match.method}"
    elif match.service:
        made.path.string_prefix = f"/{match.service}/"
    else:
        made.path.regex = f"/[^/]+/{re.escape(match.method)}"
    return made


def _group(expression: str) -> str:
    return f"(?:{expression})" if expression else "[^/]+"


# ---- what both have ----


def _rule(name: str, rule: HttpRule | GrpcRule, resolve: Resolve) -> pb.HttpRule:
    filters = rule.filters
    made = pb.HttpRule(name=name)
    if filters.unsupported:
        # A filter may not be skipped: what it should have seen is refused.
        made.direct_response.status = INVALID_STATUS
        return made
    if filters.redirect is not None:
        redirect = filters.redirect
        made.redirect.CopyFrom(
            pb.Redirect(
                scheme=redirect.scheme,
                hostname=redirect.hostname,
                path=_path_change(redirect.path),
                port=redirect.port,
                status=redirect.status,
            )
        )
    else:
        made.forward.backends.extend(_backend(each, resolve) for each in rule.backends)
        made.forward.SetInParent()
    _add_filters(made, filters, resolve)
    if rule.persistence is not None:
        made.session_persistence.CopyFrom(_persistence(rule.persistence))
    return made


def _add_filters(made: pb.HttpRule, filters: Filters, resolve: Resolve) -> None:
    if filters.request_headers is not None:
        made.request_headers.CopyFrom(header_changes(filters.request_headers))
    if filters.response_headers is not None:
        made.response_headers.CopyFrom(header_changes(filters.response_headers))
    if filters.rewrite is not None:
        rewrite = filters.rewrite
        made.rewrite.CopyFrom(pb.Rewrite(authority=rewrite.hostname, path=_path_change(rewrite.path)))
    for mirror in filters.mirrors:
        backend = _backend(mirror.backend, resolve)
        if not backend.failure_status:
            share = pb.Fraction(numerator=mirror.numerator, denominator=mirror.denominator)
            made.mirrors.append(pb.Mirror(backend=backend, share=share))
    if filters.cors is not None:
        made.cors.CopyFrom(_cors(filters.cors))


def _path_change(edit: PathEdit | None) -> pb.PathChange | None:
    if edit is None:
        return None
    return pb.PathChange(prefix=edit.value) if edit.is_prefix else pb.PathChange(full=edit.value)


def _cors(cors: Cors) -> pb.Cors:
    return pb.Cors(
        allow_origins=[_origin(each) for each in cors.allow_origins],
        allow_methods=cors.allow_methods,
        allow_headers=cors.allow_headers,
        expose_headers=cors.expose_headers,
        max_age=duration(cors.max_age_s * 1000),
        allow_credentials=cors.allow_credentials,
    )


def _origin(text: str) -> pb.StringMatch:
    if text == "*":
        return pb.StringMatch(prefix="")
    if "*" not in text:
        return pb.StringMatch(exact=text)
    before, _, after = text.partition("*")
    return pb.StringMatch(regex=f"{re.escape(before)}[-A-Za-z0-9.]+{re.escape(after)}")


def _persistence(wanted: Persistence) -> pb.SessionPersistence:
    made = pb.SessionPersistence(
        name=wanted.name or SESSION_NAME, is_header=wanted.is_header, is_permanent=wanted.is_permanent
    )
    if wanted.absolute_timeout_ms:
        made.absolute_timeout.CopyFrom(duration(wanted.absolute_timeout_ms))
    if wanted.idle_timeout_ms:
        made.idle_timeout.CopyFrom(duration(wanted.idle_timeout_ms))
    return made


def _backend(ref: BackendRef, resolve: Resolve) -> pb.Backend:
    target = resolve(ref)
    made = pb.Backend(weight=ref.weight)
    if target.problem:
        made.failure_status = INVALID_STATUS
        made.problem = target.problem
        return made
    made.service, made.port = target.service, target.port
    if ref.request_headers is not None:
        made.request_headers.CopyFrom(header_changes(ref.request_headers))
    if ref.response_headers is not None:
        made.response_headers.CopyFrom(header_changes(ref.response_headers))
    return made


def _stream_rules(route: TcpRoute | TlsRoute, hostnames: Sequence[str], resolve: Resolve) -> list[pb.TcpRule]:
    return [
        pb.TcpRule(
            name=rule_name(route, index),
            sni_hosts=hostnames,
            backends=[_backend(each, resolve) for each in rule.backends],
        )
        for index, rule in enumerate(route.rules)
    ]
