"""Which rule does a request fall on? (config-api 6.2-6.5, 12)

A table answers as a walk over all rules in their order would: the first whose match agrees decides. It does
not walk. Each match becomes an entry with its number in that order, filed where a look-up by path finds it:

* exact paths in a dict;
* prefixes sorted, each with a link to the longest other prefix of itself. All prefixes of a path lie on the
  chain of the greatest key that is not above the path, so one bisection and a short climb finds them. Regular
  expressions are filed there too, below the literal octets they must begin with;
* all else under "anywhere".

Within a place with many entries the next key is an exact header, parameter or method. An entry is tested only
if its number is below that of the best found so far, and a link is not followed where nothing lower awaits.
Invariant: the result equals that of the walk (`HttpTable.explain` is the walk, and says why not).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from waypoint.state.matching import Exact, NamedTest, Present, Test
from waypoint.state.regex import Pattern
from waypoint.state.request import RequestFacts
from waypoint.state.rules import HttpRule

_SMALL = 8  # entries that are as fast to test in turn as to find by another key
_METHOD = b":method"


@dataclass(frozen=True, slots=True)
class PathTest:
    """How the path must be; `value` is in lower case where case is ignored.

    A prefix by segments has no slash at its end: that of all paths is empty.
    """

    kind: str  # exact, prefix (by segments), string_prefix, regex
    value: bytes = b""
    pattern: Pattern | None = None
    is_case_ignored: bool = False

    def accepts(self, path: bytes) -> bool:
        if self.pattern is not None:
            return self.pattern.is_full_match(path)
        if self.is_case_ignored:
            path = path.lower()
        if self.kind == "exact":
            return path == self.value
        if not path.startswith(self.value):
            return False
        return self.kind == "string_prefix" or path[len(self.value) : len(self.value) + 1] in (b"", b"/")

    def __str__(self) -> str:
        text = self.pattern.text if self.pattern is not None else self.value.decode(errors="replace")
        return f"path {self.kind} {text}{' (any case)' if self.is_case_ignored else ''}"


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """One match of a rule and its place in the order; what `HttpTable.match` returns."""

    order: int
    rule: HttpRule
    path: PathTest | None = None
    method: bytes = b""
    headers: tuple[NamedTest, ...] = ()
    parameters: tuple[NamedTest, ...] = ()
    authority: Test | None = None
    scheme: Test | None = None
    without_headers: tuple[NamedTest, ...] = ()
    source_namespace: str = ""
    is_path_alone: bool = False
    pattern: Pattern | None = None

    def accepts(self, facts: RequestFacts) -> bool:
        """All clauses but those of the path that the place of the entry has answered."""
        if self.is_path_alone:
            return True
        if self.method and self.method != facts.method:
            return False
        for clause in self.headers:
            if not clause.test.accepts(facts.header(clause.name)):
                return False
        for clause in self.parameters:
            if not clause.test.accepts(facts.parameter(clause.name)):
                return False
        if self.pattern is not None and not self.pattern.is_full_match(facts.path):
            return False
        return self._accepts_rare(facts)

    def _accepts_rare(self, facts: RequestFacts) -> bool:
        if self.source_namespace and self.source_namespace != facts.source_namespace:
            return False
        if self.authority is not None and not self.authority.accepts(facts.authority):
            return False
        if self.scheme is not None and not self.scheme.accepts(facts.scheme):
            return False
        return not any(_is_excluded(clause, facts) for clause in self.without_headers)

    def refusal(self, facts: RequestFacts) -> str:
        """The first clause that disagrees, for a person; empty if all agree."""
        if self.path is not None and not self.path.accepts(facts.path):
            return str(self.path)
        if self.method and self.method != facts.method:
            return f"method {self.method.decode(errors='replace')}"
        for clause in self.headers:
            if not clause.test.accepts(facts.header(clause.name)):
                return f"header {clause}"
        for clause in self.parameters:
            if not clause.test.accepts(facts.parameter(clause.name)):
                return f"parameter {clause}"
        if self.source_namespace and self.source_namespace != facts.source_namespace:
            return f"source namespace {self.source_namespace}"
        if self.authority is not None and not self.authority.accepts(facts.authority):
            return f"authority {self.authority}"
        if self.scheme is not None and not self.scheme.accepts(facts.scheme):
            return f"scheme {self.scheme}"
        for clause in self.without_headers:
            if _is_excluded(clause, facts):
                return f"without header {clause}"
        return ""


def _is_excluded(clause: NamedTest, facts: RequestFacts) -> bool:
    """A header that is not there counts as an empty one (config-api 12)."""
    value = facts.header(clause.name)
    if isinstance(clause.test, Present):
        return clause.test.accepts(value)
    return clause.test.accepts(value or b"")


class _Place:
    """The entries filed under one key, in order."""

    __slots__ = ("_by_value", "_rest", "lowest")

    def __init__(self, entries: Sequence[RouteEntry]) -> None:
        self.lowest = entries[0].order
        self._rest: tuple[RouteEntry, ...] = tuple(entries)
        self._by_value: tuple[tuple[bool, bytes, dict[bytes, tuple[RouteEntry, ...]]], ...] = ()
        if len(entries) > _SMALL:
            self._divide(entries)

    def _divide(self, entries: Sequence[RouteEntry]) -> None:
        rest: list[RouteEntry] = []
        tables: dict[tuple[bool, bytes], dict[bytes, list[RouteEntry]]] = {}
        for entry in entries:
            key = _second_key(entry)
            if key is None:
                rest.append(entry)
            else:
                is_parameter, name, value = key
                tables.setdefault((is_parameter, name), {}).setdefault(value, []).append(entry)
        self._rest = tuple(rest)
        self._by_value = tuple(
            (is_parameter, name, {value: tuple(filed) for value, filed in table.items()})
            for (is_parameter, name), table in tables.items()
        )

    def first(self, facts: RequestFacts, best: RouteEntry | None, limit: int) -> RouteEntry | None:
        """The first entry below `limit` that accepts, else `best`."""
        for entry in self._rest:
            if entry.order >= limit:
                break
            if entry.is_path_alone or entry.accepts(facts):
                best = entry
                limit = entry.order
                break
        for is_parameter, name, table in self._by_value:
            value = facts.parameter(name) if is_parameter else facts.header(name)
            if value is None:
                continue
            for entry in table.get(value, ()):
                if entry.order >= limit:
                    break
                if entry.accepts(facts):
                    best = entry
                    limit = entry.order
                    break
        return best


def _second_key(entry: RouteEntry) -> tuple[bool, bytes, bytes] | None:
    for clause in entry.headers:
        if isinstance(clause.test, Exact):
            return False, clause.name, clause.test.value
    for clause in entry.parameters:
        if isinstance(clause.test, Exact):
            return True, clause.name, clause.test.value
    return (False, _METHOD, entry.method) if entry.method else None


@dataclass(slots=True)
class _Node:
    """A prefix; `parent` is the index of its longest proper prefix, -1 for none."""

    key: bytes
    parent: int
    segments: _Place | None
    characters: _Place | None
    lowest: int = 0  # the lowest number here or above in the chain


class _PathIndex:
    """Entries by path: the exact ones and the chain of prefixes."""

    __slots__ = ("_exact", "_keys", "_nodes")

    def __init__(self, entries: Iterable[RouteEntry]) -> None:
        exact: dict[bytes, list[RouteEntry]] = {}
        segments: dict[bytes, list[RouteEntry]] = {}
        characters: dict[bytes, list[RouteEntry]] = {}
        for entry in entries:
            path = entry.path
            if path is None:
                characters.setdefault(b"", []).append(entry)
            elif path.pattern is not None:
                characters.setdefault(path.pattern.literal_prefix(), []).append(entry)
            else:
                table = {"exact": exact, "prefix": segments}.get(path.kind, characters)
                table.setdefault(path.value, []).append(entry)
        self._exact = {key: _Place(filed) for key, filed in exact.items()}
        self._keys = sorted(segments.keys() | characters.keys())
        self._nodes: list[_Node] = []
        self._link(segments, characters)

    def _link(
        self, segments: Mapping[bytes, list[RouteEntry]], characters: Mapping[bytes, list[RouteEntry]]
    ) -> None:
        open_nodes: list[int] = []
        for key in self._keys:
            while open_nodes and not key.startswith(self._nodes[open_nodes[-1]].key):
                open_nodes.pop()
            parent = open_nodes[-1] if open_nodes else -1
            places = [_Place(table[key]) if key in table else None for table in (segments, characters)]
            lowest = min(place.lowest for place in places if place is not None)
            if parent >= 0:
                lowest = min(lowest, self._nodes[parent].lowest)
            open_nodes.append(len(self._nodes))
            self._nodes.append(_Node(key, parent, places[0], places[1], lowest))

    def first(
        self, path: bytes, facts: RequestFacts, best: RouteEntry | None, limit: int
    ) -> RouteEntry | None:
        place = self._exact.get(path)
        if place is not None and place.lowest < limit:
            best = place.first(facts, best, limit)
            if best is not None:
                limit = best.order
        nodes = self._nodes
        position = bisect_right(self._keys, path) - 1
        while position >= 0:
            node = nodes[position]
            if node.lowest >= limit:
                break
            position = node.parent
            key = node.key
            if not path.startswith(key):
                continue
            if node.segments is not None and (len(path) == len(key) or path[len(key)] == 0x2F):
                best = node.segments.first(facts, best, limit)
                if best is not None:
                    limit = best.order
            if node.characters is not None:
                best = node.characters.first(facts, best, limit)
                if best is not None:
                    limit = best.order
        return best


class HttpTable:
    """The rules of one port, compiled."""

    __slots__ = ("_any_case", "_catches_all", "_entries", "_index", "_limit")

    def __init__(self, entries: Sequence[RouteEntry]) -> None:
        """`entries` are numbered in their order, from 0."""
        assert all(left.order < right.order for left, right in pairwise(entries)), "entries come in order"
        self._entries = tuple(entries)
        self._limit = len(entries)
        self._catches_all = entries[0] if entries and _takes_any_path(entries[0]) else None
        lower = [entry for entry in entries if _is_any_case(entry)]
        self._index = _PathIndex(entry for entry in entries if not _is_any_case(entry))
        self._any_case = _PathIndex(lower) if lower else None

    def match(self, facts: RequestFacts) -> RouteEntry | None:
        """The entry that decides, or None: no rule for this request (404, NR)."""
        path = facts.path
        if self._catches_all is not None and path[:1] == b"/":
            return self._catches_all  # the first rule, with nothing to ask: as services without routes have
        best = self._index.first(path, facts, None, self._limit)
        if self._any_case is not None:
            limit = self._limit if best is None else best.order
            best = self._any_case.first(path.lower(), facts, best, limit)
        return best

    def explain(self, facts: RequestFacts) -> tuple[RouteEntry | None, tuple[str, ...]]:
        """The same decision by a walk over all entries, with a line for each that was looked at."""
        lines: list[str] = []
        for entry in self._entries:
            refusal = entry.refusal(facts)
            if not refusal:
                return entry, (*lines, f"{entry.rule.name}: matches")
            lines.append(f"{entry.rule.name}: no, {refusal}")
        return None, (*lines, "no rule matches")


def _takes_any_path(entry: RouteEntry) -> bool:
    path = entry.path
    if not entry.is_path_alone:
        return False
    return path is None or (path.pattern is None and path.kind == "prefix" and path.value in (b"", b"/"))


def _is_any_case(entry: RouteEntry) -> bool:
    return entry.path is not None and entry.path.is_case_ignored and entry.path.pattern is None
