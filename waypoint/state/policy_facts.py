"""What a policy may know of a request or a connection: the bytes that are routed on, the verified identity.

Nothing here comes from where a client could claim to be somebody: identity is the certificate's, claims are
those of a validated token. Look-ups are made at the first question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transport.spiffe import SpiffeId
from waypoint.state.request import Header


class PolicyFacts:
    """`path` is normalised and without query; `claims` None: no valid token. A connection has no method."""

    __slots__ = (
        "_lines",
        "_principal",
        "authority",
        "claims",
        "destination",
        "headers",
        "identity",
        "method",
        "path",
        "query",
        "scheme",
        "server_name",
        "source_ip",
    )

    def __init__(
        self,
        *,
        identity: SpiffeId | None = None,
        source_ip: str = "",
        destination: tuple[str, int] = ("", 0),
        method: bytes = b"",
        path: bytes = b"",
        query: bytes | None = None,
        authority: bytes = b"",
        scheme: bytes = b"",
        headers: Sequence[Header] = (),
        claims: Mapping[str, Any] | None = None,
        server_name: str = "",
    ) -> None:
        self.identity = identity
        self.source_ip = source_ip
        self.destination = destination
        self.method = method
        self.path = path
        self.query = query
        self.authority = authority
        self.scheme = scheme
        self.headers = headers
        self.claims = claims
        self.server_name = server_name
        self._lines: dict[bytes, list[bytes]] | None = None
        self._principal: str | None = None

    @property
    def principal(self) -> str:
        """`domain/ns/namespace/sa/account`; empty without a certificate."""
        found = self._principal
        if found is None:
            found = self._principal = "" if self.identity is None else self.identity.principal
        return found

    def lines(self, name: bytes) -> Sequence[bytes]:
        """The value of each line of a header, without the white space around; pseudo-headers too."""
        lines = self._lines
        if lines is None:
            lines = self._lines = {}
            for key, value in (*self._pseudo(), *self.headers):
                lines.setdefault(key, []).append(value.strip(b" \t"))
        return lines.get(name, ())

    def _pseudo(self) -> Iterator[Header]:
        if self.method:
            yield b":method", self.method
            yield b":path", self.path if self.query is None else self.path + b"?" + self.query
            yield b":scheme", self.scheme
            yield b":authority", self.authority
            yield b"host", self.authority

    def claim(self, path: Sequence[str]) -> list[str]:
        """The texts of a claim of the validated token: its own, or those in its list; else none.

        Numbers and booleans are no texts: they match nothing (config-api 8.1).
        """
        found: Any = self.claims
        for name in path:
            if not isinstance(found, Mapping):
                return []
            found = found.get(name)
        if isinstance(found, str):
            return [found]
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    @property
    def request_principal(self) -> str | None:
        """`issuer/subject` of the validated token."""
        claims = self.claims
        if claims is None:
            return None
        issuer, subject = claims.get("iss"), claims.get("sub", "")
        return f"{issuer}/{subject}" if isinstance(issuer, str) and isinstance(subject, str) else None
