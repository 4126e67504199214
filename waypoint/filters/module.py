"""A filter's source made into hooks, and the hooks called. Used by runners, by workers and by tests alike.

A source is a Python module with any of these functions:

    configure(config: dict) -> None                              once, when it is loaded
    on_request(request) -> Answer | None                         before routing
    on_request_body(request, chunk: bytes, is_last: bool) -> bytes
    on_response(request, response) -> None                       before the response's headers leave
    on_response_body(request, response, chunk: bytes, is_last: bool) -> bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar, Final

from transport.errors import Blame, MeshError
from waypoint.filters.api import Answer, Request, Response

HOOKS: Final = ("on_request", "on_request_body", "on_response", "on_response_body")
MAX_SOURCE_CHARACTERS: Final = 256 * 1024


class FilterInvalid(MeshError):
    """A filter's source cannot be used; the last good version stays."""

    code: ClassVar[str] = "MYC-7010"
    blame: ClassVar[Blame] = Blame.REMOTE


class TooLong(BaseException):
    """Raised inside a hook by whoever watches the time; not an Exception, so that no filter swallows it by
    chance.
    """


class HookFailed(Exception):
    """A hook raised, or returned what it may not: the text says which and what."""


def check_source(source: str, name: str) -> None:
    """Raises FilterInvalid if it is no Python; nothing of it runs."""
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise FilterInvalid(f"{len(source)} characters; {MAX_SOURCE_CHARACTERS} are allowed")
    try:
        compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line}: " if line else ""
        raise FilterInvalid(f"{where}{getattr(error, 'msg', None) or error}") from error


class FilterModule:
    """A loaded filter. `hooks` are the names of those it has."""

    def __init__(self, source: str, name: str, config: Mapping[str, Any]) -> None:
        """Runs the source and `configure`. Raises FilterInvalid."""
        check_source(source, name)
        module = ModuleType(f"filter_{name}")
        module.__file__ = name
        try:
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - its purpose
            configure = getattr(module, "configure", None)
            if configure is not None:
                configure(dict(config))
        except TooLong:
            raise
        except BaseException as error:  # SystemExit too: a filter ends nobody
            raise FilterInvalid(f"it cannot be loaded: {_told(error)}") from error
        found = {hook: getattr(module, hook, None) for hook in HOOKS}
        self._hooks: dict[str, Callable[..., Any]] = {
            hook: function for hook, function in found.items() if callable(function)
        }
        self.hooks = frozenset(self._hooks)
        if not self._hooks:
            raise FilterInvalid(f"it has none of the functions {', '.join(HOOKS)}")

    def on_request(self, request: Request) -> Answer | None:
        """These raise HookFailed."""
        result = self._call("on_request", request)
        if result is not None and not isinstance(result, Answer):
            raise HookFailed(f"on_request returned {type(result).__name__}, not an Answer or None")
        return result

    def on_response(self, request: Request, response: Response) -> None:
        self._call("on_response", request, response)

    def on_request_body(self, request: Request, chunk: bytes, is_last: bool) -> bytes:
        return self._bytes("on_request_body", request, chunk, is_last)

    def on_response_body(self, request: Request, response: Response, chunk: bytes, is_last: bool) -> bytes:
        return self._bytes("on_response_body", request, response, chunk, is_last)

    def _bytes(self, hook: str, *arguments: object) -> bytes:
        result = self._call(hook, *arguments)
        if not isinstance(result, bytes | bytearray | memoryview):
            raise HookFailed(f"{hook} returned {type(result).__name__}, not bytes")
        return bytes(result)

    def _call(self, hook: str, *arguments: object) -> Any:
        try:
            return self._hooks[hook](*arguments)
        except TooLong:
            raise
        except BaseException as error:
            raise HookFailed(f"{hook} failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """The error, and the line of the filter where it happened."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return f"{type(error).__name__}: {error} (line {line})"[:500]
