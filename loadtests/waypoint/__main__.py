"""`python -m loadtests.waypoint`: the same requests through Mycelia's three workers and through three Envoys.

Contestants stay up and take turns within each round; figures are medians over rounds, targets are ratios
within the run. Exit code 0: every target that was measured is reached; 1: one is not; 2: it could not run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from loadtests import certificates
from loadtests.bench import REASONS, RESULTS, envoy_binary, first_leaf, machine
from loadtests.contestants import listens, program
from loadtests.envoy import template
from loadtests.redirect import CAPTURE_PORT, HBONE_PORT
from loadtests.topology import inside
from loadtests.waypoint import envoy, mycelia, site
from loadtests.waypoint.backends import backends
from loadtests.waypoint.generator import GeneratorError, Load, Measured, measure
from loadtests.waypoint.memory import Weighed, weigh
from loadtests.waypoint.protection import GUARDED, TOKENS, Issuer
from loadtests.waypoint.routes import GRPC_PORT
from loadtests.waypoint.site import GRPC_BACKEND, HTTP2_BACKEND, HTTP_BACKEND, Site
from mesh.lab.private import enter_private_namespace

NAMES = ("direct", "mycelia", "envoy")
ISSUER = Issuer()
LOADS = (
    Load("h1-64", 80, 64),
    Load("h1-1", 80, 1),
    Load("h2-8x16", 80, 8, 16, is_http2=True),
    Load("grpc-8x16", GRPC_PORT, 8, 16, is_http2=True, is_grpc=True),
    Load("h1-64-100-routes", 8100, 64),
    Load("h1-64-1000-routes", 8101, 64),
    Load("h1-64-100-policies", 80, 64, service=GUARDED),
    Load("h1-64-token", 80, 64, service=TOKENS, headers=(f"authorization: Bearer {ISSUER.token}",)),
)


@dataclass(frozen=True, slots=True)
class Target:
    """`other` names what the figure is divided by: another contestant, or another load of Mycelia's."""

    load: str
    figure: str
    limit: float
    is_minimum: bool
    other: str = "envoy"

    def __str__(self) -> str:
        return f"{'>=' if self.is_minimum else '<='} {self.limit:g}"


TARGETS = (
    Target("h1-64", "rate", 1.2, is_minimum=True),
    Target("h1-1", "p50", 1.3, is_minimum=False),
    Target("h2-8x16", "rate", 1.0, is_minimum=True),
    Target("grpc-8x16", "rate", 1.0, is_minimum=True),
    Target("h1-64-100-routes", "rate", 0.85, is_minimum=True, other="h1-64"),
    Target("h1-64-1000-routes", "rate", 0.70, is_minimum=True, other="h1-64"),
    Target("h1-64-100-policies", "rate", 0.85, is_minimum=True, other="h1-64"),
)
FIGURES: dict[str, Callable[[Measured], float]] = {
    "rate": lambda found: found.rate,
    "p50": lambda found: found.p50_us,
    "p99": lambda found: found.p99_us,
    "cpu": lambda found: found.cpu_us,
    "failed": lambda found: float(found.failed),
}
UNITS = {"rate": "requests/s", "p50": "p50 us", "p99": "p99 us", "cpu": "CPU us/request", "failed": "failed"}


