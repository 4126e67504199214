"""What a benchmark found: figures by load and contestant, their medians, and the issue's targets. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loadtests.runner import Measurement

SUBJECT, REFERENCE = "mycelia", "envoy"
Extract = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a measurement. `unit` follows the number in tables."""

    name: str
    unit: str
    extract: Extract
    digits: int = 1


THROUGHPUT = Metric("throughput", "MB/s", lambda m: m.outcome.bytes_per_s / 1e6, 0)
RATE = Metric("rate", "/s", lambda m: m.outcome.operations_per_s, 0)
P50 = Metric("p50", "us", lambda m: m.outcome.latency.percentile(50) / 1e3, 0)
P99 = Metric("p99", "us", lambda m: m.outcome.latency.percentile(99) / 1e3, 0)
P999 = Metric("p99.9", "us", lambda m: m.outcome.latency.percentile(99.9) / 1e3, 0)
CPU_PER_GB = Metric("CPU", "s/GB", lambda m: m.cpu_s_per_gb, 2)
CPU_PER_OPERATION = Metric("CPU", "us/op", lambda m: m.cpu_us_per_operation, 0)
ERRORS = Metric("errors", "", lambda m: float(m.outcome.errors + m.outcome.unanswered), 0)


@dataclass(frozen=True, slots=True)
class Target:
    """Mycelia's figure divided by Envoy's must be at least (or at most) `limit`."""

    load: str
    metric: Metric
    limit: float
    is_minimum: bool

    def holds(self, ratio: float) -> bool:
        return ratio >= self.limit if self.is_minimum else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.is_minimum else '<='} {self.limit:g}"


TARGETS = (
    Target("bulk-down", THROUGHPUT, 0.8, is_minimum=True),
    Target("bulk-up", THROUGHPUT, 0.8, is_minimum=True),
    Target("bulk-down", CPU_PER_GB, 1.3, is_minimum=False),
    Target("bulk-up", CPU_PER_GB, 1.3, is_minimum=False),
    Target("echo-1", P50, 1.6, is_minimum=False),
    Target("echo-64", RATE, 1.0, is_minimum=True),
    Target("connect-64", RATE, 1.0, is_minimum=True),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of one contestant's two sides together, by number of open idle tunnels."""

    resident_bytes: Mapping[int, int]
    descriptors: Mapping[int, int]

    def per_tunnel_bytes(self) -> float:
        """Of one side (a tunnel has two), between the fewest and the most tunnels above none."""
        numbers = sorted(number for number in self.resident_bytes if number > 0)
        if len(numbers) < 2:
            return 0.0
        few, many = numbers[0], numbers[-1]
        return (self.resident_bytes[many] - self.resident_bytes[few]) / (many - few) / 2


TUNNELS_PER_CONNECTION = 100


@dataclass(frozen=True, slots=True)
class LeakReport:
    """Descriptors and resident bytes after the first cycle and after the last."""

    cycles: int
    tunnels: int
    descriptors_before: int
    descriptors_after: int
    resident_before: int
    resident_after: int

    @property
    def pooled(self) -> int:
        """How many more descriptors idle connections in the pools may be: a burst of new tunnels dials a few
        more or less HBONE connections each time (100 tunnels on each, a descriptor on either side).
        """
        return 2 * -(-self.tunnels // TUNNELS_PER_CONNECTION)

    @property
    def is_clean(self) -> bool:
        return self.descriptors_after <= self.descriptors_before + self.pooled


@dataclass(slots=True)
class Results:
    """All rounds of all loads. Medians are taken over rounds, contestant by contestant."""

    machine: dict[str, str]
    measurements: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    leaks: dict[str, LeakReport] = field(default_factory=dict)
    idle_ztunnel_bytes: int | None = None

    def add(self, load: str, contestant: str, measurement: Measurement) -> None:
        self.measurements.setdefault(load, {}).setdefault(contestant, []).append(measurement)

    def add_failure(self, load: str, contestant: str, reason: str) -> None:
        self.failures.setdefault(load, {})[contestant] = reason

    def median(self, load: str, contestant: str, metric: Metric) -> float | None:
        rounds = self.measurements.get(load, {}).get(contestant, [])
        return statistics.median(metric.extract(one) for one in rounds) if rounds else None

    def spread(self, load: str, contestant: str, metric: Metric) -> tuple[float, float] | None:
        """Lowest and highest of the rounds."""
        values = [metric.extract(one) for one in self.measurements.get(load, {}).get(contestant, [])]
        return (min(values), max(values)) if values else None

    def ratio(self, load: str, metric: Metric) -> float | None:
        subject, reference = self.median(load, SUBJECT, metric), self.median(load, REFERENCE, metric)
        return None if subject is None or not reference else subject / reference

    def verdicts(self) -> list[tuple[Target, float | None, bool]]:
        """Every target with its ratio; not measured is not reached."""
        ratios = [(target, self.ratio(target.load, target.metric)) for target in TARGETS]
        return [(target, ratio, ratio is not None and target.holds(ratio)) for target, ratio in ratios]


def metrics_of(load: str) -> Sequence[Metric]:
    """Which figures say something about a load, by the first word of its name."""
    match load.split("-", maxsplit=1)[0]:
        case "bulk":
            return (THROUGHPUT, CPU_PER_GB)
        case "rate":
            return (P50, P99, P999, CPU_PER_OPERATION, ERRORS)
        case "connect":
            return (RATE, P50, P99, CPU_PER_OPERATION, ERRORS)
        case _:
            return (RATE, P50, P99, CPU_PER_OPERATION)
