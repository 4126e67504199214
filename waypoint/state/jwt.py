"""A token in compact form: taken apart strictly, and judged by an issuer's rule. Pure.

Sources: RFC 7515, 7519; config-api 10, authz-cases 7. The words of failures are Envoy's, which clients know.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from waypoint.state.jwt_keys import ALGORITHMS, VerifyingKey

MAX_TOKEN_BYTES: Final = 16 * 1024
CLOCK_SKEW_S: Final = 60
_MAX_TRIES: Final = 8  # keys that a token without a name for one is tried with
_MAX_DEPTH: Final = 64
_PIECE: Final = re.compile(rb"[A-Za-z0-9_-]+").fullmatch

EXPIRED: Final = "Jwt is expired"
NOT_YET: Final = "Jwt not yet valid"
BAD_SIGNATURE: Final = "Jwt verification fails"
NO_KEY: Final = "Jwks doesn't have key to match kid or alg from Jwt"
NO_KEY_SET: Final = "Jwks remote fetch is failed"
UNKNOWN_ISSUER: Final = "Jwt issuer is not configured"
BAD_AUDIENCE: Final = "Audiences in Jwt are not allowed"
BAD_FORM: Final = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
BAD_HEADER: Final = "Jwt header is an invalid JSON"
BAD_PAYLOAD: Final = "Jwt payload is an invalid JSON"
BAD_ALGORITHM: Final = "Jwt header [alg] is not supported"
TOO_LARGE: Final = "Jwt is too large"
BAD_TIME: Final = "Jwt payload [exp] or [nbf] is not a number"
CRITICAL: Final = "Jwt header [crit] is not supported"


class _Unfit(Exception):
    """JSON that says one thing twice, or is too deep."""


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """Well formed, which says nothing about who made it."""

    algorithm: str
    kid: str
    claims: Mapping[str, Any]
    payload: bytes  # as it stands in the token: base64url
    signed: bytes
    signature: bytes

    @property
    def issuer(self) -> str:
        found = self.claims.get("iss")
        return found if isinstance(found, str) else ""


def read_token(text: bytes) -> Token | str:
    """The token, or why it is none."""
    if len(text) > MAX_TOKEN_BYTES:
        return TOO_LARGE
    pieces = text.split(b".")
    if len(pieces) != 3 or not all(map(_PIECE, pieces)):
        return BAD_FORM
    header = _json(pieces[0])
    if header is None:
        return BAD_HEADER
    claims = _json(pieces[1])
    if claims is None:
        return BAD_PAYLOAD
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        return BAD_ALGORITHM
    if not isinstance(kid, str):
        return BAD_HEADER
    if "crit" in header:
        return CRITICAL
    signature = _decoded(pieces[2])
    if signature is None:
        return BAD_FORM
    return Token(algorithm, kid, claims, pieces[1], pieces[0] + b"." + pieces[1], signature)


def _decoded(piece: bytes) -> bytes | None:
    """base64url without padding; bits that a decoder would throw away must not be there."""
    try:
        found = base64.urlsafe_b64decode(piece + b"=" * (-len(piece) % 4))
    except (binascii.Error, ValueError):
        return None
    return found if base64.urlsafe_b64encode(found).rstrip(b"=") == piece else None


def _json(piece: bytes) -> dict[str, Any] | None:
    raw = _decoded(piece)
    if raw is None or raw.count(b"{") + raw.count(b"[") > 1024:
        return None
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant)
        if b"\\u" in raw:  # half a surrogate pair is no text: whoever encodes it later would fail
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError, _Unfit):
        return None
    return found if isinstance(found, dict) and _is_shallow(found, _MAX_DEPTH) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Unfit
    return made


def _refuse_constant(text: str) -> object:
    raise _Unfit(text)


def _is_shallow(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value)
    return True


def is_signed(token: Token, keys: Sequence[VerifyingKey]) -> str:
    """Empty if one of the keys made the signature, else why not.

    A key without a name fits every token; one with a name only tokens that say this name, or none.
    """
    tried = 0
    for key in keys:
        if token.algorithm not in key.algorithms or (token.kid and key.kid and token.kid != key.kid):
            continue
        tried += 1
        if tried > _MAX_TRIES:
            break
        if key.verifies(token.algorithm, token.signed, token.signature):
            return ""
    return BAD_SIGNATURE if tried else NO_KEY


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a token is valid, the allowed difference of clocks included; seconds since the epoch."""

    begins: float
    ends: float

    def fault(self, now: float) -> str:
        if now >= self.ends:
            return EXPIRED
        return NOT_YET if now < self.begins else ""


def lifetime(claims: Mapping[str, Any]) -> Lifetime | None:
    """None: it says something else than a time."""
    found = []
    for name, absent in (("nbf", -math.inf), ("exp", math.inf)):
        value = claims.get(name, absent)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            found.append(float(value))
        except OverflowError:  # JSON's integers have no bound
            return None
    return Lifetime(found[0] - CLOCK_SKEW_S, found[1] + CLOCK_SKEW_S)


def is_for(claims: Mapping[str, Any], audiences: frozenset[str]) -> bool:
    """Whether one of `audiences` is among those that a token names; empty: it may be for anybody."""
    if not audiences:
        return True
    named = claims.get("aud")
    if isinstance(named, str):
        return named in audiences
    return isinstance(named, list) and any(isinstance(each, str) and each in audiences for each in named)


def split_claims(claims: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A copy in which texts of these claims are lists of words."""
    return {
        name: value.split(" ") if name in names and isinstance(value, str) else value
        for name, value in claims.items()
    }


def claim_text(claims: Mapping[str, Any], path: str) -> bytes | None:
    """A claim as a header's value: texts, integers and booleans; nested with dots. None: it is not there."""
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    if isinstance(found, bool):
        return b"true" if found else b"false"
    if isinstance(found, int):
        return b"%d" % found
    if not isinstance(found, str):
        return None
    value = found.encode()
    return None if any(octet < 0x20 or octet == 0x7F for octet in value) else value.strip()
