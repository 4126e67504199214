"""Structured logs: one line for each event, plain (tab separated, as Istio's node proxy writes) or JSON.

`configure_logging` is called once by a program's composition root and gives the levels, which may
change at run time; everybody else takes `get_logger(scope)`. Events are constant snake_case names with
fields.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from telemetry.errors import InvalidLogLevel
from telemetry.text import bare, json_line, quoted, rfc3339

# structlog imports rich, where it is installed, only to print pretty tracebacks, which we do not do. It
# costs a node proxy 5 MB of memory, so it is hidden during that one import.
_IS_RICH_HIDDEN = "rich" not in sys.modules
if _IS_RICH_HIDDEN:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402 - see above
from structlog.typing import FilteringBoundLogger  # noqa: E402

if _IS_RICH_HIDDEN:
    del sys.modules["rich"]

Logger = FilteringBoundLogger

_RANKS = {"trace": 0, "debug": 1, "info": 2, "warn": 3, "error": 4, "off": 5}
_ALIASES = {"warning": "warn", "critical": "error", "fatal": "error", "exception": "error"}


class LogLevels:
    """Which events are written: a level for all scopes and exceptions for some."""

    def __init__(self, specification: str = "info") -> None:
        self._initial = specification
        self._default = "info"
        self._scopes: dict[str, str] = {}
        self.set(specification)

    def set(self, specification: str) -> None:
        """`debug`, or `scope=debug,other=warn`, or both mixed. Raises `InvalidLogLevel`, changing nothing."""
        default = ""
        scopes: dict[str, str] = {}
        for item in specification.split(","):
            scope, separator, level = item.strip().rpartition("=")
            level = _ALIASES.get(level.lower(), level.lower())
            if level not in _RANKS or (separator and not scope):
                raise InvalidLogLevel(
                    f"{item.strip()!r} is not a log level",
                    next_step=f"use one of {', '.join(_RANKS)}, or scope=level,...",
                )
            if scope:
                scopes[scope] = level
            else:
                default = level
        if not default:  # only scopes: the rest stays as it is
            default, scopes = self._default, {**self._scopes, **scopes}
        self._default, self._scopes = default, scopes

    def reset(self) -> None:
        self.set("info")
        self.set(self._initial)

    def __str__(self) -> str:
        return ",".join(
            [self._default, *(f"{scope}={level}" for scope, level in sorted(self._scopes.items()))]
        )

    @property
    def default(self) -> str:
        return self._default

    def is_enabled(self, scope: str, level: str) -> bool:
        wanted = self._scopes.get(scope)
        if wanted is None and self._scopes:
            # `xds` also covers `xds.client`
            parent = scope.rpartition(".")[0]
            while parent and wanted is None:
                wanted = self._scopes.get(parent)
                parent = parent.rpartition(".")[0]
        return _RANKS[_ALIASES.get(level, level)] >= _RANKS[wanted or self._default]


def get_logger(scope: str) -> Logger:
    """The logger of one scope (a part of a program). Cheap; made once at module or object level."""
    return cast("Logger", structlog.get_logger(scope=scope))


def configure_logging(
    specification: str = "info",
    *,
    is_json: bool = False,
    write: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> LogLevels:
    """Set up logging for this process; `write` takes whole lines (default: standard error)."""
    levels = LogLevels(specification)
    render = render_json if is_json else render_plain
    sink = write or _to_stderr

    def emit(logger: _LineLogger, method: str, event: MutableMapping[str, Any]) -> str:
        level = _ALIASES.get(method, method)
        scope = str(event.pop("scope", logger.scope))
        if not levels.is_enabled(scope, level):
            raise structlog.DropEvent
        error = event.pop("exc_info", None)
        if error:
            event["error"] = _error_text(error)
        message = str(event.pop("event", ""))
        return render(clock(), level, scope, message, event)

    structlog.configure(
        processors=[emit],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        # `structlog.get_logger("scope")` works too.
        logger_factory=lambda *scope: _LineLogger(sink, *scope[:1]),
        cache_logger_on_first_use=False,
    )
    return levels


class _LineLogger:
    """What structlog hands finished lines to."""

    def __init__(self, sink: Callable[[str], None], scope: str = "") -> None:
        self.scope = scope
        self.debug = self.info = self.warning = self.warn = self.error = sink
        self.critical = self.exception = self.fatal = self.msg = self.log = sink


def render_plain(now: float, level: str, scope: str, message: str, fields: MutableMapping[str, Any]) -> str:
    """time, level, scope, message and key=value, tab separated."""
    parts = [rfc3339(now), level, bare(scope), bare_message(message)]
    if fields:
        parts.append(" ".join(f"{bare(key)}={_value(value)}" for key, value in fields.items()))
    return "\t".join(parts)


def render_json(now: float, level: str, scope: str, message: str, fields: MutableMapping[str, Any]) -> str:
    return json_line({"level": level, "time": rfc3339(now), "scope": scope, "message": message, **fields})


def bare_message(text: str) -> str:
    """A message may hold blanks, nothing else that is special."""
    return " ".join(bare(word) for word in text.split(" "))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return quoted(str(value))


def _error_text(error: object) -> str:
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
