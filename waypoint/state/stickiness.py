"""What of a request decides its host under a consistent hash (config-api 11).

None as a key means: no key, any host. A cookie that is missing is made where the policy has a time to live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from waypoint.state.destinations import CookieKey, HashKey, HeaderKey, ParameterKey, SourceKey
from waypoint.state.hashing import xxhash64
from waypoint.state.request import Header, RequestFacts
from waypoint.state.session import cookie


@dataclass(frozen=True, slots=True)
class Stickiness:
    """The key's hash for `Balancer.pick`, and the cookie that the response is to set."""

    key_hash: int | None = None
    set_cookie: Header | None = None


NOT_STICKY = Stickiness()


def stickiness(
    key: HashKey | None, facts: RequestFacts, source_ip: str, random: Callable[[], float]
) -> Stickiness:
    match key:
        case None:
            return NOT_STICKY
        case HeaderKey():
            return _of(facts.header(key.name))
        case ParameterKey():
            return _of(facts.parameter(key.name))
        case SourceKey():
            return _of(source_ip.encode())
        case CookieKey():
            value = cookie(facts, key.name)
            if value is not None or key.ttl_s is None:
                return _of(value)
            return _new_cookie(key, random)
        case _:
            assert_never(key)


def source_hash(key: HashKey | None, source_ip: str) -> int | None:
    """The key's hash for a connection that is no HTTP: it has its client's address and nothing else."""
    return xxhash64(source_ip.encode()) if isinstance(key, SourceKey) else None


def _of(value: bytes | None) -> Stickiness:
    return NOT_STICKY if value is None else Stickiness(xxhash64(value))


def _new_cookie(key: CookieKey, random: Callable[[], float]) -> Stickiness:
    value = f"{xxhash64(f'{random()}{random()}'.encode()):016x}".encode()
    age = b"; Max-Age=%d" % key.ttl_s if key.ttl_s else b""
    header = (b"set-cookie", key.name + b"=" + value + age + b"; Path=" + key.path + b"; HttpOnly")
    return Stickiness(xxhash64(value), header)
