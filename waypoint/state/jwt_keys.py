"""Keys of token issuers: a JSON Web Key Set made into verifiers. Pure.

A key verifies with algorithms of its own type alone, so that a public RSA key can never be taken for a secret
of HMAC, and `none` is no algorithm (authz-cases 7). Symmetric keys are no keys here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwk
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from waypoint.state.errors import RoutesRejected

MAX_KEYS: Final = 64
MAX_KEY_SET_BYTES: Final = 256 * 1024
_MIN_RSA_BITS: Final = 2048
_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS: Final = _RSA | frozenset(_CURVES.values()) | {"EdDSA"}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """`kid` may be empty. `algorithms` are those that the key is good for."""

    kid: str
    algorithms: frozenset[str]
    _key: Any

    def verifies(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """`algorithm` is one of the key's own."""
        try:
            return bool(JWSRegistry.algorithms[algorithm].verify(message, signature, self._key))
        except (JoseError, ValueError, TypeError):
            return False


def read_key_set(text: str) -> tuple[VerifyingKey, ...]:
    """The usable keys. Raises `RoutesRejected` if there are none, or if it is no key set."""
    if len(text) > MAX_KEY_SET_BYTES:
        raise RoutesRejected(f"a key set of {len(text)} characters; {MAX_KEY_SET_BYTES} are allowed")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RoutesRejected("the key set is not JSON") from error
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise RoutesRejected('the key set has no list "keys"')
    keys = [key for each in found[:MAX_KEYS] if (key := _read_key(each)) is not None]
    if not keys:
        raise RoutesRejected("the key set has no key that could verify a signature (RSA, EC or Ed25519)")
    return tuple(keys)


def _read_key(described: Any) -> VerifyingKey | None:
    """None: it is not for signatures, or not of a kind that is used here."""
    if not isinstance(described, dict) or described.get("use", "sig") != "sig":
        return None
    operations = described.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return None
    algorithms = _algorithms(described)
    named = described.get("alg")
    if named is not None:
        algorithms &= {named} if isinstance(named, str) else frozenset()
    if not algorithms:
        return None
    try:
        key = jwk.import_key(_public(described))
        size = getattr(getattr(key, "public_key", None), "key_size", _MIN_RSA_BITS)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if described["kty"] == "RSA" and size < _MIN_RSA_BITS:
        return None
    kid = described.get("kid", "")
    return VerifyingKey(kid if isinstance(kid, str) else "", algorithms, key)


def _algorithms(described: Mapping[str, Any]) -> frozenset[str]:
    match described.get("kty"), described.get("crv"):
        case "RSA", _:
            return _RSA
        case "EC", str() as curve if curve in _CURVES:
            return frozenset({_CURVES[curve]})
        case "OKP", "Ed25519":
            return frozenset({"EdDSA"})
        case _:
            return frozenset()


def _public(described: Mapping[str, Any]) -> dict[str, Any]:
    """Only what verification needs: what else a set says is nobody's business."""
    return {name: described[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in described}