class Outcome:
    """Every round of every load, by contestant."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
        self.weighed: Weighed | None = None

    def median(self, load: str, name: str, figure: str) -> float | None:
        rounds = self.rounds[load].get(name)
        return statistics.median(FIGURES[figure](each) for each in rounds) if rounds else None

    def ratio(self, target: Target) -> float | None:
        ours = self.median(target.load, "mycelia", target.figure)
        if target.other in NAMES:
            theirs = self.median(target.load, target.other, target.figure)
        else:
            theirs = self.median(target.other, "mycelia", target.figure)
        return ours / theirs if ours is not None and theirs else None

    def verdicts(self) -> list[tuple[Target, float, bool]]:
        found = []
        for target in TARGETS:
            ratio = self.ratio(target)
            if ratio is not None:
                holds = ratio >= target.limit if target.is_minimum else ratio <= target.limit
                found.append((target, ratio, holds))
        return found


@asynccontextmanager
async def envoys(
    place: Site, credentials: certificates.Credentials, directory: Path, binary: Path
) -> AsyncIterator[tuple[int, ...]]:
    """Three Envoys, one thread each. The client side has a listener for each service port."""
    prefix = "spiffe://cluster.local/"
    inbound = template.inbound(
        listen=(place.server_ip, HBONE_PORT),
        target=(place.server_ip, HTTP_BACKEND),
        leaf=credentials.server,
        roots=credentials.roots_path,
        trusted_prefix=prefix,
        others=((place.server_ip, GRPC_BACKEND),),
    )
    outbound = template.outbound(
        listen=("127.0.0.1", CAPTURE_PORT),
        peer=(place.waypoint_ip, HBONE_PORT),
        authority="%DOWNSTREAM_LOCAL_ADDRESS%",
        leaf=credentials.client,
        roots=credentials.roots_path,
        peer_id=credentials.waypoint.spiffe_id,
        is_original_destination=True,
    )
    middle = envoy.waypoint(place, credentials)
    async with AsyncExitStack() as stack:
        pids: list[int] = []
        for name, config, namespace, port in (
            ("in", inbound, place.server, HBONE_PORT),
            ("waypoint", middle, place.waypoint, HBONE_PORT),
            ("out", outbound, place.client, CAPTURE_PORT),
        ):
            path = directory / f"envoy-{name}.json"
            path.write_text(json.dumps(config, indent=1))
            command = [str(binary), "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
            command += ["--log-level", "warning", "--base-id", str(len(pids) + 10)]
            log = directory / f"envoy-{name}.log"
            process = await stack.enter_async_context(program(inside(namespace, command), log, listens(port)))
            pids.append(process.pid)
        yield tuple(pids)


def _backend(load: Load) -> int:
    if load.is_grpc:
        return GRPC_BACKEND
    return HTTP2_BACKEND if load.is_http2 else HTTP_BACKEND


async def run(options: argparse.Namespace, directory: Path, console: Console) -> Outcome:
    outcome = Outcome()
    names = [name for name in options.contestants.split(",") if name]
    loads = [load for load in LOADS if not options.loads or load.name in options.loads.split(",")]
    credentials = certificates.make(directory)
    sites = {name: Site(name, number) for number, name in enumerate(names, 1)}
    async with AsyncExitStack() as stack:
        pids: dict[str, tuple[int, ...]] = {}
        for name, place in sites.items():
            await trio.to_thread.run_sync(partial(site.build, place, is_redirected=name != "direct"))
            await stack.enter_async_context(backends(place, directory))
            pids[name] = ()
            if name == "mycelia":
                group = mycelia.running(place, credentials, directory, ISSUER, codec=options.codec)
                pids[name] = await stack.enter_async_context(group)
            elif name == "envoy":
                group = envoys(place, credentials, directory, envoy_binary())
                pids[name] = await stack.enter_async_context(group)
        for load in loads:
            for number in range(options.rounds):
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    if load.is_ours and name != "mycelia":
                        continue
                    place = sites[name]
                    host, port = (
                        (place.vip_of(load.service), load.port)
                        if name != "direct"
                        else (place.server_ip, _backend(load))
                    )
                    with console.status(f"{load.name}, {name}, round {number + 1}"):
                        found = await measure(
                            load,
                            place,
                            host,
                            port,
                            pids[name],
                            duration_s=options.duration,
                            directory=directory,
                        )
                    outcome.rounds[load.name][name].append(found)
        if "mycelia" in names and not options.no_memory:
            outcome.weighed = await weigh(sites["mycelia"], pids["mycelia"][-1], directory)
    return outcome


def rows(outcome: Outcome, names: Sequence[str]) -> list[list[str]]:
    found = []
    targets = {(each.load, each.figure): (each, ratio, holds) for each, ratio, holds in outcome.verdicts()}
    for load in outcome.rounds:
        for figure, unit in UNITS.items():
            medians = [outcome.median(load, name, figure) for name in names]
            if figure == "failed" and not any(medians):
                continue
            row = [load, unit, *("-" if each is None else f"{each:.0f}" for each in medians)]
            ours, theirs = outcome.median(load, "mycelia", figure), outcome.median(load, "envoy", figure)
            row.append(f"{ours / theirs:.2f}" if ours and theirs else "")
            target = targets.get((load, figure))
            if target is None:
                row += ["", ""]
            else:
                wanted = str(target[0]) if target[0].other == "envoy" else f"{target[0]} of {target[0].other}"
                row += [wanted, f"{'pass' if target[2] else 'FAIL'} ({target[1]:.2f})"]
            found.append(row)
    if outcome.weighed is not None:
        found += [["memory", *row] for row in outcome.weighed.rows(len(names))]
    return found


def main() -> int:
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(prog="python -m loadtests.waypoint", description=__doc__)
    parser.add_argument("--contestants", default=",".join(NAMES))
    parser.add_argument("--loads", default="", help=f"of {', '.join(load.name for load in LOADS)} (all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=2.0, metavar="S")
    parser.add_argument("--codec", default="lean", choices=("lean", "reference"))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--write-results", action="store_true", help=f"append a section to {RESULTS.name}")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        enter_private_namespace(sys.orig_argv)
        with tempfile.TemporaryDirectory(prefix="mycelia-bench-", dir="/run") as scratch:
            directory = options.keep_logs or Path(scratch)
            directory.mkdir(parents=True, exist_ok=True)
            outcome = trio.run(run, options, directory.resolve(), console)
    except KeyboardInterrupt:
        return 130
    except (*REASONS, GeneratorError, BaseExceptionGroup) as error:
        leaf = first_leaf(error)
        if isinstance(leaf, KeyboardInterrupt):
            return 130
        if not isinstance(leaf, (*REASONS, GeneratorError)):
            raise
        console.print(f"[red]{leaf}[/]")
        return 2
    report(outcome, options, console, arguments)
    return 1 if any(not holds for _, _, holds in outcome.verdicts()) else 0


def report(outcome: Outcome, options: argparse.Namespace, console: Console, arguments: Sequence[str]) -> None:
    names = [name for name in options.contestants.split(",") if name]
    heading = ["load", "figure", *names, "mycelia/envoy", "target", ""]
    table = Table(*heading)
    found = rows(outcome, names)
    for row in found:
        table.add_row(*row)
    console.print(table)
    if options.write_results:
        facts = machine("cubic (by route)", 1, envoy_binary() if "envoy" in names else None)
        lines = [f"\n## {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC: requests through a waypoint\n"]
        lines.append(f"Command: `{shlex.join(['python', '-m', 'loadtests.waypoint', *arguments])}`\n")
        lines += [f"- {key}: {value}" for key, value in facts.items()]
        lines += ["", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in found]
        with RESULTS.open("a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
