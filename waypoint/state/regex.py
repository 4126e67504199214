"""Regular expressions of routes: RE2 and nothing else.

A pattern comes from a tenant and runs on bytes that a client chose, so only an engine with linear time will
do (authz-cases 11). The engine is met here alone. Where it is not installed, patterns are refused by name;
Python's backtracking `re` is never a fallback.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from waypoint.state.errors import RoutesRejected

MAXIMUM_PATTERN_CHARACTERS = 1024
_LITERAL_BYTES = 64
_MEMORY_BYTES = 1 << 20


class _Engine(Protocol):
    def fullmatch(self, text: bytes) -> object | None: ...
    def sub(self, repl: bytes, text: bytes) -> bytes: ...
    def possiblematchrange(self, maxlen: int) -> tuple[bytes, bytes]: ...


class _Options(Protocol):
    log_errors: bool
    max_mem: int


class _Module(Protocol):
    """The part of google-re2 that is used."""

    error: type[Exception]

    def Options(self) -> _Options: ...  # noqa: N802 - the engine's own name
    def compile(self, pattern: bytes, options: _Options) -> _Engine: ...


def _load() -> _Module | None:
    try:
        return cast("_Module", importlib.import_module("re2"))
    except ImportError:
        return None


_module = _load()


def is_available() -> bool:
    return _module is not None


class Pattern:
    """One compiled expression. Octets that are no UTF-8 match nothing, as at Envoy."""

    __slots__ = ("_engine", "text")

    def __init__(self, text: str, *, is_case_ignored: bool = False) -> None:
        """Raises `RoutesRejected` with the reason if the pattern cannot be used."""
        self.text = text
        self._engine = _compile(f"(?i:{text})" if is_case_ignored else text)

    def is_full_match(self, value: bytes) -> bool:
        return self._engine.fullmatch(value) is not None

    def replace_all(self, substitution: bytes, value: bytes) -> bytes:
        r"""Every match replaced; `\1` in `substitution` stands for a group."""
        return self._engine.sub(substitution, value)

    def literal_prefix(self) -> bytes:
        """Octets with which every match surely begins; maybe none."""
        try:
            lowest, highest = self._engine.possiblematchrange(_LITERAL_BYTES)
        except _errors():
            return b""
        length = 0
        for low, high in zip(lowest, highest, strict=False):
            if low != high:
                break
            length += 1
        return lowest[:length]

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _errors() -> type[Exception]:
    assert _module is not None, "a pattern exists only where the engine does"
    return _module.error


def _compile(text: str) -> _Engine:
    if len(text) > MAXIMUM_PATTERN_CHARACTERS:
        raise RoutesRejected(
            f"regular expression of {len(text)} characters; {MAXIMUM_PATTERN_CHARACTERS} are allowed"
        )
    if _module is None:
        raise RoutesRejected(
            f"regular expression {text!r} cannot be matched: the RE2 engine is not installed",
            next_step="install the package google-re2",
        )
    options = _module.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    try:
        return _module.compile(text.encode(), options)
    except _module.error as error:
        raise RoutesRejected(f"regular expression {text!r} is no RE2: {error}") from error


def check_substitution(text: str) -> bytes:
    r"""The substitution as bytes; a backslash may only be followed by a digit or a backslash."""
    position = text.find("\\")
    while position >= 0:
        following = text[position + 1 : position + 2]
        if following != "\\" and not ("0" <= following <= "9"):
            raise RoutesRejected(f"substitution {text!r} has a backslash without a group's digit")
        position = text.find("\\", position + 2)
    return text.encode()
