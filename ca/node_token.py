"""Node tokens: what a plain Linux node shows to the control plane (xDS, CA and node service alike).

A JWT signed with ES256 by a key that only the control plane has: `sub` is `node:<name>`, `aud` is `istio-ca`.
It travels as `authorization: Bearer <token>` and stands where Kubernetes has projected service account
tokens. The same key signs join tokens (ca/join_token.py), for another audience. Invariants: only ES256 with
our key is ever accepted; a token that was issued before its node was revoked is not; every rejection says why
to the log, not to the peer.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ca import private_files
from ca.errors import CaError, InvalidNodeName, NodeTokenRejected, StateNotReadable
from transport.grpc.metadata import Metadata

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

AUDIENCE = "istio-ca"
DEFAULT_LIFETIME = dt.timedelta(days=365)
MAX_TOKEN_CHARS = 4096
LEEWAY_S = 60
KEY_FILE = "node-token-key.pem"
REVOKED_FILE = "revoked-nodes.json"

_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class NodeTokens:
    """Mints and verifies with one key. Get one with `load_or_create`."""

    def __init__(self, key: ECKey, revoked: Revocations) -> None:
        self._key = key
        self.revoked = revoked

    @classmethod
    def load_or_create(cls, directory: Path) -> Self:
        """The key is `node-token-key.pem` (0600) in `directory`. Removing it revokes every token."""
        from joserfc.errors import JoseError  # noqa: PLC0415 - only the control plane needs it
        from joserfc.jwk import ECKey  # noqa: PLC0415 - same

        private_files.make_folder(directory)
        path = directory / KEY_FILE
        with private_files.locked(directory):
            try:
                pem = private_files.read_private(path)
            except FileNotFoundError:
                pem = ECKey.generate_key("P-256", private=True).as_pem(private=True)
                private_files.write(path, pem)
        try:
            key = ECKey.import_key(pem)
        except (JoseError, ValueError, TypeError) as error:
            raise StateNotReadable(f"{path} does not hold an EC key in PEM") from error
        if not key.is_private or key.curve_name != "P-256":
            raise StateNotReadable(f"{path} does not hold a private P-256 key")
        return cls(key, Revocations(directory / REVOKED_FILE))

    def mint(self, node: str, lifetime: dt.timedelta, now: dt.datetime) -> str:
        """Raises InvalidNodeName."""
        subject = f"node:{require_node_name(node)}"
        return self.sign({"sub": subject, "aud": AUDIENCE}, lifetime, now)

    def verify(self, token: str, now: dt.datetime) -> str:
        """The node's name; raises NodeTokenRejected with the reason."""
        claims = self.open(token, AUDIENCE, now)
        node = _node_of(claims)
        self.revoked.check(node, _number(claims["iat"]))
        return node

    def sign(self, claims: Mapping[str, object], lifetime: dt.timedelta, now: dt.datetime) -> str:
        """A token of these claims, valid from now on for `lifetime`."""
        from joserfc import jwt  # noqa: PLC0415 - only the control plane needs it

        times = {"iat": int(now.timestamp()), "exp": int((now + lifetime).timestamp())}
        header = {"alg": "ES256", "typ": "JWT"}
        return jwt.encode(header, {"iss": "mycelia", **claims, **times}, self._key, algorithms=["ES256"])

    def open(self, token: str, audience: str, now: dt.datetime) -> Mapping[str, Any]:
        """The claims of a token of ours that is valid now; raises NodeTokenRejected with the reason."""
        from joserfc import jwt  # noqa: PLC0415 - only the control plane needs it
        from joserfc.errors import JoseError  # noqa: PLC0415 - same

        if len(token) > MAX_TOKEN_CHARS:
            raise NodeTokenRejected("the token is too long")
        try:
            claims = jwt.decode(token, self._key, algorithms=["ES256"]).claims
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise NodeTokenRejected(f"the token is malformed or not ours: {error}") from error
        _check_times(claims, audience, now.timestamp())
        return claims

    def authenticate(self, metadata: Metadata, now: dt.datetime) -> str:
        """The calling node of a gRPC call; raises NodeTokenRejected."""
        return self.verify(bearer_token(metadata), now)


def bearer_token(metadata: Metadata) -> str:
    """Exactly one `authorization` of scheme Bearer; raises NodeTokenRejected."""
    values = metadata.get_all("authorization")
    if len(values) != 1 or not isinstance(values[0], str):
        raise NodeTokenRejected("the call must have exactly one authorization header")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NodeTokenRejected("the authorization header is not a bearer token")
    return token.strip()


def require_node_name(text: str) -> str:
    """Letters, digits, dot, dash, underscore; at most 253; raises InvalidNodeName."""
    if not _NODE.fullmatch(text):
        raise InvalidNodeName(f"{text[:100]!r} cannot be a node's name")
    return text


class Revocations:
    """Nodes whose tokens are refused if they were issued before a certain second.

    Kept in a file that a command of the operator writes and the control plane reads when it has changed. A
    file that cannot be read refuses everybody: security fails closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._limits: dict[str, float] = {}

    def add(self, node: str, now: dt.datetime) -> None:
        """Raises InvalidNodeName, StateNotWritten, StateNotReadable."""
        require_node_name(node)
        with private_files.locked(self._path.parent):
            limits = {**self._load(), node: math.ceil(now.timestamp())}
            private_files.write(self._path, json.dumps(limits, sort_keys=True).encode())

    def check(self, node: str, issued_s: float) -> None:
        """Raises NodeTokenRejected."""
        try:
            limit = self._current().get(node)
        except CaError as error:
            raise NodeTokenRejected(f"the list of revoked nodes cannot be read: {error.text}") from error
        if limit is not None and issued_s <= limit:
            raise NodeTokenRejected(f"node {node} was revoked after this token was issued")

    def _current(self) -> Mapping[str, float]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateNotReadable(f"cannot look at {self._path}: {error.strerror}") from error
        seen = (status.st_mtime_ns, status.st_ino)
        if seen != self._seen:
            self._limits = self._load()
            self._seen = seen
        return self._limits

    def _load(self) -> dict[str, float]:
        try:
            found = json.loads(private_files.read_private(self._path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StateNotReadable(f"{self._path} is not JSON") from error
        if not isinstance(found, dict) or not all(isinstance(value, int) for value in found.values()):
            raise StateNotReadable(f"{self._path} is not a list of revoked nodes")
        return found


def _check_times(claims: Mapping[str, Any], audience: str, now_s: float) -> None:
    if claims.get("aud") not in (audience, [audience]):
        raise NodeTokenRejected("the token is for another audience")
    expires, issued = _number(claims.get("exp")), _number(claims.get("iat"))
    if now_s >= expires + LEEWAY_S:
        raise NodeTokenRejected("the token has expired")
    if now_s < issued - LEEWAY_S:
        raise NodeTokenRejected("the token is from the future: check the clocks")


def _node_of(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.startswith("node:"):
        raise NodeTokenRejected("the token is not a node's")
    try:
        return require_node_name(subject.removeprefix("node:"))
    except InvalidNodeName as error:
        raise NodeTokenRejected("the token names no node") from error


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise NodeTokenRejected("the token has no lifetime")
    return value
