"""From rounds to medians, ratios and marks."""

from __future__ import annotations

import io

from rich.console import Console

from loadtests import report
from loadtests.results import RATE, THROUGHPUT, LeakReport, Memory, Results
from loadtests.runner import Measurement
from loadtests.scenario import Outcome


def bulk(megabytes_per_s: float, cpu_s: float = 1.0) -> Measurement:
    return Measurement(Outcome(transferred_bytes=int(megabytes_per_s * 1e6), duration_s=1.0), cpu_s)


def echo(per_s: int, latency_ns: int) -> Measurement:
    outcome = Outcome(operations=per_s, duration_s=1.0)
    outcome.latency.record(latency_ns)
    return Measurement(outcome, 0.5)


def results() -> Results:
    made = Results({"CPU": "test"})
    for value in (100.0, 900.0, 500.0):
        made.add("bulk-down", "mycelia", bulk(value))
        made.add("bulk-down", "envoy", bulk(1000.0))
    made.add("echo-64", "mycelia", echo(2000, 50_000))
    made.add("echo-64", "envoy", echo(1000, 60_000))
    return made


def test_the_median_of_the_rounds_decides() -> None:
    assert results().median("bulk-down", "mycelia", THROUGHPUT) == 500
    assert results().ratio("bulk-down", THROUGHPUT) == 0.5
    assert results().ratio("echo-64", RATE) == 2
    assert results().spread("bulk-down", "mycelia", THROUGHPUT) == (100, 900)


def test_targets_are_judged_and_what_was_not_measured_is_not_reached() -> None:
    verdicts = {(target.load, target.metric.name): holds for target, _, holds in results().verdicts()}
    assert verdicts["bulk-down", "throughput"] is False
    assert verdicts["echo-64", "rate"] is True
    assert verdicts["connect-64", "rate"] is False


def test_the_table_marks_and_shows_every_load() -> None:
    made = results()
    made.memory["mycelia"] = Memory({0: 50_000_000, 1: 50_000_000, 1001: 110_000_000}, {})
    made.leaks["mycelia"] = LeakReport(2, 1000, 40, 61, 1, 1)
    made.add_failure("connect-64", "mycelia", "refused")
    rows = list(report.rows(made, ["mycelia", "envoy"]))
    marks = {(row.load, row.figure): row.mark for row in rows}
    assert marks["bulk-down", "throughput MB/s"] == "FAIL"
    assert marks["echo-64", "rate /s"] == "pass"
    assert marks["connect-64", "rate /s"] == "FAIL"
    assert marks["per idle tunnel", "KB, one side"] == "pass"
    assert marks["2 x 1000 open/close", "descriptors"] == "FAIL"
    drawn = io.StringIO()
    Console(file=drawn, width=160).print(report.table(made, ["mycelia", "envoy"]))
    assert "bulk-down" in drawn.getvalue()


def test_markdown_names_machine_command_and_failures() -> None:
    made = results()
    made.add_failure("bulk-up", "envoy", "saturated")
    text = report.markdown(made, ["mycelia", "envoy"], title="today", command="python -m loadtests.bench")
    assert "- CPU: test" in text
    assert "`python -m loadtests.bench`" in text
    assert "bulk-up, envoy: not carried: saturated" in text


def test_the_document_holds_every_round() -> None:
    document = report.document(results())
    loads = document["loads"]
    assert isinstance(loads, dict)
    assert len(loads["bulk-down"]["mycelia"]) == 3


def test_idle_pooled_connections_are_no_leak() -> None:
    assert LeakReport(100, 1000, 40, 60, 1, 1).is_clean
    assert not LeakReport(100, 1000, 40, 61, 1, 1).is_clean
