"""RequestAuthentication in the worker: tokens are validated, taken out, and told to who may know.

Source: config-api 10, waypoint-facts 11, authz-cases 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from transport.http2.events import Header
from waypoint.state import jwt
from waypoint.state.authentication import (
    AUTHENTICATION_TYPE,
    Authenticator,
    Found,
    Invalid,
    RequestAuthentication,
    Valid,
)
from waypoint.state.policies import Policy, Unreadable
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.checks import Check, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.headers import Request, value_of
from waypoint.worker.ways import ServedPort

_UNREADABLE: Final = Answer(503, "policy_unreadable", body=b"the policy of this service cannot be read")
_MAX_REALM_PATH: Final = 256
_QUOTABLE: Final = bytes.maketrans(b'"\\', b"''")


class Authentication:
    """Implements CheckSource. `wall_clock` gives seconds since the epoch."""

    def __init__(self, state: WaypointState, wall_clock: Callable[[], float]) -> None:
        self._state = state
        self.wall_clock = wall_clock
        self._known: dict[tuple[Policy, ...], Authenticator] = {}  # they remember tokens

    def checks(self, port: ServedPort) -> Sequence[Check]:
        service = "" if port.service is None else port.service.key
        found = self._state.policies.of(AUTHENTICATION_TYPE, service)
        if not found:
            return ()
        if any(isinstance(each, Unreadable) for each in found):
            return (_Nothing(),)
        return (_TokenCheck(self._authenticator(found), self.wall_clock),)

    def _authenticator(self, policies: tuple[Policy, ...]) -> Authenticator:
        """The same for the same policies, over generations of the state."""
        known = self._known.get(policies)
        if known is None:
            live = set(self._state.policies.all(AUTHENTICATION_TYPE).values())
            self._known = {key: each for key, each in self._known.items() if live.issuperset(key)}
            rules = [each for each in policies if isinstance(each, RequestAuthentication)]
            known = self._known[policies] = Authenticator(rules)
        return known

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:  # noqa: ARG002 - tokens are HTTP's
        return ()

    def close(self) -> None: ...


class _Nothing:
    """A policy is there that cannot be read."""

    phase = Phase.AUTHENTICATE

    def examine(self, examination: Examination) -> Answer:
        examination.outcome.policy = "unreadable"
        return _UNREADABLE


class _TokenCheck:
    """Implements Check."""

    phase = Phase.AUTHENTICATE

    def __init__(self, authenticator: Authenticator, wall_clock: Callable[[], float]) -> None:
        self._authenticator = authenticator
        self._wall_clock = wall_clock

    def examine(self, examination: Examination) -> Answer | None:
        request, authenticator = examination.request, self._authenticator
        found = authenticator.find(request.headers, request.query)
        is_preflight = _is_preflight(request)
        if authenticator.own_headers:  # tokens are found before: one may stand in such a header
            own = authenticator.own_headers
            request.headers = [line for line in request.headers if line[0].replace(b"_", b"-") not in own]
        if is_preflight or not found:
            return None
        result = authenticator.judge(found, self._wall_clock())
        if isinstance(result, Invalid):
            examination.outcome.policy = f"RequestAuthentication: {result.reason}"
            return _refused(result, request)
        examination.credentials = dict(result[0].claims)
        examination.credentials_all = [dict(each.claims) for each in result]
        for where, valid in zip(found, result, strict=True):
            _take_out(request, where, valid)
            _tell(request, valid)
        return None


def _is_preflight(request: Request) -> bool:
    """A browser's question comes without credentials."""
    if request.method != b"OPTIONS":
        return False
    headers = request.headers
    return bool(value_of(headers, b"origin") and value_of(headers, b"access-control-request-method"))


def _refused(result: Invalid, request: Request) -> Answer:
    details = f"jwt_authn_access_denied{{{result.reason.replace(' ', '_')}}}"
    path = request.path[:_MAX_REALM_PATH]
    realm = (request.scheme + b"://" + request.authority + path).translate(_QUOTABLE)
    headers: tuple[Header, ...] = ()
    if result.status == 401:
        headers = ((b"www-authenticate", b'Bearer realm="' + realm + b'", error="invalid_token"'),)
    return Answer(result.status, details, body=result.reason.encode(), headers=headers)


def _take_out(request: Request, found: Found, valid: Valid) -> None:
    """The token is not passed on, unless the rule says so; cookies stay as they are."""
    if valid.rule.forwards_token:
        return
    match found.place.kind:
        case "header":
            request.headers = [line for line in request.headers if line is not found.line]
        case "parameter":
            name = found.place.name + b"="
            pieces = [piece for piece in (request.query or b"").split(b"&") if not piece.startswith(name)]
            request.query = b"&".join(pieces) if pieces else None
        case _:
            pass


def _tell(request: Request, valid: Valid) -> None:
    """What the token says, for the application."""
    rule = valid.rule
    if rule.payload_header:
        _set(request, rule.payload_header, valid.token.payload)
    for header, claim in rule.claim_headers:
        value = jwt.claim_text(valid.token.claims, claim)
        if value is not None:
            _set(request, header, value)


def _set(request: Request, name: bytes, value: bytes) -> None:
    request.headers = [line for line in request.headers if line[0] != name]
    request.headers.append((name, value))
