"""Sessions that stay with an endpoint (config-api 6.1 sessionPersistence, 12).

What the client holds names its endpoint only by a hash, so that it learns no address and can reach no
endpoint that the route does not offer: `<backend>.<endpoint>.<created>.<used>`, hexadecimal, seconds. Made up
or altered values cost the client its session and nothing else; that is why they are not signed. A session
outweighs the weights of the backends (GEP-1619).
"""

from __future__ import annotations

from dataclasses import dataclass

from waypoint.state.hashing import xxhash64
from waypoint.state.request import Header, RequestFacts
from waypoint.state.rules import Backend, Forward, SessionPersistence

_DAY_S = 86400
_MAXIMUM_BYTES = 64
_HEXADECIMAL = frozenset(b"0123456789abcdef.")


@dataclass(frozen=True, slots=True)
class Session:
    """What a valid value says; times are whole seconds of the wall clock."""

    backend: str
    endpoint: str
    created_at: int
    used_at: int


def backend_token(backend: Backend) -> str:
    return f"{xxhash64(f'{backend.service}|{backend.port}|{backend.subset}'.encode()) & 0xFFFFFFFF:08x}"


def endpoint_token(uid: str) -> str:
    return f"{xxhash64(uid.encode()):016x}"


def read_session(policy: SessionPersistence, facts: RequestFacts, now_s: int) -> Session | None:
    """The client's session, None if there is none or its time is over."""
    value = facts.header(policy.name) if policy.is_header else cookie(facts, policy.name)
    session = decode(value) if value else None
    if session is None or session.created_at > now_s + _DAY_S:
        return None
    if policy.absolute_timeout_s and now_s >= session.created_at + policy.absolute_timeout_s:
        return None
    if policy.idle_timeout_s and now_s >= session.used_at + policy.idle_timeout_s:
        return None
    return session


def session_backend(action: Forward, session: Session | None) -> Backend | None:
    """The backend of the session, if the rule still offers it."""
    if session is None:
        return None
    for backend in action.backends:
        if backend_token(backend) == session.backend:
            return backend
    return None


def session_header(
    policy: SessionPersistence, backend: Backend, endpoint_uid: str, now_s: int, current: Session | None
) -> Header | None:
    """What the response tells the client, None if it knows already.

    A session that is kept keeps its beginning; with an idle timeout each answer renews the time of use.
    """
    own, endpoint = backend_token(backend), endpoint_token(endpoint_uid)
    is_kept = current is not None and (current.backend, current.endpoint) == (own, endpoint)
    if current is not None and is_kept and not policy.idle_timeout_s:
        return None
    created = current.created_at if current is not None and is_kept else now_s
    value = encode(Session(own, endpoint, created, now_s))
    if policy.is_header:
        return policy.name, value
    age = b""
    if policy.is_permanent and policy.absolute_timeout_s:
        age = b"; Max-Age=%d" % max(0, created + policy.absolute_timeout_s - now_s)
    return b"set-cookie", policy.name + b"=" + value + b"; Path=/" + age + b"; HttpOnly"


def encode(session: Session) -> bytes:
    return f"{session.backend}.{session.endpoint}.{session.created_at:x}.{session.used_at:x}".encode()


def decode(value: bytes) -> Session | None:
    value = value.strip(b'"')
    if len(value) > _MAXIMUM_BYTES or not _HEXADECIMAL.issuperset(value):
        return None
    pieces = value.decode().split(".")
    if len(pieces) != 4 or not all(pieces) or (len(pieces[0]), len(pieces[1])) != (8, 16):
        return None
    return Session(pieces[0], pieces[1], int(pieces[2], 16), int(pieces[3], 16))


def cookie(facts: RequestFacts, name: bytes) -> bytes | None:
    """The first cookie of that name."""
    lines = facts.header(b"cookie")
    if lines is None:
        return None
    for piece in lines.split(b";"):
        key, mark, value = piece.partition(b"=")
        if mark and key.strip() == name:
            return value.strip()
    return None
