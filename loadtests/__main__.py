"""`python -m loadtests`: one load against any address where `python -m loadtests.server` answers."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests.runner import LoadError, Measurement, run_scenario
from loadtests.scenario import Kind, Scenario

PERCENTILES = (50, 90, 99, 99.9, 99.99, 100)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("kind", choices=[kind.value for kind in Kind])
    parser.add_argument("target", metavar="IP:PORT")
    parser.add_argument("--connections", type=int, default=1, metavar="N")
    parser.add_argument("--duration", type=float, default=5.0, metavar="S")
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S")
    parser.add_argument("--bytes", type=int, default=1, metavar="N", help="of a request and its answer")
    parser.add_argument("--rate", type=float, default=0.0, metavar="PER_S", help="open loop")
    parser.add_argument(
        "--seed", type=int, help="open loop: Poisson arrivals from this seed, else evenly spaced"
    )
    parser.add_argument("--engines", type=int, default=1, help="generator processes, with that load each")
    parser.add_argument("--pids", default="", help="processes whose CPU time to charge, comma separated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome with its histogram")
    return parser.parse_args()


def scenario_of(options: argparse.Namespace) -> Scenario:
    host, _, port = options.target.rpartition(":")
    return Scenario(
        kind=Kind(options.kind),
        host=host.strip("[]") or "127.0.0.1",
        port=int(port),
        connections=options.connections,
        duration_s=options.duration,
        warmup_s=options.warmup,
        request_bytes=options.bytes,
        rate_per_s=options.rate,
        seed=options.seed,
    )


def table(scenario: Scenario, measured: Measurement) -> Table:
    outcome = measured.outcome
    drawn = Table(title=f"{scenario.kind} x {scenario.connections}", title_justify="left", show_header=False)
    drawn.add_column()
    drawn.add_column(justify="right")
    if outcome.operations:
        drawn.add_row("operations/s", f"{outcome.operations_per_s:,.0f}")
    drawn.add_row("MB/s", f"{outcome.bytes_per_s / 1e6:,.1f}")
    if outcome.latency.total:
        for percent in PERCENTILES:
            drawn.add_row(f"p{percent:g} us", f"{outcome.latency.percentile(percent) / 1e3:,.0f}")
    if measured.cpu_s:
        cost = (
            f"{measured.cpu_us_per_operation:.1f} us/operation"
            if outcome.operations
            else f"{measured.cpu_s_per_gb:.2f} s/GB"
        )
        drawn.add_row("CPU", cost)
    if outcome.errors or outcome.unanswered:
        drawn.add_row("errors", f"{outcome.errors} {outcome.first_error}")
        drawn.add_row("unanswered", str(outcome.unanswered))
    return drawn


def main() -> int:
    console = Console()
    options = parse()
    try:
        scenario = scenario_of(options)
    except ValueError as error:
        console.print(f"[red]{error}[/]")
        return 2
    pids = [int(pid) for pid in options.pids.split(",") if pid]
    columns = (
        TextColumn(str(scenario.kind)),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("load", total=scenario.duration_s, now="")

        def show(operations: int, transferred: int) -> None:
            elapsed = max(0.0, (progress.tasks[task].elapsed or 0.0) - scenario.warmup_s)
            now = f"{operations:,}" if operations else f"{transferred / 1e6:,.0f} MB"
            progress.update(task, completed=min(elapsed, scenario.duration_s), now=now)

        async def run() -> Measurement:
            return await run_scenario(scenario, pids=pids, engines=options.engines, progress=show)

        try:
            measured = trio.run(run)
        except (LoadError, trio.TooSlowError) as error:
            console.print(f"[red]{error}[/]")
            return 1
        progress.update(task, completed=scenario.duration_s)
    console.print(table(scenario, measured))
    if options.json:
        options.json.write_text(json.dumps(measured.outcome.to_json()) + "\n")
    return 1 if measured.outcome.errors else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
