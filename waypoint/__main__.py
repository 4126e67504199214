"""`python -m waypoint`: a Gateway's L7 proxy, set up by environment variables (see waypoint/settings.py)."""

from __future__ import annotations

import argparse
import os
import sys

from dataplane.control.main import run_process
from waypoint.app import Waypoint
from waypoint.settings import settings_from


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m waypoint", description=__doc__).parse_args(arguments)
    return run_process("waypoint", lambda: settings_from(os.environ), lambda found: found.log_level, Waypoint)


if __name__ == "__main__":
    sys.exit(main())
