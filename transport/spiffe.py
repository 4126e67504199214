"""SPIFFE identities of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

Source: ztunnel-facts 2.2. Comparison is exact and case-sensitive; anything of another form is not an
identity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from transport.errors import Blame, MeshError

_PREFIX = "spiffe://"
# Each piece: visible ASCII without the separators that would let two identities print alike or split
# elsewhere.
_PIECE = re.compile(r"[!-~]+")
_FORBIDDEN = frozenset("/\\?#%@\"'<>")
_MAX_LENGTH = 2048  # SPIFFE ID specification 2.3


class InvalidSpiffeId(MeshError):
    """A text that should be a SPIFFE identity is none."""

    code = "MYC-1001"
    blame = Blame.REMOTE


def _is_piece(text: str) -> bool:
    return _PIECE.fullmatch(text) is not None and _FORBIDDEN.isdisjoint(text)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One workload identity. Hashable and small; build it with `parse` when the text comes from outside."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        for name in ("trust_domain", "namespace", "service_account"):
            if not _is_piece(getattr(self, name)):
                raise InvalidSpiffeId(f"{name} {getattr(self, name)!r} of a SPIFFE identity is not allowed")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the URI form; raises InvalidSpiffeId."""
        if len(text) > _MAX_LENGTH or not text.startswith(_PREFIX):
            raise InvalidSpiffeId(f"{text[:200]!r} does not start with {_PREFIX}")
        pieces = text[len(_PREFIX) :].split("/")
        if len(pieces) != 5 or pieces[1] != "ns" or pieces[3] != "sa":
            raise InvalidSpiffeId(f"{text[:200]!r} is not of the form spiffe://<domain>/ns/<ns>/sa/<sa>")
        return cls(pieces[0], pieces[2], pieces[4])

    @classmethod
    def try_parse(cls, text: str) -> Self | None:
        """Like `parse`, with None for anything that is not an identity."""
        try:
            return cls.parse(text)
        except InvalidSpiffeId:
            return None

    @property
    def principal(self) -> str:
        """The form that policies use: without `spiffe://`."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return _PREFIX + self.principal
