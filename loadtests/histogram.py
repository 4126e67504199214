"""Latencies in logarithmic buckets: what the generator measures and what the tables quote.

Like HDR histograms: values below 2**PRECISION_BITS nanoseconds are exact; above, each power of two is cut
into 2**(PRECISION_BITS - 1) buckets, so that a quoted value is never more than 1/2**(PRECISION_BITS - 1)
(0.8 %) off. Memory is bounded by the range (one minute by default): larger values land in the last bucket
and are counted in `clipped`. Pure; values are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

PRECISION_BITS = 8
HALF = 1 << (PRECISION_BITS - 1)
HIGHEST_NS = 60_000_000_000


def bucket_of(value_ns: int) -> int:
    """Index of the bucket that holds `value_ns`; grows with the value."""
    shift = value_ns.bit_length() - PRECISION_BITS
    if shift <= 0:
        return value_ns
    return shift * HALF + (value_ns >> shift)


def middle_of(bucket: int) -> int:
    """A value that lies in the bucket: its middle, rounded down."""
    if bucket < 2 * HALF:
        return bucket
    shift = bucket // HALF - 1
    low = (bucket - shift * HALF) << shift
    return low + ((1 << shift) >> 1)


@dataclass(slots=True)
class LatencyHistogram:
    """Counts of latencies; `record` and `percentile` are its life."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    sum_ns: int = 0
    lowest_ns: int = 0
    highest_ns: int = 0
    clipped: int = 0

    def record_all(self, values_ns: Iterable[int]) -> None:
        for value in values_ns:
            self.record(value)

    def record(self, value_ns: int) -> None:
        """Counts one latency; negative ones (a clock that stepped) count as zero."""
        value = max(value_ns, 0)
        if value > HIGHEST_NS:
            self.clipped += 1
            value = HIGHEST_NS
        bucket = bucket_of(value)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.lowest_ns = value if self.total == 0 else min(self.lowest_ns, value)
        self.highest_ns = max(self.highest_ns, value)
        self.total += 1
        self.sum_ns += value

    def merge(self, other: LatencyHistogram) -> None:
        """Adds the counts of `other` to these."""
        if other.total == 0:
            return
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.lowest_ns = other.lowest_ns if self.total == 0 else min(self.lowest_ns, other.lowest_ns)
        self.highest_ns = max(self.highest_ns, other.highest_ns)
        self.total += other.total
        self.sum_ns += other.sum_ns
        self.clipped += other.clipped

    def percentile(self, percent: float) -> int:
        """The latency that `percent` of the values do not exceed; 0 of an empty histogram."""
        wanted = max(1, -(-self.total * percent // 100))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(max(middle_of(bucket), self.lowest_ns), self.highest_ns)
        return 0

    @property
    def mean_ns(self) -> float:
        return self.sum_ns / self.total if self.total else 0.0

    def to_json(self) -> dict[str, object]:
        return {
            "counts": {str(bucket): count for bucket, count in sorted(self.counts.items())},
            "total": self.total,
            "sum_ns": self.sum_ns,
            "lowest_ns": self.lowest_ns,
            "highest_ns": self.highest_ns,
            "clipped": self.clipped,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Self:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        counts = document.get("counts")
        if not isinstance(counts, dict):
            raise ValueError("a histogram needs `counts`")  # noqa: TRY004 - a wrong document is a wrong value
        return cls(
            counts={int(bucket): int(count) for bucket, count in counts.items()},
            **{
                name: _integer(document, name)
                for name in ("total", "sum_ns", "lowest_ns", "highest_ns", "clipped")
            },
        )


def _integer(document: Mapping[str, object], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int):
        raise ValueError(f"a histogram needs the integer `{name}`, found {value!r}")  # noqa: TRY004 - as above
    return value
