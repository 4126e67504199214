"""Asking over HTTP, as Envoy's ext_authz does with an `http_service` (config-api 8.7). Pure.

200 allows, 5xx is a failure, anything else denies with the provider's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from transport.http2.events import Header
from waypoint.state.external_authorizer import ExternalAuthorizer
from waypoint.worker.external.verdict import Allowed, Change, Failed, Verdict, denied, is_ours, is_writable
from waypoint.worker.headers import Request

PARTIAL_BODY: Final = b"x-envoy-auth-partial-body"
_ALWAYS_ASKED: Final = b"authorization"
_ALWAYS_DENIED_WITH: Final = frozenset({b"www-authenticate", b"location", b"content-type"})
_COOKIE: Final = b"cookie"


def joined(headers: Sequence[Header]) -> Mapping[bytes, bytes]:
    """Lines of one name become one: a provider must not judge the first of them only (CVE-2021-32777)."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        glue = b"; " if name == _COOKIE else b","
        found[name] = found[name] + glue + value if name in found else value
    return found


def check_head(
    authorizer: ExternalAuthorizer, request: Request, body: bytes | None, *, is_whole: bool
) -> list[Header]:
    """The request's own method, path and host, and of its headers those that are wanted."""
    wanted = authorizer.request_headers
    added = dict(authorizer.additional_headers)
    fields = [
        (name, value)
        for name, value in joined(request.headers).items()
        if (name == _ALWAYS_ASKED or wanted.match(name)) and not is_ours(name) and name not in added
    ]
    fields += added.items()
    if body is not None:
        fields.append((PARTIAL_BODY, b"false" if is_whole else b"true"))
    fields.append((b"content-length", b"%d" % len(body or b"")))
    return [
        (b":method", request.method),
        (b":scheme", request.scheme),
        (b":authority", request.authority),
        (b":path", authorizer.path_prefix + request.target),
        *fields,
    ]


def read_reply(
    authorizer: ExternalAuthorizer, status: int, headers: Sequence[Header], body: bytes
) -> Verdict:
    if status == 200:
        return _allowed(authorizer, headers)
    if status >= 500 or status < 200:
        return Failed(f"the provider answered {status}")
    to_client = authorizer.deny_headers
    if to_client:
        headers = [field for field in headers if field[0] in _ALWAYS_DENIED_WITH or to_client.match(field[0])]
    return denied(status, headers, body)


def _allowed(authorizer: ExternalAuthorizer, headers: Sequence[Header]) -> Allowed:
    usable = [(name, value) for name, value in headers if not is_ours(name) and is_writable(name, value)]
    seen: set[bytes] = set()
    changes = []
    for name, value in usable:
        if authorizer.upstream_headers.match(name):
            changes.append(Change(name, value, joins=name in seen))
            seen.add(name)
    response = [
        Change(name, value, joins=True) for name, value in usable if authorizer.allow_headers.match(name)
    ]
    return Allowed(tuple(changes), (), tuple(response))


def unvouched(authorizer: ExternalAuthorizer, headers: Sequence[Header]) -> tuple[bytes, ...]:
    """Names of the request's headers by which the provider tells the application something, said by the
    client: they go, whether the provider says something else or nothing. Only `x-` names: what HTTP itself
    defines (authorization, cookie) is the client's to say.
    """
    wanted = authorizer.upstream_headers
    if wanted.is_everything:
        return ()
    return tuple(
        name
        for name in {name.replace(b"_", b"-"): name for name, _ in headers}.values()
        if name.startswith((b"x-", b"x_")) and wanted.match(name.replace(b"_", b"-"))
    )
