"""The words of filters. A filter gets these objects, changes them in place, and may answer by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


class Headers:
    """Header lines in order. Names are compared without letter case, and written in lower case."""

    __slots__ = ("_lines",)

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        self._lines = [(name.lower(), value) for name, value in lines]

    @classmethod
    def received(cls, lines: list[tuple[str, str]]) -> Headers:
        """Of a message that was read: names are in lower case already."""
        made = cls.__new__(cls)
        made._lines = lines
        return made

    def get(self, name: str, default: str = "") -> str:
        """The value; of several lines the values, joined with commas."""
        found = self.all(name)
        return ",".join(found) if found else default

    def all(self, name: str) -> list[str]:
        wanted = name.lower()
        return [value for key, value in self._lines if key == wanted]

    def set(self, name: str, value: str) -> None:
        """In place of all lines of that name."""
        self.remove(name)
        self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """One more line. Raises ValueError for what cannot stand in a message."""
        check_line(name, value)
        self._lines.append((name.lower(), value))

    def remove(self, name: str) -> None:
        wanted = name.lower()
        self._lines = [line for line in self._lines if line[0] != wanted]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(key == name.lower() for key, _ in self._lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._lines == other._lines

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Headers({self._lines!r})"


_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch


def check_line(name: str, value: str) -> None:
    """Raises ValueError for what cannot stand in a message."""
    if not _NAME(name):
        raise ValueError(f"{name!r} is no header name")
    if not _VALUE(value):
        raise ValueError(f"the value of header {name} has a character that cannot stand in a message")


@dataclass(slots=True)
class Request:
    """A request that policies have let pass. `path` may have a query.

    A filter may change `path` and `headers`; with another path, or with `reroute`, the route is chosen anew.
    `caller` is the verified identity (`spiffe://...`), empty without one; `claims` are those of the validated
    token. `state` is the filter's own and the same object for all hooks of a request.
    """

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: Headers = field(default_factory=Headers)
    caller: str = ""
    source_address: str = ""
    claims: Mapping[str, Any] | None = None
    route: str = ""
    service: str = ""
    reroute: bool = False
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Response:
    """What the application answers. A filter may change `headers`; the status stays."""

    status: int = 200
    headers: Headers = field(default_factory=Headers)


@dataclass(slots=True)
class Answer:
    """A response in place of the application's."""

    status: int
    body: bytes | str = b""
    headers: Headers | Mapping[str, str] = field(default_factory=Headers)
