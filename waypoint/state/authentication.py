"""RequestAuthentication at a waypoint: where tokens stand in a request, and which of them are valid. Pure.

A request without a token goes on without a principal; one with tokens must have a valid one in every place
where a rule looks (config-api 10). Tokens that were found valid are remembered, because a signature costs
more than all the rest of a small request: their time is judged anew each time. Bounds: `_MAX_REMEMBERED`
tokens of one set of rules, none of more than `_MAX_REMEMBERED_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from proto.mycelia import authentication_pb2 as pb
from waypoint.state import jwt
from waypoint.state.errors import RoutesRejected
from waypoint.state.jwt_keys import VerifyingKey, read_key_set
from waypoint.state.policies import Attached, check_name
from waypoint.state.request import Header

AUTHENTICATION_TYPE: Final = "type.googleapis.com/mycelia.waypoint.RequestAuthentication"
_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_BYTES: Final = 4096  # larger tokens are judged anew each time
_MAX_TOKENS: Final = 16  # of one request
_SPACE_DELIMITED: Final = frozenset({"scope", "permission"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token may stand: `kind` is header, parameter or cookie; `prefix` begins a header's value."""

    kind: str
    name: bytes
    prefix: bytes = b""


DEFAULT_PLACES: Final = (
    Place("header", b"authorization", b"Bearer "),
    Place("parameter", b"access_token"),
)


@dataclass(frozen=True, slots=True, eq=False)
class JwtRule:
    """What is said of one issuer. `problem`: why it has no keys."""

    issuer: str
    audiences: frozenset[str]
    keys: tuple[VerifyingKey, ...]
    problem: str
    places: tuple[Place, ...]
    forwards_token: bool
    payload_header: bytes
    claim_headers: tuple[tuple[bytes, str], ...]
    space_delimited: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class RequestAuthentication:
    """Implements policies.Policy."""

    key: str
    attached: Attached
    rules: tuple[JwtRule, ...]


def parse_authentication(name: str, content: bytes) -> RequestAuthentication:
    """Raises `RoutesRejected`. A rule whose keys cannot be used stays without any: its tokens are invalid."""
    message = pb.RequestAuthentication()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected("it is no RequestAuthentication") from error
    key = f"{message.namespace}/{message.name}"
    check_name(name, key)
    return RequestAuthentication(key, Attached.of(message.attachment), tuple(map(_rule, message.rules)))


