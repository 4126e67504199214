"""Counts connections that are no HTTP: at their beginning, at each scrape, at their end (waypoint-facts 12).

Labels are found once, when the relay begins; a Telemetry object that changes later holds for connections that
come after it. Series are bounded by `TrafficTable`; what is open is bounded by the proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dataplane.state.model import Workload
from dataplane.worker.counters import ALL, CLOSED, OPENED, RECEIVED, SENT, TrafficSeries, TrafficTable
from waypoint.state.http_labels import tcp_labels
from waypoint.state.metric_overrides import CONNECTION_METRICS, MetricPlan
from waypoint.worker.connection_facts import ConnectionFacts
from waypoint.worker.plan import Source, TcpOutcome
from waypoint.worker.tcp_exchange import TcpExchange

_BITS: Final = tuple(zip(CONNECTION_METRICS, (OPENED, CLOSED, SENT, RECEIVED), strict=True))


class _Open:
    """A connection that is counted: where each metric goes, and what of its octets is counted already."""

    __slots__ = ("received_bytes", "sent_bytes", "series")

    def __init__(self, series: Sequence[tuple[TrafficSeries, int]]) -> None:
        self.series = series
        self.sent_bytes = 0
        self.received_bytes = 0

    def begin(self) -> None:
        for series, bits in self.series:
            if bits & OPENED:
                series.opened += 1

    def count(self, sent_bytes: int, received_bytes: int) -> None:
        """`sent_bytes` and `received_bytes` are all so far."""
        for series, bits in self.series:
            if bits & SENT:
                series.sent_bytes += sent_bytes - self.sent_bytes
            if bits & RECEIVED:
                series.received_bytes += received_bytes - self.received_bytes
        self.sent_bytes, self.received_bytes = sent_bytes, received_bytes

    def end(self, flag: str) -> None:
        for series, bits in self.series:
            if bits & CLOSED:
                series.ended(flag)


class ConnectionCounts:
    """`plan_of` says how the connections of a service are counted, `source_of` whose a connection is."""

    def __init__(
        self,
        table: TrafficTable,
        plan_of: Callable[[TcpOutcome, Source], MetricPlan | None],
        source_of: Callable[[Source], Workload | None],
    ) -> None:
        self._table = table
        self._plan_of = plan_of
        self._source_of = source_of
        self._open: dict[TcpExchange, _Open] = {}

    def begin(self, exchange: TcpExchange, source: Source) -> None:
        """The relay begins: outcome says where it goes."""
        found = self._open[exchange] = self._find(exchange.outcome, source)
        found.begin()

    def refresh(self) -> None:
        """What open connections have carried since the last time."""
        for exchange, found in self._open.items():
            found.count(exchange.sent_bytes, exchange.received_bytes)

    def end(self, exchange: TcpExchange, source: Source) -> None:
        """It is over; one that never was a relay counts as opened too, as Istio's do."""
        outcome = exchange.outcome
        found = self._open.pop(exchange, None)
        if found is None:
            found = self._find(outcome, source)
            found.begin()
        found.count(outcome.sent_bytes, outcome.received_bytes)
        found.end(outcome.flag)

    def _find(self, outcome: TcpOutcome, source: Source) -> _Open:
        labels = tcp_labels(self._source_of(source), source.identity, outcome.service, outcome.workload)
        plan = self._plan_of(outcome, source)
        if plan is None:
            return _Open(((self._table.series(labels), ALL),))
        facts, found = ConnectionFacts(source, outcome), []
        for group in plan.connections:
            bits = sum(bit for metric, bit in _BITS if group.metrics & metric)
            found.append((self._table.series(group.labels(labels, facts), bits), bits))
        return _Open(found)
