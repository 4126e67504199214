"""The way into a data worker: `python -m PACKAGE.worker --fd N`, started by its control process."""

from __future__ import annotations

import argparse
import gc
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from dataplane.worker.base import DataWorker
from transport.errors import MeshError
from transport.reactor import Reactor
from transport.sockets import raise_nofile_limit

# The hot path makes no garbage cycles; the young generation may grow, and full collections wait for quiet
# times.
_GC_THRESHOLDS = (20_000, 50, 1_000)


def run_worker(package: str, make: Callable[[Reactor, socket.socket], DataWorker[Any]]) -> int:
    """Runs a worker to its end; gives the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="stream socket to the control process")
    fd: int = parser.parse_args().fd
    # Ctrl-C reaches the whole process group: the control process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(*_GC_THRESHOLDS)
    raise_nofile_limit()
    try:
        control = socket.socket(fileno=fd)
    except OSError as error:
        print(f"descriptor {fd} is not a socket: {error.strerror}", file=sys.stderr)
        return 2
    with Reactor() as reactor:
        worker = make(reactor, control)
        # Who stops a group of processes must not cut connections that the control process wants drained.
        signal.signal(signal.SIGTERM, lambda *_: reactor.call_soon_threadsafe(worker.drain))
        try:
            worker.run()
        except MeshError as error:
            print(f"{package} worker: {error}", file=sys.stderr)
            return 1
    return 0