def _rule(message: pb.JwtRule) -> JwtRule:
    keys: tuple[VerifyingKey, ...] = ()
    problem = "" if message.key_set else "there is no key set"
    if message.key_set:
        try:
            keys = read_key_set(message.key_set)
        except RoutesRejected as error:
            problem = error.text
    places = (
        *(Place("header", each.name.encode(), each.prefix.encode()) for each in message.headers),
        *(Place("parameter", each.encode()) for each in message.parameters),
        *(Place("cookie", each.encode()) for each in message.cookies),
    )
    return JwtRule(
        message.issuer,
        frozenset(message.audiences),
        keys,
        problem,
        places or DEFAULT_PLACES,
        message.forwards_token,
        message.payload_header.lower().encode(),
        tuple((each.header.lower().encode(), each.claim) for each in message.claim_headers),
        _SPACE_DELIMITED | set(message.space_delimited_claims),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A token where it stands. `line` is the header line that holds it."""

    place: Place
    text: bytes
    line: Header | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Valid:
    """A token that a rule accepts."""

    rule: JwtRule
    token: jwt.Token
    lifetime: jwt.Lifetime
    claims: Mapping[str, Any]  # with words where a claim is a list of them


@dataclass(frozen=True, slots=True)
class Invalid:
    status: int
    reason: str


class Authenticator:
    """All rules that hold for one port."""

    def __init__(self, policies: Iterable[RequestAuthentication]) -> None:
        self.rules = tuple(rule for policy in policies for rule in policy.rules)
        self._places: dict[Place, list[JwtRule]] = {}
        for rule in self.rules:
            for place in rule.places:
                self._places.setdefault(place, []).append(rule)
        self._header_names = {place.name for place in self._places if place.kind == "header"}
        self._has_cookies = any(place.kind == "cookie" for place in self._places)
        self._parameters = [place for place in self._places if place.kind == "parameter"]
        # What clients may not say themselves, with or without a token (authz-cases 6); with hyphens, as
        # applications behind CGI cannot tell `x_user` from `x-user`.
        self.own_headers = frozenset(
            name.replace(b"_", b"-")
            for rule in self.rules
            for name in (rule.payload_header, *(header for header, _ in rule.claim_headers))
            if name
        )
        self._remembered: dict[tuple[Place, bytes], Valid] = {}

    def find(self, headers: Sequence[Header], query: bytes | None) -> list[Found]:
        """The tokens of a request, at most one more than may be."""
        found: list[Found] = []
        names = self._header_names
        for line in headers:
            if line[0] in names:
                found += self._in_header(line)
            elif self._has_cookies and line[0] == b"cookie":
                found += self._in_cookies(line)
        if query and self._parameters:
            for piece in query.split(b"&"):
                name, mark, value = piece.partition(b"=")
                if mark and value:
                    found += [Found(each, value) for each in self._parameters if each.name == name]
        return found[: _MAX_TOKENS + 1]

    def _in_header(self, line: Header) -> list[Found]:
        return [
            Found(place, line[1][len(place.prefix) :].strip(), line)
            for place in self._places
            if place.kind == "header" and place.name == line[0] and _begins(line[1], place)
        ]

    def _in_cookies(self, line: Header) -> list[Found]:
        found = []
        for piece in line[1].split(b";"):
            name, _, value = piece.strip().partition(b"=")
            found += [
                Found(place, value)
                for place in self._places
                if place.kind == "cookie" and place.name == name and value
            ]
        return found

    def judge(self, found: Sequence[Found], now: float) -> list[Valid] | Invalid:
        """Every token must be valid; `now` in seconds since the epoch."""
        if len(found) > _MAX_TOKENS:
            return Invalid(401, jwt.TOO_LARGE)
        valid: list[Valid] = []
        for each in found:
            result = self._judge(each, now)
            if isinstance(result, Invalid):
                return result
            valid.append(result)
        return valid

    def _judge(self, found: Found, now: float) -> Valid | Invalid:
        key = (found.place, found.text)
        known = self._remembered.get(key)
        if known is not None:
            fault = known.lifetime.fault(now)
            return Invalid(401, fault) if fault else known
        result = self._examine(found, now)
        if isinstance(result, Valid) and len(found.text) <= _MAX_REMEMBERED_BYTES:
            if len(self._remembered) >= _MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = result
        return result

    def _examine(self, found: Found, now: float) -> Valid | Invalid:
        token = jwt.read_token(found.text)
        if isinstance(token, str):
            return Invalid(401, token)
        result = Invalid(401, jwt.UNKNOWN_ISSUER)
        for rule in self._places[found.place]:
            if rule.issuer == token.issuer:
                outcome = _by_rule(rule, token, now)
                if isinstance(outcome, Valid):
                    return outcome
                result = outcome
        return result


def _begins(value: bytes, place: Place) -> bool:
    """A scheme's letter case does not matter (RFC 9110 11.1)."""
    prefix = place.prefix
    if prefix == b"Bearer ":
        return value[: len(prefix)].lower() == b"bearer " and len(value) > len(prefix)
    return value.startswith(prefix) and len(value) > len(prefix)


def _by_rule(rule: JwtRule, token: jwt.Token, now: float) -> Valid | Invalid:
    if not rule.keys:
        return Invalid(401, jwt.NO_KEY_SET)
    times = jwt.lifetime(token.claims)
    if times is None:
        return Invalid(401, jwt.BAD_TIME)
    fault = times.fault(now) or jwt.is_signed(token, rule.keys)
    if fault:
        return Invalid(401, fault)
    if not jwt.is_for(token.claims, rule.audiences):
        return Invalid(403, jwt.BAD_AUDIENCE)
    return Valid(rule, token, times, jwt.split_claims(token.claims, rule.space_delimited))
