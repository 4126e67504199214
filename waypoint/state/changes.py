"""How a rule changes a message: headers, path and host, and the place a redirect names (config-api 6.3, 12).

Header lists have HTTP/2's form: lower-case names, pseudo-headers first. A destination's changes come before
its rule's, so the rule has the last word, as at Envoy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from waypoint.state.flags import Details, LocalAnswer
from waypoint.state.request import Header, RequestFacts
from waypoint.state.route_table import PathTest, RouteEntry
from waypoint.state.rules import (
    Backend,
    DirectResponse,
    Forward,
    FullPath,
    HeaderChanges,
    PathChange,
    PrefixPath,
    Redirect,
    RegexPath,
)

_DEFAULT_PORTS = {b"http": 80, b"https": 443}


def change_headers(headers: Sequence[Header], changes: HeaderChanges) -> list[Header]:
    """Removals, then `set` in place of all present lines, then `add` as further lines."""
    replaced = changes.replaced
    changed = [header for header in headers if header[0] not in replaced]
    authority = None
    for header in (*changes.set, *changes.add):
        if header[0] == b":authority":
            authority = header
        else:
            changed.append(header)
    if authority is None:
        return changed
    return [authority, *(header for header in changed if header[0] != b":authority")]


def request_changes(entry: RouteEntry, backend: Backend | None) -> tuple[HeaderChanges, ...]:
    """What to apply to a request, in order; usually nothing."""
    own = None if backend is None else backend.request_headers
    return tuple(changes for changes in (own, entry.rule.request_headers) if changes is not None)


def response_changes(entry: RouteEntry, backend: Backend | None) -> tuple[HeaderChanges, ...]:
    own = None if backend is None else backend.response_headers
    return tuple(changes for changes in (own, entry.rule.response_headers) if changes is not None)


def change_path(path: bytes, change: PathChange, test: PathTest | None) -> bytes:
    """The new path, without query; `test` is the path match by which the rule was found."""
    match change:
        case FullPath():
            changed = change.path
        case RegexPath():
            changed = change.pattern.replace_all(change.substitution, path)
        case PrefixPath():
            changed = _replace_prefix(path, change.replacement, test)
        case _:
            assert_never(change)
    return changed if changed.startswith(b"/") else b"/" + changed


def _replace_prefix(path: bytes, replacement: bytes, test: PathTest | None) -> bytes:
    """By segments as the Gateway API's table has it; by characters as VirtualService does.

    Where the rule matched otherwise, the whole path is replaced.
    """
    if test is None or test.kind not in ("prefix", "string_prefix"):
        return replacement
    rest = path[len(test.value) :]
    if test.kind == "string_prefix":
        return replacement + rest
    return replacement.rstrip(b"/") + rest


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What is sent instead; `original_path` is set (for `x-envoy-original-path`) if the target changed."""

    target: bytes
    authority: bytes
    original_path: bytes | None = None


def rewrite(facts: RequestFacts, entry: RouteEntry) -> Rewritten:
    """Path and host after the rule's rewrite; the query is kept."""
    target = with_query(facts.path, facts.query)
    rule = entry.rule.rewrite
    if rule is None:
        return Rewritten(target, facts.authority)
    authority = rule.authority or facts.authority
    if rule.path is None:
        return Rewritten(target, authority)
    changed = with_query(change_path(facts.path, rule.path, entry.path), facts.query)
    return Rewritten(changed, authority, None if changed == target else target)


def with_query(path: bytes, query: bytes) -> bytes:
    """A query that the changed path brings along comes first."""
    if not query:
        return path
    return path + (b"&" if b"?" in path else b"?") + query


def location(facts: RequestFacts, entry: RouteEntry, redirect: Redirect, service_port: int) -> bytes:
    """The Location of a redirect.

    Port: the rule's, else that of the rule's scheme, else the one in Host where Host is kept, else the port
    that was called; left out where the scheme implies it. VirtualService's rules keep what Host has, except
    that a port which the former scheme implied goes with it.
    """
    scheme = redirect.scheme or facts.scheme
    host, own_port = split_port(facts.authority)
    if redirect.hostname:
        host, own_port = redirect.hostname, 0
    port = redirect.port
    if not port and redirect.keeps_port_of_host:
        port = 0 if own_port == _DEFAULT_PORTS.get(facts.scheme) else own_port
    elif not port:
        port = _DEFAULT_PORTS.get(scheme, 0) if redirect.scheme else own_port or service_port
    path = facts.path if redirect.path is None else change_path(facts.path, redirect.path, entry.path)
    suffix = b"" if port in (0, _DEFAULT_PORTS.get(scheme)) else b":%d" % port
    return b"%b://%b%b%b" % (scheme, host, suffix, with_query(path, facts.query))


def answer_of(facts: RequestFacts, entry: RouteEntry, service_port: int) -> LocalAnswer | None:
    """The answer of a rule that redirects or responds by itself; None for one that forwards."""
    action = entry.rule.action
    match action:
        case Redirect():
            place = (b"location", location(facts, entry, action, service_port))
            return LocalAnswer(action.status, details=Details.DIRECT_RESPONSE, headers=(place,))
        case DirectResponse():
            return LocalAnswer(action.status, action.body, details=Details.DIRECT_RESPONSE)
        case Forward():
            return None
        case _:
            assert_never(action)


def split_port(authority: bytes) -> tuple[bytes, int]:
    """Host (an IPv6 address keeps its brackets) and port, 0 where there is none."""
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and len(port) <= 5 and not (b":" in host and not host.endswith(b"]")):
        return host, int(port)
    return authority, 0
