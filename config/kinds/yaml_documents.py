"""YAML text to plain values, the way Kubernetes reads it, and safe on hostile input.

A file is cut at its `---` lines first: YAML gives that line no other meaning, so the cut is exact, and an
unchanged document of a large file need not be read again. Each document is then built from libyaml's event
stream with a stack bounded by `MAX_DEPTH` (libyaml's own tree builder recurses in C and dies on deep input).

Differences from PyYAML's loader, all on purpose: keys may not repeat; only YAML's plain types are built;
timestamps and base-60 numbers stay text; keys that are numbers or booleans become text (as in Kubernetes'
conversion to JSON); what aliases repeat is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 2_000_000
MAX_REPEATED_VALUES: Final = 10_000
MAX_DIGITS: Final = 30

Path = tuple[str | int, ...]

_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_ONLY_REMARKS = re.compile(r"\A(?:[ \t]*(?:#[^\n]*|%YAML[^\n]*)?\r?(?:\n|\Z))*\Z")
_DIRECTIVE = re.compile(r"^%YAML[^\n]*$", re.MULTILINE)
_MAY_BE_BLANK = frozenset({"", " ", "\t", "\r", "\n", "#", "%"})
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset({"!", *(_PREFIX + kind for kind in ("str", "int", "float", "bool", "null"))})


class YamlRefused(Exception):
    """Not readable as a document; `line` counts from 1 within its text. Never leaves `config.kinds`."""

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.text = text
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    index: int  # counts from 1
    first_line: int  # counts from 1
    text: str


def split(text: str) -> Iterator[Document]:
    """The documents of a file, leaving out empty ones (which still count in the index)."""
    text = text.removeprefix("\ufeff")
    line, index, begin = 1, 0, 0
    markers = [(found.start(), found.end()) for found in _MARKER.finditer(text)]
    for position, (end, following) in enumerate([*markers, (len(text), len(text))]):
        piece = text[begin:end]
        is_blank = piece[:1] in _MAY_BE_BLANK and _ONLY_REMARKS.match(piece) is not None
        if not (is_blank and position == 0 and markers):  # what stands before the first marker
            index += 1
            if not is_blank:
                yield Document(index, line, _DIRECTIVE.sub("", piece) if "%YAML" in piece else piece)
        line += piece.count("\n")
        begin = following


def build(text: str) -> object:
    """The value of one document.

    Raises YamlRefused for anything that is not plain, bounded YAML.
    """
    return _Builder(text, None).document()


def line_of(text: str, path: Path) -> int:
    """The line (from 1) of the deepest part of `path` that exists in a document that `build` accepts."""
    lines: dict[Path, int] = {}
    try:
        _Builder(text, lines).document()
    except YamlRefused as refusal:
        return refusal.line
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Builder:
    def __init__(self, text: str, lines: dict[Path, int] | None) -> None:
        self._text = text
        self._lines = lines
        self._line = 1
        self._values = 0
        self._repeated = 0
        self._anchors: dict[str, tuple[object, int]] = {}

    def document(self) -> object:
        try:
            loader = yaml.CSafeLoader(self._text)
        except yaml.YAMLError as error:
            raise self._translated(error) from error
        self._loader = loader
        try:
            self._next()  # stream start
            event = self._next()
            if isinstance(event, StreamEndEvent):
                return None
            assert isinstance(event, DocumentStartEvent)
            value = self._value(self._next(), (), MAX_DEPTH)
            event = self._next()
            assert isinstance(event, DocumentEndEvent)
            self._next()  # the end of the stream; libyaml refuses another document without `---`
        except yaml.YAMLError as error:
            raise self._translated(error) from error
        finally:
            loader.dispose()
        return value

    def _next(self) -> object:
        event: yaml.Event | None = self._loader.get_event()
        if event is not None and event.start_mark is not None:
            self._line = event.start_mark.line + 1
        return event

    def _refused(self, text: str) -> YamlRefused:
        return YamlRefused(text, self._line)

    def _translated(self, error: yaml.YAMLError) -> YamlRefused:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark is not None else self._line
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        return YamlRefused(f"not valid YAML: {reason}", line)

    def _value(self, event: object, path: Path, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._refused(f"more than {MAX_VALUES} values in one document")
        if self._lines is not None:
            self._lines.setdefault(path, self._line)
        if isinstance(event, ScalarEvent):
            return self._kept(event.anchor, self._scalar(event), self._values)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth == 0:
            raise self._refused(f"nested more than {MAX_DEPTH} deep")
        before = self._values
        if isinstance(event, SequenceStartEvent):
            self._check_tag(event.tag, "seq")
            return self._kept(event.anchor, self._sequence(path, depth - 1), before)
        assert isinstance(event, MappingStartEvent)
        self._check_tag(event.tag, "map")
        return self._kept(event.anchor, self._mapping(path, depth - 1), before)

    def _kept(self, anchor: str | None, value: object, before: int) -> object:
        if anchor is not None:
            self._anchors[anchor] = (value, self._values - before + 1)
        return value

    def _alias(self, event: AliasEvent) -> object:
        known = self._anchors.get(event.anchor or "")
        if known is None:
            raise self._refused(f"alias *{event.anchor} has no anchor before it")
        value, weight = known
        self._values += weight
        self._repeated += weight
        if self._repeated > MAX_REPEATED_VALUES:
            raise self._refused(f"aliases repeat more than {MAX_REPEATED_VALUES} values")
        return value

    def _sequence(self, path: Path, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), depth))
        return items

    def _mapping(self, path: Path, depth: int) -> dict[str, object]:
        mapping: dict[str, object] = {}
        merged: list[tuple[int, object]] = []
        while not isinstance(event := self._next(), MappingEndEvent):
            key, is_merge = self._key(event)
            if is_merge:
                line = self._line
                merged.append((line, self._value(self._next(), (*path, "<<"), depth)))
                continue
            if key in mapping:
                raise self._refused(f'key "{key}" is written twice in one mapping; the second is here')
            if self._lines is not None:
                self._lines[(*path, key)] = self._line
            mapping[key] = self._value(self._next(), (*path, key), depth)
        for line, value in merged:
            self._line = line
            self._merge(mapping, value)
        return mapping

    def _key(self, event: object) -> tuple[str, bool]:
        if isinstance(event, AliasEvent):
            key = self._alias(event)
        elif isinstance(event, ScalarEvent):
            if event.value == "<<" and event.implicit[0]:
                return "<<", True
            key = self._kept(event.anchor, self._scalar(event), self._values)
        else:
            raise self._refused("a key must be plain text, not a list or a mapping")
        match key:
            case str():
                return key, False
            case bool():
                return str(key).lower(), False
            case int() | float():
                return str(key), False
            case _:
                raise self._refused("a key must be text, found nothing (null)")

    def _merge(self, mapping: dict[str, object], value: object) -> None:
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise self._refused("the merge key << takes a mapping or a list of mappings")
            for key, inner in part.items():
                mapping.setdefault(key, inner)

    def _check_tag(self, tag: str | None, kind: str) -> None:
        if tag not in (None, "!", _PREFIX + kind):
            raise self._refused(f"tag {_short(tag)} is not allowed; manifests use YAML's plain types only")

    def _scalar(self, event: ScalarEvent) -> object:
        text: str = event.value
        is_plain, _ = event.implicit
        if event.tag is None or is_plain:
            return self._plain(text) if is_plain else text
        if event.tag not in _PLAIN_TAGS:
            raise self._refused(
                f"tag {_short(event.tag)} is not allowed; manifests use YAML's plain types only"
            )
        if event.tag in ("!", _PREFIX + "str"):
            return text
        value = self._plain(text)
        if type(value).__name__ != event.tag.removeprefix(_PREFIX).replace("null", "NoneType"):
            raise self._refused(f'"{text}" is not of the type that its tag {_short(event.tag)} says')
        return value

    def _plain(self, text: str) -> object:
        """The value of an unquoted word, by YAML 1.1 as Kubernetes reads it."""
        if not text or text[0] in "~nN":
            if text in _NULL:
                return None
            return False if text in _FALSE else text
        if text[0] in "tTyYoOfF":
            if text in _TRUE:
                return True
            return False if text in _FALSE else text
        if text[0] not in "+-.0123456789":
            return text
        if _INTEGER.match(text):
            return self._integer(text)
        if _FLOAT.match(text):
            return self._float(text)
        return text

    def _integer(self, text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise self._refused(f"a number of {len(text)} digits")
        digits = text.replace("_", "").lstrip("+-")
        if digits.startswith("0") and digits[1:].isdigit():
            digits = "0o" + digits[1:]
        try:
            value = int(digits, 0)
        except ValueError as error:
            raise self._refused(f'"{text}" is not a number; quote it if it is text') from error
        return -value if text.startswith("-") else value

    def _float(self, text: str) -> float:
        value = float(text.replace("_", ""))
        if math.isinf(value):
            raise self._refused(f'"{text}" is too large a number; quote it if it is text')
        return value


def _short(tag: str | None) -> str:
    return f"!!{tag.removeprefix(_PREFIX)}" if tag and tag.startswith(_PREFIX) else str(tag)
