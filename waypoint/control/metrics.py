"""The waypoint's HTTP metrics: the sum over its workers, with Istio's names (waypoint-facts 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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


_ALL: Final = 15  # bits: requests, duration, sizes of requests and of responses


class _Total:
    """The numbers of one label set; `counted` are the bits of those that anybody counted."""

    __slots__ = ("counted", "duration", "request_bytes", "requests", "response_bytes")

    def __init__(self) -> None:
        self.counted = 0
        self.requests = 0
        self.duration = Histogram(BOUNDS)
        self.request_bytes = Histogram(BOUNDS)
        self.response_bytes = Histogram(BOUNDS)

    def add(self, series: pb.Stats.HttpSeries) -> None:
        counted = _ALL & ~series.omitted
        self.counted |= counted
        if counted & 1:
            self.requests += series.requests
        for bit, own, other in (
            (2, self.duration, series.duration_ms),
            (4, self.request_bytes, series.request_bytes),
            (8, self.response_bytes, series.response_bytes),
        ):
            if counted & bit:
                own.add(other.counts, other.sum)


_Messages = tuple[int, int, int]  # requests, responses, bits of those that anybody counted
_Key = tuple[tuple[str, ...], Labels]  # names beyond Istio's, values of all


class HttpTotals:
    """A worker's last report is kept; when it goes away its numbers stay, so that no total goes backwards."""

    def __init__(self) -> None:
        self._current: dict[int, list[pb.Stats]] = {}
        self._gone: dict[_Key, _Total] = {}
        self._messages_gone: dict[Labels, _Messages] = {}

    def take(self, index: int, parts: list[pb.Stats]) -> None:
        """A worker's complete report replaces its former one."""
        self._current[index] = parts

    def on_lost(self, index: int) -> None:
        lost = self._current.pop(index, [])
        self._add(self._gone, lost)
        _add_messages(self._messages_gone, lost)

    def families(self) -> Iterator[tuple[Description, Mapping[Labels, int | float | Histogram]]]:
        totals: dict[_Key, _Total] = {}
        for key, gone in self._gone.items():
            totals[key] = _copied(gone)
        for parts in self._current.values():
            self._add(totals, parts)
        extra = tuple(sorted({name for names, _ in totals for name in names}))
        read: tuple[tuple[Description, int, Callable[[_Total], int | Histogram]], ...] = (
            (REQUESTS, 1, lambda total: total.requests),
            (DURATION, 2, lambda total: total.duration),
            (REQUEST_BYTES, 4, lambda total: total.request_bytes),
            (RESPONSE_BYTES, 8, lambda total: total.response_bytes),
        )
        for description, bit, value in read:
            yield (
                _with_labels(description, extra),
                {_spread(key, extra): value(total) for key, total in totals.items() if total.counted & bit},
            )
        messages = dict(self._messages_gone)
        for parts in self._current.values():
            _add_messages(messages, parts)
        yield REQUEST_MESSAGES, {labels: each[0] for labels, each in messages.items() if each[2] & 1}
        yield RESPONSE_MESSAGES, {labels: each[1] for labels, each in messages.items() if each[2] & 2}

    @staticmethod
    def _add(totals: dict[_Key, _Total], parts: list[pb.Stats]) -> None:
        for stats in parts:
            for series in stats.http:
                names, labels = tuple(series.extra_names), tuple(series.labels)
                is_whole = len(labels) == len(HTTP_LABEL_NAMES) + len(names)
                if is_whole and len(series.duration_ms.counts) == _COUNTS:
                    totals.setdefault((names, labels), _Total()).add(series)


def _with_labels(description: Description, extra: tuple[str, ...]) -> Description:
    if not extra:
        return description
    return replace(description, labels=(*HTTP_LABEL_NAMES, *extra), optional=frozenset(extra))


def _spread(key: _Key, extra: tuple[str, ...]) -> Labels:
    """With an empty value for each further name that it does not have, which Prometheus takes for none."""
    names, labels = key
    if not extra:
        return labels
    own = dict(zip(names, labels[len(HTTP_LABEL_NAMES) :], strict=True))
    return (*labels[: len(HTTP_LABEL_NAMES)], *(own.get(name, "") for name in extra))


def _add_messages(totals: dict[Labels, _Messages], parts: list[pb.Stats]) -> None:
    for stats in parts:
        for each in stats.messages:
            labels = tuple(each.labels)
            if len(labels) == len(MESSAGE_LABEL_NAMES):
                requests, responses, counted = totals.get(labels, (0, 0, 0))
                counted |= 3 & ~each.omitted
                totals[labels] = (requests + each.requests, responses + each.responses, counted)


def _copied(total: _Total) -> _Total:
    copy = _Total()
    copy.requests, copy.counted = total.requests, total.counted
    for name in ("duration", "request_bytes", "response_bytes"):
        source: Histogram = getattr(total, name)
        getattr(copy, name).add(source.counts, source.sum)
    return copy
