"""The worker's counters: plain ints by label tuple, absolute since the start, merged by the control process.

A connection looks its series up once and then only adds. Series are bounded: beyond MAX_SERIES a connection
counts in one series whose labels are all `unknown`, so that a flood of label values costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from dataplane.state.labels import LABEL_NAMES, UNKNOWN, with_flags
from proto.mycelia import worker_pb2 as pb

MAX_SERIES = 50_000
_SERIES_PER_PART = 500
OPENED, CLOSED, SENT, RECEIVED = 1, 2, 4, 8
ALL = OPENED | CLOSED | SENT | RECEIVED

Labels = tuple[str, ...]
_OVERFLOW: Labels = (UNKNOWN,) * (len(LABEL_NAMES) - 4) + ("",) * 4


class TrafficSeries:
    """One label tuple's counters (facts 11.2). Opened and bytes count on the series with flag `-`. `counted`
    are the bits of what anybody counts.
    """

    __slots__ = (
        *("_by_flag", "_table", "closed", "counted", "failed", "labels", "opened", "received_bytes"),
        "sent_bytes",
    )

    def __init__(self, labels: Labels, table: TrafficTable, counted: int) -> None:
        self.labels = labels
        self.counted = counted
        self.opened = 0
        self.closed = 0
        self.failed = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self._table = table
        self._by_flag: dict[str, TrafficSeries] = {}

    def ended(self, flag: str) -> None:
        """Count one finished connection under its final flag."""
        if flag == "-":
            self.closed += 1
            return
        series = self._by_flag.get(flag)
        if series is None:
            series = self._by_flag[flag] = self._table.series(with_flags(self.labels, flag), self.counted)
        series.closed += 1
        series.failed += 1


class TrafficTable:
    """All series of the worker."""

    def __init__(self) -> None:
        self._series: dict[Labels, TrafficSeries] = {}

    def series(self, labels: Labels, counted: int = ALL) -> TrafficSeries:
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= MAX_SERIES and labels != _OVERFLOW:
                return self.series(_OVERFLOW, counted)
            series = self._series[labels] = TrafficSeries(labels, self, counted)
        elif series.counted != counted:
            series.counted |= counted
        return series

    def __len__(self) -> int:
        return len(self._series)

    def parts(self, request_id: int, other: list[pb.Stats.Named]) -> Iterator[pb.ToControl]:
        """The answer to one StatsRequest, in parts of bounded size; the last has no `has_more`."""
        # A series that never counted belongs to a plan that only ever refused.
        used = [each for each in self._series.values() if each.opened or each.closed or each.counted != ALL]
        everything = iter(used)
        left = len(used)
        while True:
            stats = pb.Stats(id=request_id)
            for series in islice(everything, _SERIES_PER_PART):
                left -= 1
                stats.traffic.add(
                    labels=series.labels,
                    opened=series.opened,
                    closed=series.closed,
                    failed=series.failed,
                    sent_bytes=series.sent_bytes,
                    received_bytes=series.received_bytes,
                    omitted=ALL & ~series.counted,
                )
            stats.has_more = left > 0
            if not stats.has_more:
                stats.other.extend(other)
            yield pb.ToControl(stats=stats)
            if not stats.has_more:
                return
