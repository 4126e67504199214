"""`python -m ztunnel`: the node proxy, set up by environment variables (see ztunnel/settings.py)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

# First, so that structlog does not load what only its pretty tracebacks need.
from telemetry.logging import configure_logging  # isort: skip

import trio

from telemetry.line_writer import LineWriter
from transport.errors import MeshError
from ztunnel.app import Output, Ztunnel
from ztunnel.settings import settings_from

_FLAGS = {
    "admin_port": "MYCELIA_ADMIN_PORT",
    "stats_port": "MYCELIA_STATS_PORT",
    "readiness_port": "MYCELIA_READINESS_PORT",
    "state_dir": "MYCELIA_STATE_DIR",
}


def main(arguments: list[str] | None = None) -> int:
    environment = dict(os.environ)
    given = vars(_parser().parse_args(arguments))
    environment.update({_FLAGS[name]: value for name, value in given.items() if value is not None})
    access, log = LineWriter(sys.stdout.fileno()), LineWriter(sys.stderr.fileno())
    try:
        settings = settings_from(environment)
        levels = configure_logging(settings.log_level, is_json=settings.is_log_json, write=log.put)
        access.start()
        log.start()
        trio.run(Ztunnel(settings, Output(access, log, levels)).run, strict_exception_groups=True)
    except KeyboardInterrupt:  # before the signals are watched
        return 130
    except (MeshError, BaseExceptionGroup) as error:
        reasons = list(_reasons(error))
        if not reasons:
            raise
        log.close()
        for reason in reasons:
            print(f"ztunnel: {reason}", file=sys.stderr)
        return 1
    finally:
        access.close()
        log.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ztunnel", description=__doc__)
    parser.add_argument("--admin-port", help="administration, localhost only (15000)")
    parser.add_argument("--stats-port", help="metrics (15020)")
    parser.add_argument("--readiness-port", help="readiness (15021)")
    parser.add_argument("--state-dir", help="where the last resources of the control plane are kept")
    return parser


def _reasons(error: BaseException) -> Iterator[MeshError]:
    """The errors made on purpose; none where a defect is among them, which deserves its traceback."""
    if isinstance(error, MeshError):
        yield error
    elif isinstance(error, BaseExceptionGroup) and error.split(MeshError)[1] is None:
        for part in error.exceptions:
            yield from _reasons(part)


if __name__ == "__main__":
    sys.exit(main())
