"""Results as a table for the terminal, as Markdown for RESULTS.md, as JSON. Pure but for rich's drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from loadtests.results import CPU_PER_GB, SUBJECT, TARGETS, Metric, Results, metrics_of

TUNNEL_LIMIT_BYTES = 40_000
IDLE_LIMIT_BYTES = 120_000_000
MISSING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, all text."""

    load: str
    figure: str
    values: tuple[str, ...]
    ratio: str
    target: str
    mark: str  # `pass`, `FAIL` or nothing where there is no target


def rows(results: Results, contestants: Sequence[str]) -> Iterator[Row]:
    for load in results.measurements | results.failures:
        for metric in metrics_of(load):
            yield _load_row(results, contestants, load, metric)
    yield from _memory_rows(results, contestants)
    if results.idle_ztunnel_bytes is not None:
        idle = results.idle_ztunnel_bytes
        values = tuple(f"{idle / 1e6:.1f}" if name == SUBJECT else MISSING for name in contestants)
        mark = "pass" if idle <= IDLE_LIMIT_BYTES else "FAIL"
        limit = f"<= {IDLE_LIMIT_BYTES / 1e6:.0f} MB"
        yield Row("idle ztunnel", "resident MB, control and worker", values, "", limit, mark)
    for name, leak in results.leaks.items():
        text = f"{leak.descriptors_before} -> {leak.descriptors_after}"
        values = tuple(text if name == other else MISSING for other in contestants)
        target = f"<= {leak.descriptors_before} + {leak.pooled}" if name == SUBJECT else ""
        mark = ("pass" if leak.is_clean else "FAIL") if name == SUBJECT else ""
        yield Row(f"{leak.cycles} x {leak.tunnels} open/close", "descriptors", values, "", target, mark)


def _load_row(results: Results, contestants: Sequence[str], load: str, metric: Metric) -> Row:
    values = []
    for name in contestants:
        value = results.median(load, name, metric)
        has_cost = not (metric.unit.startswith(("s/", "us/op")) and name == "direct")
        values.append(f"{value:.{metric.digits}f}" if value is not None and has_cost else MISSING)
    ratio = results.ratio(load, metric)
    target = next((one for one in TARGETS if one.load == load and one.metric is metric), None)
    mark = ""
    if target is not None and SUBJECT in contestants:
        mark = "pass" if ratio is not None and target.holds(ratio) else "FAIL"
    return Row(
        load=load,
        figure=f"{metric.name} {metric.unit}".strip(),
        values=tuple(values),
        ratio=f"{ratio:.2f}" if ratio is not None else "",
        target=str(target) if target is not None else "",
        mark=mark,
    )


def _memory_rows(results: Results, contestants: Sequence[str]) -> Iterator[Row]:
    numbers = sorted({number for memory in results.memory.values() for number in memory.resident_bytes})
    for number in numbers:
        values = tuple(
            f"{results.memory[name].resident_bytes[number] / 1e6:.1f}" if name in results.memory else MISSING
            for name in contestants
        )
        yield Row(f"{number} idle tunnels", "resident MB, both sides", values, "", "", "")
    if numbers:
        costs = {name: memory.per_tunnel_bytes() for name, memory in results.memory.items()}
        values = tuple(f"{costs[name] / 1e3:.1f}" if name in costs else MISSING for name in contestants)
        has_subject = SUBJECT in costs
        mark = ("pass" if costs[SUBJECT] <= TUNNEL_LIMIT_BYTES else "FAIL") if has_subject else ""
        limit = f"<= {TUNNEL_LIMIT_BYTES // 1000} KB" if has_subject else ""
        yield Row("per idle tunnel", "KB, one side", values, "", limit, mark)


def table(results: Results, contestants: Sequence[str]) -> Table:
    drawn = Table(title="Loads side by side: medians over rounds", title_justify="left")
    drawn.add_column("load", no_wrap=True)
    drawn.add_column("figure", no_wrap=True)
    for heading in (*contestants, "ratio", "target"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("")
    last = ""
    for row in rows(results, contestants):
        if last and row.load != last:
            drawn.add_section()
        style = {"pass": "green", "FAIL": "bold red"}.get(row.mark, "")
        mark = f"[{style}]{row.mark}[/]" if style else ""
        drawn.add_row(
            "" if row.load == last else row.load, row.figure, *row.values, row.ratio, row.target, mark
        )
        last = row.load
    return drawn


def markdown(results: Results, contestants: Sequence[str], *, title: str, command: str) -> str:
    """A section for RESULTS.md."""
    lines = [f"## {title}", "", f"Command: `{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in results.machine.items()]
    lines += ["", f"| load | figure | {' | '.join(contestants)} | ratio | target | |"]
    lines.append("|---|---|" + "---:|" * len(contestants) + "---:|---:|---|")
    for row in rows(results, contestants):
        cells = (row.load, row.figure, *row.values, row.ratio, row.target, row.mark)
        lines.append(f"| {' | '.join(cells)} |")
    for load, by_name in results.failures.items():
        lines += [f"- {load}, {name}: not carried: {reason}" for name, reason in by_name.items()]
    return "\n".join(lines) + "\n"


def document(results: Results) -> dict[str, object]:
    """Everything, for machines: each round with its histogram's summary."""
    loads = {
        load: {
            name: [
                {
                    "operations": one.outcome.operations,
                    "transferred_bytes": one.outcome.transferred_bytes,
                    "duration_s": one.outcome.duration_s,
                    "errors": one.outcome.errors,
                    "unanswered": one.outcome.unanswered,
                    "cpu_s": one.cpu_s,
                    "cpu_s_per_gb": CPU_PER_GB.extract(one),
                    "latency_us": {
                        str(percent): one.outcome.latency.percentile(percent) / 1e3
                        for percent in (50, 90, 99, 99.9, 100)
                    },
                }
                for one in rounds
            ]
            for name, rounds in by_name.items()
        }
        for load, by_name in results.measurements.items()
    }
    verdicts = [
        {
            "load": target.load,
            "metric": target.metric.name,
            "target": str(target),
            "ratio": ratio,
            "holds": holds,
        }
        for target, ratio, holds in results.verdicts()
    ]
    memory = {
        name: {"resident_bytes": dict(one.resident_bytes), "descriptors": dict(one.descriptors)}
        for name, one in results.memory.items()
    }
    return {
        "machine": results.machine,
        "loads": loads,
        "failures": results.failures,
        "memory": memory,
        "idle_ztunnel_bytes": results.idle_ztunnel_bytes,
        "verdicts": verdicts,
    }
