"""`python -m loadtests.filters`: what a no-op filter costs a request, in the worker and in a process.

The check alone is timed, without sockets of clients: building what a filter sees, calling it, taking over
what it changed. Figures are medians over rounds, in microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from dataplane.state.model import Service
from dataplane.worker.log import WorkerLog
from proto.mycelia import attachment_pb2, filter_pb2
from transport.reactor import Reactor
from waypoint.state.filters import FILTER_TYPE
from waypoint.state.place import Place
from waypoint.state.route_table import HttpTable
from waypoint.state.routes import PortTable
from waypoint.state.store import WaypointState
from waypoint.worker.body_pipe import BodyPipe
from waypoint.worker.examination import Examination
from waypoint.worker.filters.source import Filters
from waypoint.worker.headers import Request
from waypoint.worker.plan import Declared, Matched, Outcome, Source
from waypoint.worker.ways import ServedPort

SOURCE: Final = "def on_request(request): pass"
HEADERS: Final = [
    (b"user-agent", b"load"),
    (b"accept", b"*/*"),
    (b"x-request-id", b"0" * 36),
    (b"x-forwarded-proto", b"http"),
]


class _Exchange:
    """As much of an exchange as checks look at."""

    def __init__(self, finished: Callable[[], None]) -> None:
        self.request = Request(b"GET", b"http", b"shop", b"/path", b"a=b", list(HEADERS))
        self.source = Source(("10.0.0.1", 1), ("10.0.0.2", 80))
        self.outcome = Outcome()
        self.request_pipe = BodyPipe(self, 0)
        self.request_pipe.is_all_received = True
        self.on_examined = lambda _: finished()

    def consumed(self, stream_id: int, flow_bytes: int) -> None: ...


def measure(requests: int, *, in_worker: bool, is_there: bool = True) -> float:
    """Microseconds for one request, one after the other; `is_there` False: what measuring costs itself."""
    reactor = Reactor()
    state = WaypointState(Place("load", "gate"), clock=lambda: reactor.now, random=lambda: 0.5)
    policy = filter_pb2.FilterPolicy(
        namespace="load",
        name="noop",
        source=SOURCE,
        in_worker=in_worker,
        memory_bytes=512 << 20,
        attachment=attachment_pb2.Attachment(whole_mesh=True),
    )
    policy.deadline.FromSeconds(5)
    state.apply(FILTER_TYPE, [("load/noop", policy.SerializeToString())], ())
    filters = Filters(state, reactor, WorkerLog(lambda _: True, lambda: reactor.now))
    service = Service("shop", "load", "shop")
    port = ServedPort(PortTable(0, HttpTable([])), Declared.HTTP, service, 80, lambda _: None)
    checks = list(filters.checks(port)) if is_there else []
    matched = Matched(port, None)
    left, began = requests + 10, 0.0
    spent = 0.0

    def one() -> None:
        nonlocal left, began, spent
        left -= 1
        if left == requests:
            began = time.perf_counter()  # the first ones load the filter
        if left == 0:
            spent = time.perf_counter() - began
            reactor.stop()
            return
        exchange: Any = _Exchange(lambda: reactor.call_soon(lambda: _next(examination)))
        examination = Examination(exchange, checks, matched)
        if examination.begin() is None:
            reactor.call_soon(lambda: _next(examination))

    def _next(examination: Examination) -> None:
        examination.end()
        one()

    reactor.call_soon(one)
    reactor.run()
    filters.close()
    return spent / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.filters", description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    assert threading.current_thread() is threading.main_thread()
    for name, in_worker in (("worker", True), ("process", False)):
        found = [measure(options.requests, in_worker=in_worker) for _ in range(options.rounds)]
        bare = [measure(options.requests, in_worker=in_worker, is_there=False) for _ in range(options.rounds)]
        cost = statistics.median(found) - statistics.median(bare)
        print(f"{name:8} {cost:8.1f} us a request (of {statistics.median(found):.1f} measured)")


if __name__ == "__main__":
    main()
