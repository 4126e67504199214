"""VirtualServices to what a waypoint tries in order (config-api 12). Pure.

Routes keep the order in which they are written; those of several VirtualServices follow each other, except
that one which takes every request comes after the routes of the others, as at Istio (its pull request 59484).
What depends on the port that was called is decided here: matches by port, the port of a redirect, the port of
a destination that names none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from config.compile.messages import (
    DEFAULT_BACKOFF_MS,
    Target,
    duration,
    header_changes,
)
from config.routing_rules import HeaderEdit
from config.virtual_routes import (
    Cors,
    DerivedPort,
    Fault,
    HttpPart,
    NamedMatch,
    PathEdit,
    Redirect,
    RequestMatch,
    Retries,
    SourcedPart,
    StreamMatch,
    StreamPart,
    TextKind,
    TextMatch,
    VirtualRoutes,
    WeightedTarget,
)
from config.virtual_routes import Target as HostTarget
from proto.mycelia import waypoint_pb2 as pb

# Istio's, for a stanza that names no conditions.
STANZA_RETRY_ON: Final = (
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
    "retriable-status-codes",
)
UNKNOWN_STATUS: Final = 503
MILLION: Final = 1_000_000
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_AUTHORITY: Final = "host"

# From the namespace of the VirtualService, its destination and the port that was called.
ResolveTarget = Callable[[str, HostTarget, int], Target]


@dataclass(frozen=True, slots=True)
class Called:
    """The service whose routes these are, by its name in the address book, and one of its ports."""

    service: str
    port: int
    addresses: tuple[str, ...]
    resolve: ResolveTarget


# ---- requests ----


def virtual_http_rules(services: Sequence[VirtualRoutes], called: Called) -> list[pb.HttpRule]:
    """Empty: nothing is said about this port."""
    rules: list[pb.HttpRule] = []
    last: list[pb.HttpRule] = []
    for service in services:
        for is_catch_all, rule in _rules_of(service, called):
            (last if is_catch_all else rules).append(rule)
    return [*rules, *last]


def _rules_of(service: VirtualRoutes, called: Called) -> Iterator[tuple[bool, pb.HttpRule]]:
    """(whether it takes every request, rule), up to the first that does."""
    for sourced in service.http:
        matches = applicable(sourced.part, called.port)
        if matches is None:
            continue
        narrow: list[RequestMatch] = []
        for match in matches:
            if _is_catch_all(match):
                break
            narrow.append(match)
        if narrow:
            yield False, _rule(sourced, narrow, called)
        if len(narrow) < len(matches):
            yield True, _rule(sourced, [matches[len(narrow)]], called)
            return


def applicable(part: HttpPart, port: int) -> list[RequestMatch] | None:
    """The matches that can hold on this port; None if none of those written can."""
    if not part.matches:
        return [RequestMatch()]
    found = [
        each for each in part.matches if each.port in (0, port) and each.is_for_mesh and not each.unsupported
    ]
    return found or None


def _is_catch_all(match: RequestMatch) -> bool:
    anything = match.uri in (None, TextMatch(TextKind.PREFIX, "/"), TextMatch(TextKind.REGEX, ".*"))
    others = (
        match.scheme,
        match.method,
        match.authority,
        match.headers,
        match.without_headers,
        match.query,
        match.source_namespace,
    )
    return anything and not any(others)


def _rule(sourced: SourcedPart, matches: Iterable[RequestMatch], called: Called) -> pb.HttpRule:
    part = sourced.part
    made = pb.HttpRule(name=f"VirtualService/{sourced.name}")
    replaces_prefix = part.rewrite is not None and _is_prefix(part.rewrite.path)
    made.matches.extend(_match(each, needs_path=replaces_prefix) for each in matches)
    if part.redirect is not None:
        made.redirect.CopyFrom(_redirect(part.redirect, called.port))
    elif part.direct_response is not None:
        response = part.direct_response
        made.direct_response.CopyFrom(pb.DirectResponse(status=response.status, body=response.body))
    else:
        _forward(made, sourced, called)
    _headers(made, part)
    if part.timeout_ms:
        made.timeout.CopyFrom(duration(part.timeout_ms))
    if part.retries is not None:
        made.retries.CopyFrom(retry_policy(part.retries))
    if part.fault is not None:
        _fault(made, part.fault)
    if part.cors is not None:
        made.cors.CopyFrom(_cors(part.cors))
    return made


def _is_prefix(edit: PathEdit | None) -> bool:
    return edit is not None and edit.prefix is not None


def _match(match: RequestMatch, *, needs_path: bool) -> pb.HttpMatch:
    """`needs_path`: what the path match matches is replaced, so there must be one."""
    made = pb.HttpMatch(
        headers=[_value(each) for each in match.headers],
        without_headers=[_value(each) for each in match.without_headers],
        query_parameters=[_value(each) for each in match.query],
        source_namespace=match.source_namespace,
    )
    if match.uri is not None:
        field = "string_prefix" if match.uri.kind is TextKind.PREFIX else match.uri.kind.value
        setattr(made.path, field, match.uri.value)
        made.path.is_case_ignored = match.is_case_ignored
    elif needs_path:
        made.path.string_prefix = "/"
    if match.method is not None and match.method.kind is TextKind.EXACT:
        made.method = match.method.value
    elif match.method is not None:
        made.headers.append(_value(NamedMatch(":method", match.method)))
    if match.authority is not None:
        made.authority.CopyFrom(_text(match.authority))
    if match.scheme is not None:
        made.scheme.CopyFrom(_text(match.scheme))
    return made


def _value(match: NamedMatch) -> pb.ValueMatch:
    made = pb.ValueMatch(name=match.name)
    if match.text is None:
        made.is_present = True
    else:
        setattr(made, match.text.kind.value, match.text.value)
    return made


def _text(match: TextMatch) -> pb.StringMatch:
    made = pb.StringMatch()
    setattr(made, match.kind.value, match.value)
    return made


def _forward(made: pb.HttpRule, sourced: SourcedPart, called: Called) -> None:
    part = sourced.part
    has_authority = _sets_authority(part)
    made.forward.SetInParent()
    for each in weighed(part.targets):
        backend = _backend(each, sourced.namespace, called)
        if not backend.failure_status:
            _add_headers(backend, each, keeps_authority=has_authority)
        made.forward.backends.append(backend)
    if part.rewrite is not None:
        rewrite = part.rewrite
        made.rewrite.CopyFrom(pb.Rewrite(authority=rewrite.authority, path=_path_change(rewrite.path)))
    for mirror in part.mirrors or ():
        backend = _backend(WeightedTarget(mirror.target, 1), sourced.namespace, called)
        if mirror.share and not backend.failure_status:
            made.mirrors.append(pb.Mirror(backend=backend, share=_fraction(mirror.share)))


def weighed(targets: Sequence[WeightedTarget]) -> list[WeightedTarget]:
    """A single one gets everything, whatever its weight; of several those without weight get nothing."""
    if len(targets) == 1:
        (only,) = targets
        return [WeightedTarget(only.target, 1, only.request_headers, only.response_headers)]
    return [each for each in targets if each.weight]


def _backend(each: WeightedTarget, namespace: str, called: Called) -> pb.Backend:
    target = called.resolve(namespace, each.target, called.port)
    if target.problem:
        return pb.Backend(weight=each.weight, failure_status=UNKNOWN_STATUS, problem=target.problem)
    return pb.Backend(weight=each.weight, service=target.service, port=target.port, subset=each.target.subset)


def _path_change(edit: PathEdit | None) -> pb.PathChange | None:
    if edit is None:
        return None
    if edit.regex is not None:
        change = pb.RegexChange(match=edit.regex.match, substitution=edit.regex.substitution)
        return pb.PathChange(regex=change)
    return (
        pb.PathChange(prefix=edit.prefix) if edit.prefix is not None else pb.PathChange(full=edit.full or "")
    )


# -- headers: whoever sets the host for the whole route has the last word --


def _sets_authority(part: HttpPart) -> bool:
    edit = part.request_headers
    named = (*edit.set, *edit.add) if edit is not None else ()
    return any(name == _AUTHORITY for name, _ in named) or bool(part.rewrite and part.rewrite.authority)


def _add_headers(backend: pb.Backend, each: WeightedTarget, *, keeps_authority: bool) -> None:
    request = each.request_headers
    if request is not None:
        changes = header_changes(without_authority(request) if keeps_authority else request)
        backend.request_headers.CopyFrom(changes)
    if each.response_headers is not None:
        backend.response_headers.CopyFrom(header_changes(each.response_headers))


def _headers(made: pb.HttpRule, part: HttpPart) -> None:
    request = part.request_headers
    if request is not None:
        is_rewritten = part.rewrite is not None and bool(part.rewrite.authority)
        made.request_headers.CopyFrom(header_changes(without_authority(request) if is_rewritten else request))
    if part.response_headers is not None:
        made.response_headers.CopyFrom(header_changes(part.response_headers))


def without_authority(edit: HeaderEdit) -> HeaderEdit:
    return HeaderEdit(
        tuple(each for each in edit.set if each[0] != _AUTHORITY),
        tuple(each for each in edit.add if each[0] != _AUTHORITY),
        edit.remove,
    )


# -- the rest of a rule --


def _redirect(redirect: Redirect, called_port: int) -> pb.Redirect:
    port = redirect.port
    if redirect.derived_port is DerivedPort.REQUEST_PORT:
        # What the scheme implies needs no mention; requests come without TLS.
        port = 0 if called_port == _DEFAULT_PORTS[redirect.scheme or "http"] else called_port
    return pb.Redirect(
        scheme=redirect.scheme,
        hostname=redirect.authority,
        path=_path_change(redirect.path),
        port=port,
        status=redirect.status,
        keeps_port_of_host=True,
    )


def retry_policy(retries: Retries) -> pb.RetryPolicy:
    if not retries.attempts:
        return pb.RetryPolicy()
    made = pb.RetryPolicy(
        attempts=retries.attempts,
        on=retries.on or (STANZA_RETRY_ON if not retries.statuses else ("retriable-status-codes",)),
        statuses=retries.statuses,
        backoff=duration(retries.backoff_ms or DEFAULT_BACKOFF_MS),
        may_use_remote_localities=retries.may_use_remote_localities,
        may_repeat_hosts=retries.may_repeat_hosts,
    )
    if retries.per_try_timeout_ms:
        made.per_try_timeout.CopyFrom(duration(retries.per_try_timeout_ms))
    return made


def _fraction(share: int) -> pb.Fraction:
    return pb.Fraction(numerator=share, denominator=MILLION)


def _fault(made: pb.HttpRule, fault: Fault) -> None:
    if fault.delay_share:
        made.fault.delay_share.CopyFrom(_fraction(fault.delay_share))
        made.fault.delay.CopyFrom(duration(fault.delay_ms))
    if fault.abort_share:
        made.fault.abort_share.CopyFrom(_fraction(fault.abort_share))
        made.fault.abort_status = fault.abort_status
        made.fault.abort_grpc_status = fault.abort_grpc_status


def _cors(cors: Cors) -> pb.Cors:
    made = pb.Cors(
        allow_origins=[_text(each) for each in cors.allow_origins],
        allow_methods=cors.allow_methods,
        allow_headers=cors.allow_headers,
        expose_headers=cors.expose_headers,
        allow_credentials=cors.allow_credentials,
        forwards_unmatched_preflights=cors.forwards_unmatched_preflights,
    )
    if cors.max_age_s is not None:
        made.max_age.CopyFrom(duration(cors.max_age_s * 1000))
    return made


# ---- connections ----


def virtual_stream_rules(services: Sequence[VirtualRoutes], called: Called) -> list[pb.TcpRule]:
    """By server name first, then all others; a connection that no rule matches goes to the service itself."""
    rules: list[pb.TcpRule] = []
    for kind in ("tls", "tcp"):
        for service in services:
            for index, part in enumerate(service.tls if kind == "tls" else service.tcp):
                name = f"VirtualService/{service.name}/{kind}/{index}"
                for hosts in _server_names(part, called):
                    rules.append(_stream_rule(name, hosts, part, service.namespace, called))
                    if not hosts:
                        return rules
    if rules:
        own = pb.Backend(weight=1, service=called.service, port=called.port)
        rules.append(pb.TcpRule(name="default", backends=[own]))
    return rules


def _server_names(part: StreamPart, called: Called) -> list[tuple[str, ...]]:
    """The server names of each match that can hold here; empty ones mean every connection."""
    if not part.matches:
        return [()]
    return [each.sni_hosts for each in part.matches if stream_refusal(each, called) == ""]


def stream_refusal(match: StreamMatch, called: Called) -> str | None:
    """Empty: the match may hold; None: it cannot, for this service and port; else what is not supported."""
    if match.unsupported:
        return ", ".join(match.unsupported)
    if not match.is_for_mesh or match.port not in (0, called.port):
        return None
    if not match.destination_subnets:
        return ""
    verdicts = {_is_within(address, match.destination_subnets) for address in called.addresses}
    if verdicts == {True}:
        return ""
    return None if verdicts <= {False} else "destinationSubnets that hold a part of the service's addresses"


def _is_within(address: str, subnets: Iterable[str]) -> bool | None:
    """None: a part of the block is."""
    own = ipaddress.ip_network(address)
    verdict: bool | None = False
    for text in subnets:
        other = ipaddress.ip_network(text)
        if own.version != other.version:
            continue
        if own.subnet_of(other):  # type: ignore[arg-type]
            return True
        if own.overlaps(other):
            verdict = None
    return verdict


def _stream_rule(
    name: str, hosts: tuple[str, ...], part: StreamPart, namespace: str, called: Called
) -> pb.TcpRule:
    backends = [_backend(each, namespace, called) for each in weighed(part.targets)]
    return pb.TcpRule(name=name, sni_hosts=hosts, backends=backends)
