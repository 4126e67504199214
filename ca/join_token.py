"""Join tokens: what an operator carries to a host that is to become a node.

`mycelia1.` and, in base64url, a JSON object with the control plane's addresses, the mesh's root certificates
(so that the first contact is already checked) and a credential: a JWT signed by the key of the node tokens,
for an audience of its own, with a short life, a number of uses and, where the operator named one, the node's
name. Whoever has the token can become that node while it lives: it is a secret.

Only the control plane counts uses (`UseLedger`), so making a token needs no contact with it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca import private_files
from ca.certificate import PARSE_ERRORS
from ca.errors import JoinTokenMalformed, NodeTokenRejected, StateNotReadable
from ca.node_token import NodeTokens, require_node_name

PREFIX: Final = "mycelia1."
AUDIENCE: Final = "mycelia-join"
MAX_TEXT: Final = 32 * 1024
MAX_USES: Final = 1000
MAX_LIFETIME: Final = dt.timedelta(days=7)
MAX_LEDGER: Final = 10_000


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`addresses` are `(host, port)`, tried in order."""

    addresses: tuple[tuple[str, int], ...]
    roots_pem: str
    credential: str

    def encode(self) -> str:
        roots = x509.load_pem_x509_certificates(self.roots_pem.encode())
        content = {
            "a": [list(address) for address in self.addresses],
            "r": [base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in roots],
            "c": self.credential,
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(text).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        """Raises JoinTokenMalformed."""
        text = "".join(text.split())  # terminals and mails break long lines
        if not text.startswith(PREFIX) or len(text) > MAX_TEXT:
            raise JoinTokenMalformed(
                f"a join token begins with {PREFIX}", next_step="copy it whole from `mycelia token create`"
            )
        body = text.removeprefix(PREFIX)
        try:
            content = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True))
            addresses = tuple((str(host), int(port)) for host, port in content["a"])
            roots = [x509.load_der_x509_certificate(base64.b64decode(each)) for each in content["r"]]
            credential = content["c"]
        except (ValueError, KeyError, TypeError, binascii.Error, *PARSE_ERRORS) as error:
            raise JoinTokenMalformed(
                "the join token is damaged", next_step="copy it whole from `mycelia token create`"
            ) from error
        if not addresses or not roots or not isinstance(credential, str):
            raise JoinTokenMalformed("the join token names no control plane, root or credential")
        pem = "".join(root.public_bytes(Encoding.PEM).decode() for root in roots)
        return cls(addresses, pem, credential)


@dataclass(frozen=True, slots=True)
class Admission:
    """What a valid credential allows: to become `node` (empty: any name), `uses` times in all."""

    token_id: str
    node: str
    uses: int
    expires_s: int


def mint_credential(
    tokens: NodeTokens, node: str, uses: int, lifetime: dt.timedelta, now: dt.datetime
) -> str:
    """`node` empty: for any one. Raises InvalidNodeName, JoinTokenMalformed for bad numbers."""
    if not 1 <= uses <= MAX_USES:
        raise JoinTokenMalformed(f"{uses} uses; allowed: 1 to {MAX_USES}")
    if not dt.timedelta(0) < lifetime <= MAX_LIFETIME:
        raise JoinTokenMalformed(f"a join token lives at most {MAX_LIFETIME.days} days")
    claims: dict[str, object] = {"aud": AUDIENCE, "jti": secrets.token_hex(8), "uses": uses}
    if node:
        claims["sub"] = f"node:{require_node_name(node)}"
    return tokens.sign(claims, lifetime, now)


def admit(tokens: NodeTokens, credential: str, node: str, now: dt.datetime) -> Admission:
    """What `credential` allows a host that wants to be `node`. Raises NodeTokenRejected with the reason."""
    claims = tokens.open(credential, AUDIENCE, now)
    token_id, uses, subject = claims.get("jti"), claims.get("uses"), claims.get("sub", "node:")
    if not isinstance(token_id, str) or not isinstance(uses, int) or not isinstance(subject, str):
        raise NodeTokenRejected("the join token lacks its number of uses")
    named = subject.removeprefix("node:")
    if named not in ("", node):
        raise NodeTokenRejected(f"the join token is for node {named}, not for {node}")
    return Admission(token_id, named, uses, int(claims["exp"]))


class UseLedger:
    """How often each live join token was used, on disk before anybody profits from it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, admission: Admission, now: dt.datetime) -> None:
        """Counts one use. Raises NodeTokenRejected when none is left, StateNotWritten, StateNotReadable."""
        entries = self._live(now)
        used = entries.get(admission.token_id, (0, 0))[0]
        if used >= admission.uses:
            raise NodeTokenRejected(f"join token {admission.token_id} was used {used} times, which is all")
        if admission.token_id not in entries and len(entries) >= MAX_LEDGER:
            raise NodeTokenRejected(f"{MAX_LEDGER} join tokens are in use, which is the limit")
        entries[admission.token_id] = (used + 1, admission.expires_s)
        content = {"version": 1, "used": {key: list(value) for key, value in entries.items()}}
        private_files.write(self._path, json.dumps(content).encode())

    def _live(self, now: dt.datetime) -> dict[str, tuple[int, int]]:
        """Tokens that could still come back; an hour more than they live, for clocks that differ."""
        try:
            found = json.loads(private_files.read_private(self._path))
            used: Mapping[str, list[int]] = found["used"]
            entries = {str(key): (int(count), int(expires)) for key, (count, expires) in used.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateNotReadable(f"{self._path} is not a ledger of join tokens") from error
        limit = now.timestamp() - 3600
        return {key: value for key, value in entries.items() if value[1] > limit}
