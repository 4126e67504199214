"""`python -m waypoint.worker --fd N`: one data worker of a waypoint."""

from __future__ import annotations

import sys

from dataplane.worker.main import run_worker
from waypoint.worker.worker import Worker

if __name__ == "__main__":
    sys.exit(run_worker("waypoint", Worker))
