"""`python -m loadtests.filters`: what a no-op filter costs a request, and what other routes notice of it.

The cost is of the check alone, without sockets of clients, in the worker and in a process: building what a
filter sees, calling it, taking over what it changed. What others notice is the p99 of requests to a route
without filters, beside the same traffic to a route with a filter and to one without, through a waypoint.
Figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from dataplane.state.model import Service
from dataplane.worker.log import WorkerLog
from loadtests import certificates
from loadtests.attacks.__main__ import ask
from loadtests.bench import RESULTS, machine
from loadtests.topology import inside
from loadtests.waypoint import mycelia, site
from loadtests.waypoint.backends import backends
from loadtests.waypoint.generator import GeneratorError
from loadtests.waypoint.protection import FILTERED, GUARDED, Issuer
from loadtests.waypoint.site import Site
from mesh.lab.private import enter_private_namespace
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

TARGET_US: Final = 20.0
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


def costs(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Where the filter runs, and what it costs a request there."""
    for name, in_worker in (("worker", True), ("process", False)):
        found = [measure(options.requests, in_worker=in_worker) for _ in range(options.rounds)]
        bare = [measure(options.requests, in_worker=in_worker, is_there=False) for _ in range(options.rounds)]
        yield name, statistics.median(found) - statistics.median(bare)


async def neighbours(rounds: int, seconds: float, directory: Path) -> tuple[list[float], list[float]]:
    """p99s in microseconds of a route without filters: beside traffic of a plain one, and of a filtered one.

    They take turns; the traffic beside is the same but for the service that it asks.
    """
    credentials = certificates.make(directory)
    place = Site("mycelia", 1)
    await trio.to_thread.run_sync(partial(site.build, place, is_redirected=True))
    found: dict[str, list[float]] = {GUARDED: [], FILTERED: []}
    async with backends(place, directory), mycelia.running(place, credentials, directory, Issuer()):
        for service in (*found, *list(found) * rounds):
            found[service].append(await _beside(place, service, seconds, directory))
    return found[GUARDED][1:], found[FILTERED][1:]  # the first ones were for warming up


async def _beside(place: Site, service: str, seconds: float, directory: Path) -> float:
    command = ["h2load", "--h1", "-t", "1", "-c", "8", "--rps", "40", "-D", f"{seconds + 1:.0f}"]
    async with trio.open_nursery() as nursery:
        beside = inside(place.client, [*command, f"http://{place.vip_of(service)}/"])
        nursery.start_soon(partial(trio.run_process, beside, capture_stdout=True))
        await trio.sleep(0.5)
        p99, failed = await ask(place, directory, seconds)
    if failed:
        raise GeneratorError(f"{failed} requests failed beside those of {service}")
    return p99


def main() -> int:
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(prog="python -m loadtests.filters", description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=3.0, metavar="S", help="of a look at p99")
    parser.add_argument("--write-results", action="store_true", help=f"append a section to {RESULTS.name}")
    options = parser.parse_args()
    enter_private_namespace(sys.orig_argv)
    lines = []
    for name, cost in costs(options):
        verdict = f", <= {TARGET_US:g} wanted" if name == "worker" else ""
        lines.append(f"| no-op filter in the {name}, us a request{verdict} | {cost:.1f} |")
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-", dir="/run") as scratch:
        plain, filtered = trio.run(neighbours, options.rounds, options.duration, Path(scratch).resolve())
    before, after = statistics.median(plain), statistics.median(filtered)
    lines.append(f"| p99 of a route without filters, beside one without, us | {before:.0f} |")
    lines.append(
        f"| the same beside one with a filter in a process, us | {after:.0f} ({after / before:.2f}) |"
    )
    print("\n".join(lines))
    if options.write_results:
        write(arguments, lines)
    return 0


def write(arguments: list[str], lines: list[str]) -> None:
    text = [f"\n## {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC: filters\n"]
    text.append(f"Command: `{shlex.join(['python', '-m', 'loadtests.filters', *arguments])}`\n")
    text += [f"- {key}: {value}" for key, value in machine("cubic (by route)", 1, None).items()]
    text += ["", "| figure | |", "|---|---|", *lines]
    with RESULTS.open("a") as file:
        file.write("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
