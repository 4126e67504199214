"""The clauses of a match, compiled: each accepts a value or not and can be read back by a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.regex import Pattern


@dataclass(frozen=True, slots=True)
class Exact:
    value: bytes

    def accepts(self, value: bytes | None) -> bool:
        return value == self.value

    def __str__(self) -> str:
        return f"= {self.value.decode(errors='replace')}"


@dataclass(frozen=True, slots=True)
class Prefix:
    value: bytes

    def accepts(self, value: bytes | None) -> bool:
        return value is not None and value.startswith(self.value)

    def __str__(self) -> str:
        return f"begins with {self.value.decode(errors='replace')}"


@dataclass(frozen=True, slots=True)
class Regex:
    pattern: Pattern

    def accepts(self, value: bytes | None) -> bool:
        return value is not None and self.pattern.is_full_match(value)

    def __str__(self) -> str:
        return f"matches {self.pattern.text}"


@dataclass(frozen=True, slots=True)
class Present:
    is_present: bool = True

    def accepts(self, value: bytes | None) -> bool:
        return (value is not None) is self.is_present

    def __str__(self) -> str:
        return "is there" if self.is_present else "is not there"


Test: TypeAlias = Exact | Prefix | Regex | Present


@dataclass(frozen=True, slots=True)
class NamedTest:
    """A clause about a header or a query parameter."""

    name: bytes
    test: Test

    def __str__(self) -> str:
        return f"{self.name.decode(errors='replace')} {self.test}"


def string_test(message: pb.StringMatch) -> Test:
    match message.WhichOneof("kind"):
        case "exact":
            return Exact(message.exact.encode())
        case "prefix":
            return Prefix(message.prefix.encode())
        case "regex":
            return Regex(Pattern(message.regex))
        case _:
            raise RoutesRejected("a string match says nothing")


def value_test(message: pb.ValueMatch, *, is_header: bool) -> NamedTest:
    if not message.name:
        raise RoutesRejected("a header or parameter match has no name")
    name = (message.name.lower() if is_header else message.name).encode()
    match message.WhichOneof("kind"):
        case "exact":
            return NamedTest(name, Exact(message.exact.encode()))
        case "prefix":
            return NamedTest(name, Prefix(message.prefix.encode()))
        case "regex" if message.regex == "*":
            return NamedTest(name, Present())  # VirtualService's old way to say so
        case "regex":
            return NamedTest(name, Regex(Pattern(message.regex)))
        case "is_present":
            return NamedTest(name, Present(message.is_present))
        case _:
            raise RoutesRejected(f"the match of {message.name} says nothing")


def named_tests(messages: list[pb.ValueMatch], *, is_header: bool) -> tuple[NamedTest, ...]:
    """The clauses in order; of several for one name the first counts (HTTPRoute's rule)."""
    tests: dict[bytes, NamedTest] = {}
    for message in messages:
        test = value_test(message, is_header=is_header)
        tests.setdefault(test.name, test)
    return tuple(tests.values())
