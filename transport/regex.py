"""Regular expressions of users: RE2 and nothing else. The engine is met here alone.

A pattern comes from a tenant and runs on bytes that a client chose, so only an engine with linear time and
bounded memory will do (authz-cases 11). Python's backtracking `re` is never a fallback: where the engine is
not installed, patterns are refused by name.
"""

from __future__ import annotations

import importlib
from typing import ClassVar, Final, Protocol, cast

from transport.errors import Blame, MeshError

MAXIMUM_PATTERN_CHARACTERS: Final = 1024
_MEMORY_BYTES: Final = 1 << 20


class PatternRejected(MeshError):
    """A regular expression cannot be used: it is too long, no RE2, or the engine is not installed."""

    code: ClassVar[str] = "MYC-1050"
    blame: ClassVar[Blame] = Blame.REMOTE


class Engine(Protocol):
    """A compiled expression."""

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
    def compile(self, pattern: bytes, options: _Options) -> Engine: ...


def _load() -> _Module | None:
    try:
        return cast("_Module", importlib.import_module("re2"))
    except ImportError:
        return None


_module = _load()


def is_available() -> bool:
    return _module is not None


def engine_errors() -> type[Exception]:
    """What an Engine's methods raise."""
    assert _module is not None, "a pattern exists only where the engine does"
    return _module.error


def compile_re2(text: str) -> Engine:
    """Raises PatternRejected with the reason. Whoever uses the expression needs at most _MEMORY_BYTES."""
    if len(text) > MAXIMUM_PATTERN_CHARACTERS:
        raise PatternRejected(
            f"regular expression of {len(text)} characters; {MAXIMUM_PATTERN_CHARACTERS} are allowed"
        )
    if _module is None:
        raise PatternRejected(
            f"regular expression {text!r} cannot be matched: the RE2 engine is not installed",
            next_step="install the package google-re2",
        )
    options = _module.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    try:
        return _module.compile(text.encode(), options)
    except (_module.error, UnicodeEncodeError) as error:
        raise PatternRejected(f"regular expression {text!r} is no RE2: {error}") from error
