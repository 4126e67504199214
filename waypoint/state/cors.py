"""Cross-origin requests: the pre-flight is answered here, real answers get what the browser asks for.

Sources: config-api 6.3, 12; the Fetch standard, 3.2. With credentials `*` is never sent: the browser would
refuse it, so what it asked for is echoed instead.
"""

from __future__ import annotations

from waypoint.state.flags import Details, LocalAnswer
from waypoint.state.matching import Exact, Prefix, Test
from waypoint.state.request import Header, RequestFacts
from waypoint.state.rules import Cors

_ANY = b"*"
_SCHEME_END = b"://"


def is_preflight(facts: RequestFacts) -> bool:
    return (
        facts.method == b"OPTIONS"
        and facts.header(b"origin") is not None
        and facts.header(b"access-control-request-method") is not None
    )


def answer_preflight(cors: Cors, facts: RequestFacts) -> LocalAnswer | None:
    """The answer to a pre-flight; None where the request is forwarded: it is none, or of another origin.

    Without `forwards_unmatched_preflights` a pre-flight of another origin is answered, but without a grant.
    """
    if not is_preflight(facts):
        return None
    origin = facts.header(b"origin") or b""
    if not is_allowed_origin(cors, origin):
        return (
            None if cors.forwards_unmatched_preflights else LocalAnswer(200, details=Details.CORS_PREFLIGHT)
        )
    headers = [(b"access-control-allow-origin", origin)]
    if cors.allow_credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    methods = _granted(cors.allow_methods, facts.header(b"access-control-request-method"), cors)
    if methods:
        headers.append((b"access-control-allow-methods", methods))
    names = _granted(cors.allow_headers, facts.header(b"access-control-request-headers"), cors)
    if names:
        headers.append((b"access-control-allow-headers", names))
    if cors.max_age_s is not None:
        headers.append((b"access-control-max-age", b"%d" % cors.max_age_s))
    return LocalAnswer(200, details=Details.CORS_PREFLIGHT, headers=tuple(headers))


def response_headers(cors: Cors, origin: bytes | None) -> tuple[Header, ...]:
    """What a real answer gets, in place of the application's own lines; nothing for other origins."""
    if origin is None or not is_allowed_origin(cors, origin):
        return ()
    headers: list[Header] = [(b"access-control-allow-origin", origin)]
    if cors.allow_credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    exposed = b",".join(cors.expose_headers)
    if exposed and not (cors.allow_credentials and _ANY in cors.expose_headers):
        headers.append((b"access-control-expose-headers", exposed))
    return tuple(headers)


def is_allowed_origin(cors: Cors, origin: bytes) -> bool:
    return any(_accepts(test, origin) for test in cors.allow_origins)


def _accepts(test: Test, origin: bytes) -> bool:
    """`*` alone is every origin; `scheme://*.rest` stands for one or more labels (config-api 6.3)."""
    if isinstance(test, Exact):
        if test.value == _ANY:
            return True
        scheme, mark, rest = test.value.partition(_SCHEME_END + _ANY)
        if mark and origin.startswith(scheme + _SCHEME_END):
            labels = origin[len(scheme) + len(_SCHEME_END) :]
            return labels.endswith(rest) and len(labels) > len(rest)
        return origin == test.value
    if isinstance(test, Prefix):
        return origin.startswith(test.value)
    return test.accepts(origin)


def _granted(allowed: tuple[bytes, ...], asked: bytes | None, cors: Cors) -> bytes:
    if _ANY in allowed and cors.allow_credentials:
        return asked or b""
    return b",".join(allowed)
