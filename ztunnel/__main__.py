"""`python -m ztunnel`: the node proxy, set up by environment variables (see ztunnel/settings.py)."""

from __future__ import annotations

import argparse
import os
import sys

from dataplane.control.main import run_process
from ztunnel.app import Ztunnel
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
    return run_process("ztunnel", lambda: settings_from(environment), lambda found: found.log_level, Ztunnel)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ztunnel", description=__doc__)
    parser.add_argument("--admin-port", help="administration, localhost only (15000)")
    parser.add_argument("--stats-port", help="metrics (15020)")
    parser.add_argument("--readiness-port", help="readiness (15021)")
    parser.add_argument("--state-dir", help="where the last resources of the control plane are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
