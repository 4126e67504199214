"""`python -m ztunnel.worker --fd N`: one data worker of a ztunnel."""

from __future__ import annotations

import sys

from dataplane.worker.main import run_worker
from ztunnel.worker.worker import Worker

if __name__ == "__main__":
    sys.exit(run_worker("ztunnel", Worker))
