"""The way into a control process: output, settings, the event loop, and errors as one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

# First, so that structlog does not load what only its pretty tracebacks need.
from telemetry.logging import configure_logging  # isort: skip

import trio

from dataplane.control.process import ControlProcess, Output, ProcessSettings
from telemetry.line_writer import LineWriter
from transport.errors import MeshError

_Settings = TypeVar("_Settings", bound=ProcessSettings)


def run_process(
    name: str,
    read_settings: Callable[[], _Settings],
    log_level: Callable[[_Settings], str],
    make: Callable[[_Settings, Output], ControlProcess],
) -> int:
    """Runs a control process to its end; gives the exit code. What somebody can mend is one line."""
    access, log = LineWriter(sys.stdout.fileno()), LineWriter(sys.stderr.fileno())
    try:
        settings = read_settings()
        levels = configure_logging(log_level(settings), is_json=settings.is_log_json, write=log.put)
        access.start()
        log.start()
        trio.run(make(settings, Output(access, log, levels)).run, strict_exception_groups=True)
    except KeyboardInterrupt:  # before the signals are watched
        return 130
    except (MeshError, BaseExceptionGroup) as error:
        reasons = list(_reasons(error))
        if not reasons:
            raise
        log.close()
        for reason in reasons:
            print(f"{name}: {reason}", file=sys.stderr)
        return 1
    finally:
        access.close()
        log.close()
    return 0


def _reasons(error: BaseException) -> Iterator[MeshError]:
    """The errors made on purpose; none where a defect is among them, which deserves its traceback."""
    if isinstance(error, MeshError):
        yield error
    elif isinstance(error, BaseExceptionGroup) and error.split(MeshError)[1] is None:
        for part in error.exceptions:
            yield from _reasons(part)
