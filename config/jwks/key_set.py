"""A JSON Web Key Set (RFC 7517) as waypoints get it: public members only, bounded. Pure."""

from __future__ import annotations

import json
from typing import Final

MAX_DEPTH: Final = 16
MAX_KEYS: Final = 64
# What verifying needs, and what says which key is for what. Private members (d, p, k ...) never leave here.
_MEMBERS: Final = ("kty", "n", "e", "crv", "x", "y", "kid", "use", "key_ops", "alg")


class KeySetUnfit(Exception):
    """Not a key set that can be used; the text says why."""


def key_set_text(content: bytes) -> str:
    """The set, written plainly: without private and unknown members. Raises KeySetUnfit."""
    keys = json_object(content).get("keys")
    if not isinstance(keys, list) or not all(isinstance(each, dict) for each in keys):
        raise KeySetUnfit('the answer is no key set (an object with a list "keys" of objects)')
    if not keys:
        raise KeySetUnfit("the key set has no keys")
    if len(keys) > MAX_KEYS:
        raise KeySetUnfit(f"the key set has {len(keys)} keys; {MAX_KEYS} are allowed")
    public = [{name: each[name] for name in _MEMBERS if name in each} for each in keys]
    return json.dumps({"keys": public}, sort_keys=True)


def json_object(content: bytes | str) -> dict[str, object]:
    """Raises KeySetUnfit."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise KeySetUnfit("the answer is no JSON") from None
    if not isinstance(found, dict) or not _is_shallow(found, MAX_DEPTH):
        raise KeySetUnfit("the answer is no JSON object, or too deep")
    return found


def _is_shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value)
    return True
