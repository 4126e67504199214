"""What routing may know of a request: the same normalised bytes that policy sees and that are forwarded.

Header names are lower case. Look-ups are built at the first question, so that a route by path alone pays
nothing for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Header: TypeAlias = tuple[bytes, bytes]


class RequestFacts:
    """One request. `path` is without the query, `query` without its mark."""

    __slots__ = (
        "_parameters",
        "_values",
        "authority",
        "headers",
        "method",
        "path",
        "query",
        "scheme",
        "source_namespace",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header] = (),
        *,
        authority: bytes = b"",
        scheme: bytes = b"http",
        source_namespace: str = "",
    ) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.authority = authority
        self.scheme = scheme
        self.source_namespace = source_namespace
        self._values: dict[bytes, bytes] | None = None
        self._parameters: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """All lines of a header joined with a comma (cookies with `; `); pseudo-headers by their names."""
        values = self._values
        if values is None:
            values = self._values = self._join_headers()
        return values.get(name)

    def parameter(self, name: bytes) -> bytes | None:
        """The first value of a query parameter as it is written: nothing is decoded, as at Envoy."""
        parameters = self._parameters
        if parameters is None:
            parameters = self._parameters = {}
            if self.query:
                for piece in self.query.split(b"&"):
                    key, _, value = piece.partition(b"=")
                    parameters.setdefault(key, value)
        return parameters.get(name)

    def _join_headers(self) -> dict[bytes, bytes]:
        values: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in values:
                values[name] += (b"; " if name == b"cookie" else b",") + value
            else:
                values[name] = value
        values[b":method"] = self.method
        values[b":path"] = self.path + b"?" + self.query if self.query else self.path
        values[b":scheme"] = self.scheme
        values[b":authority"] = self.authority
        if self.authority:
            values[b"host"] = self.authority
        return values
