"""The waypoint's HTTP metrics: the sum over its workers, with Istio's names (waypoint-facts 12)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from proto.mycelia import worker_pb2 as pb
from telemetry.metrics import Description, Histogram, Kind, Labels
from waypoint.state.http_labels import BOUNDS, HTTP_LABEL_NAMES, MESSAGE_LABEL_NAMES

REQUESTS: Final = Description(
    "istio_requests", Kind.COUNTER, "The total number of requests that were dealt with", HTTP_LABEL_NAMES
)


def _histogram(name: str, text: str, unit: str = "") -> Description:
    return Description(name, Kind.HISTOGRAM, text, HTTP_LABEL_NAMES, unit)


DURATION: Final = _histogram(
    "istio_request_duration_milliseconds", "From a request's first octet to its answer's last"
)
REQUEST_BYTES: Final = _histogram("istio_request_bytes", "Size of requests, headers included")
RESPONSE_BYTES: Final = _histogram("istio_response_bytes", "Size of responses, headers included")

REQUEST_MESSAGES: Final = Description(
    "istio_request_messages", Kind.COUNTER, "gRPC messages from clients", MESSAGE_LABEL_NAMES
)
RESPONSE_MESSAGES: Final = Description(
    "istio_response_messages", Kind.COUNTER, "gRPC messages to clients", MESSAGE_LABEL_NAMES
)

EXCHANGES_DROPPED: Final = Description(
    "mycelia_access_log_records_dropped",
    Kind.COUNTER,
    "Access log records lost because a worker's queue was full",
)

_COUNTS: Final = len(BOUNDS) + 1


class _Total:
    """The numbers of one label set."""

    __slots__ = ("duration", "request_bytes", "requests", "response_bytes")

    def __init__(self) -> None:
        self.requests = 0
        self.duration = Histogram(BOUNDS)
        self.request_bytes = Histogram(BOUNDS)
        self.response_bytes = Histogram(BOUNDS)

    def add(self, series: pb.Stats.HttpSeries) -> None:
        self.requests += series.requests
        self.duration.add(series.duration_ms.counts, series.duration_ms.sum)
        self.request_bytes.add(series.request_bytes.counts, series.request_bytes.sum)
        self.response_bytes.add(series.response_bytes.counts, series.response_bytes.sum)


class HttpTotals:
    """A worker's last report is kept; when it goes away its numbers stay, so that no total goes backwards."""

    def __init__(self) -> None:
        self._current: dict[int, list[pb.Stats]] = {}
        self._gone: dict[Labels, _Total] = {}
        self._messages_gone: dict[Labels, tuple[int, int]] = {}

    def take(self, index: int, parts: list[pb.Stats]) -> None:
        """A worker's complete report replaces its former one."""
        self._current[index] = parts

    def on_lost(self, index: int) -> None:
        lost = self._current.pop(index, [])
        self._add(self._gone, lost)
        _add_messages(self._messages_gone, lost)

    def families(self) -> Iterator[tuple[Description, Mapping[Labels, int | float | Histogram]]]:
        totals: dict[Labels, _Total] = {}
        for labels, gone in self._gone.items():
            totals[labels] = _copied(gone)
        for parts in self._current.values():
            self._add(totals, parts)
        yield REQUESTS, {labels: total.requests for labels, total in totals.items()}
        yield DURATION, {labels: total.duration for labels, total in totals.items()}
        yield REQUEST_BYTES, {labels: total.request_bytes for labels, total in totals.items()}
        yield RESPONSE_BYTES, {labels: total.response_bytes for labels, total in totals.items()}
        messages = dict(self._messages_gone)
        for parts in self._current.values():
            _add_messages(messages, parts)
        yield REQUEST_MESSAGES, {labels: counts[0] for labels, counts in messages.items()}
        yield RESPONSE_MESSAGES, {labels: counts[1] for labels, counts in messages.items()}

    @staticmethod
    def _add(totals: dict[Labels, _Total], parts: list[pb.Stats]) -> None:
        for stats in parts:
            for series in stats.http:
                labels = tuple(series.labels)
                if len(labels) == len(HTTP_LABEL_NAMES) and len(series.duration_ms.counts) == _COUNTS:
                    totals.setdefault(labels, _Total()).add(series)


def _add_messages(totals: dict[Labels, tuple[int, int]], parts: list[pb.Stats]) -> None:
    for stats in parts:
        for each in stats.messages:
            labels = tuple(each.labels)
            if len(labels) == len(MESSAGE_LABEL_NAMES):
                requests, responses = totals.get(labels, (0, 0))
                totals[labels] = (requests + each.requests, responses + each.responses)


def _copied(total: _Total) -> _Total:
    copy = _Total()
    copy.requests = total.requests
    for name in ("duration", "request_bytes", "response_bytes"):
        source: Histogram = getattr(total, name)
        getattr(copy, name).add(source.counts, source.sum)
    return copy
