"""Counts and records what the proxy core has dealt with (waypoint-facts 12, 13).

Plain ints by label set, absolute since the worker's start; the control process adds them up at a scrape. An
exchange costs one look-up by what its labels depend on, three bisections and a few additions. Labels come
from certificates and the address book, never from a request's headers. Bounds: `_MAX_SERIES` label sets,
beyond which requests are counted together; `_MAX_KEYS` remembered look-ups, then they are made anew.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import islice
from typing import Final

from dataplane.state.labels import NOBODY, UNKNOWN, guess_source, labels_of
from dataplane.state.model import Service, Workload, socket_text
from dataplane.worker.counters import TrafficTable
from dataplane.worker.records import RecordQueue, joined
from proto.mycelia import worker_pb2 as pb
from transport.http2.events import Header
from transport.reactor import Reactor, Timer
from waypoint.state.flags import denied_by_policy
from waypoint.state.http_labels import (
    BOUNDS,
    HTTP_LABEL_NAMES,
    MESSAGE_LABEL_NAMES,
    HttpFacts,
    http_labels,
    message_labels,
)
from waypoint.state.metric_overrides import MESSAGE_METRICS, MetricPlan
from waypoint.state.store import WaypointState
from waypoint.state.telemetry import Logs
from waypoint.worker.connection_counts import ConnectionCounts
from waypoint.worker.exchange import Exchange
from waypoint.worker.exchange_facts import ExchangeFacts
from waypoint.worker.grpc_messages import CallMessages
from waypoint.worker.plan import Outcome, Source, TcpOutcome
from waypoint.worker.span_tags import span_message
from waypoint.worker.tcp_exchange import TcpExchange

_MAX_SERIES: Final = 20_000
_MAX_KEYS: Final = 50_000
_MAX_HEADER_BYTES: Final = 16 * 1024  # of one header in a record
_PER_PART: Final = 200
_OVERFLOW: Final = (UNKNOWN,) * len(HTTP_LABEL_NAMES)
_MESSAGES_OVERFLOW: Final = (UNKNOWN,) * len(MESSAGE_LABEL_NAMES)
_FLUSH_S: Final = 5.0  # of the messages of calls that are still open


class HttpSeries:
    """Requests of one label set."""

    __slots__ = (
        "durations",
        "extra_names",
        "labels",
        "omitted",
        "request_sizes",
        "requests",
        "response_sizes",
        "sums",
    )

    def __init__(self, labels: tuple[str, ...], extra_names: tuple[str, ...] = (), omitted: int = 0) -> None:
        self.labels = labels
        self.extra_names = extra_names
        self.omitted = omitted
        self.requests = 0
        self.durations = [0] * (len(BOUNDS) + 1)
        self.request_sizes = [0] * (len(BOUNDS) + 1)
        self.response_sizes = [0] * (len(BOUNDS) + 1)
        self.sums = [0.0, 0.0, 0.0]

    def count(self, duration_ms: float, request_bytes: int, response_bytes: int) -> None:
        self.requests += 1
        self.durations[bisect_left(BOUNDS, duration_ms)] += 1
        self.request_sizes[bisect_left(BOUNDS, request_bytes)] += 1
        self.response_sizes[bisect_left(BOUNDS, response_bytes)] += 1
        sums = self.sums
        sums[0] += duration_ms
        sums[1] += request_bytes
        sums[2] += response_bytes

    def message(self) -> pb.Stats.HttpSeries:
        def histogram(counts: list[int], total: float) -> pb.Stats.Histogram:
            return pb.Stats.Histogram(counts=counts, sum=total)

        return pb.Stats.HttpSeries(
            labels=self.labels,
            requests=self.requests,
            duration_ms=histogram(self.durations, self.sums[0]),
            request_bytes=histogram(self.request_sizes, self.sums[1]),
            response_bytes=histogram(self.response_sizes, self.sums[2]),
            extra_names=self.extra_names,
            omitted=self.omitted,
        )


class Telemetry:
    """Implements Observer. `records` takes the access log's records; where it `is_on`, requests are logged
    unless a Telemetry object says otherwise.
    """

    def __init__(self, state: WaypointState, records: RecordQueue, reactor: Reactor) -> None:
        self._state = state
        self._records = records
        self._calls: dict[Exchange, CallMessages] = {}  # open ones
        self._messages: dict[tuple[str, ...], list[int]] = {}  # labels -> requests, responses
        self._changed_messages: dict[tuple[str, ...], list[int]] = {}  # requests, responses, counted bits
        self._messages_by_key: dict[tuple[object, ...], list[int]] = {}
        self._reactor = reactor
        self._flush_timer: Timer | None = None
        self._series: dict[tuple[str, ...], HttpSeries] = {}
        self._changed_series: dict[tuple[object, ...], HttpSeries] = {}  # where overrides change something
        self._by_key: dict[tuple[object, ...], HttpSeries] = {}
        self._generation = state.generation
        self.tcp = TrafficTable()
        self.connections = ConnectionCounts(
            self.tcp, lambda outcome, source: self._plan_of(outcome.service, source), self._source_of
        )
        self.rejected = 0

    # Observer

    def on_call(self, exchange: Exchange) -> CallMessages:
        messages = self._calls[exchange] = CallMessages()
        if self._flush_timer is None:
            self._flush_timer = self._reactor.call_later(_FLUSH_S, self._flush_calls)
        return messages

    def _flush_calls(self) -> None:
        self._flush_timer = None
        for exchange, messages in self._calls.items():
            self._count_messages(exchange, messages)
        if self._calls:
            self._flush_timer = self._reactor.call_later(_FLUSH_S, self._flush_calls)

    def _count_messages(self, exchange: Exchange, messages: CallMessages) -> None:
        """Under the labels that a call has from its beginning to its end: no status, no flags."""
        requests, responses = messages.take()
        if not requests and not responses:
            return
        source, outcome, state = exchange.source, exchange.outcome, self._state
        workload = outcome.workload  # known at the end only; before it, whoever has the address
        if workload is None and outcome.upstream is not None:
            workload = state.mesh.workload_by_ip(state.place.network, outcome.upstream.address[0])
        service = outcome.service or state.served_service(source.destination[0])
        plan = self._plan_of(service, source)
        if plan is not None:
            labels = message_labels(self._source_of(source), source.identity, service, workload)
            self._count_changed(plan, labels, ExchangeFacts(exchange), (requests, responses))
            return
        self._forget_old_keys()
        key = (
            source.identity,
            source.address[0],
            None if service is None else service.key,
            None if workload is None else workload.uid,
        )
        counts = self._messages_by_key.get(key)
        if counts is None:
            labels = message_labels(self._source_of(source), source.identity, service, workload)
            if labels not in self._messages and len(self._messages) >= _MAX_SERIES:
                labels = _MESSAGES_OVERFLOW
            counts = self._messages_by_key[key] = self._messages.setdefault(labels, [0, 0])
        counts[0] += requests
        counts[1] += responses

    def _forget_old_keys(self) -> None:
        """What labels were found for may be called something else now."""
        count = len(self._by_key) + len(self._messages_by_key)
        if self._generation != self._state.generation or count > _MAX_KEYS:
            self._generation = self._state.generation
            self._by_key.clear()
            self._messages_by_key.clear()

    def _count_changed(
        self, plan: MetricPlan, labels: tuple[str, ...], facts: ExchangeFacts, messages: tuple[int, int]
    ) -> None:
        """Messages where a Telemetry object says how; together with the others they are bounded."""
        for group in plan.messages:
            changed = group.labels(labels, facts)
            if len(self._messages) + len(self._changed_messages) >= _MAX_SERIES:
                changed = _MESSAGES_OVERFLOW
            counts = self._changed_messages.setdefault(changed, [0, 0, 0])
            for index, metric in enumerate(MESSAGE_METRICS):
                if group.metrics & metric:
                    counts[index] += messages[index]
                    counts[2] |= 1 << index

    def on_exchange(self, exchange: Exchange, source: Source) -> None:
        outcome, request = exchange.outcome, exchange.request
        messages = self._calls.pop(exchange, None)
        if messages is not None:
            self._count_messages(exchange, messages)
        self._forget_old_keys()
        workload = outcome.workload
        key = (
            source.identity,
            source.address[0],
            None if outcome.service is None else outcome.service.key,
            None if workload is None else workload.uid,
            outcome.status,
            outcome.flag,
            outcome.grpc_status,
            request.is_grpc,
        )
        plan = self._plan_of(outcome.service, source)
        if plan is not None:
            labels = self._labels(source, outcome, is_grpc=request.is_grpc)
            counted = self._planned(plan, labels, ExchangeFacts(exchange))
        else:
            series = self._by_key.get(key)
            if series is None:
                series = self._by_key[key] = self._find(source, outcome, is_grpc=request.is_grpc)
            labels, counted = series.labels, (series,)
        for series in counted:
            series.count(
                outcome.duration_s * 1000.0,
                outcome.request_body_bytes + outcome.request_header_bytes,
                outcome.response_body_bytes + outcome.response_header_bytes,
            )
        logs, trace = self._logs(exchange, source), exchange.trace
        is_reported = trace is not None and trace.is_reported
        if (logs or is_reported) and self._records.has_room:
            message = record(exchange)
            message.logs.extend(logs)
            self._add_headers(message, exchange)
            if trace is not None and is_reported:
                message.span.CopyFrom(span_message(exchange, trace, labels, self._source_of(source)))
            self._records.put(_with_ends(message, source))

    def _add_headers(self, message: pb.Exchange, exchange: Exchange) -> None:
        """Those that the formats of its logs ask for."""
        formats = self._state.telemetry.formats
        for name in message.logs if formats else ():
            format_ = formats.get(name)
            if format_ is not None:
                _take(message.request_headers, exchange.request.headers, format_.request_headers)
                _take(message.response_headers, exchange.outcome.response_headers, format_.response_headers)

    def _logs(self, exchange: Exchange, source: Source) -> Sequence[str]:
        """Where the exchange is logged: mostly nowhere."""
        found = self._logs_of(exchange.outcome.service, source)
        if not found:
            return ()
        facts = ExchangeFacts(exchange)
        return [name for name, filter_ in found.items() if filter_ is None or filter_.holds(facts)]

    def _logs_of(self, service: Service | None, source: Source) -> Logs:
        state, is_on = self._state, self._records.is_on
        if not state.telemetry.has_objects:
            return state.telemetry.logs("", is_on=is_on)
        service = service or state.served_service(source.destination[0])
        return state.telemetry.logs("" if service is None else service.key, is_on=is_on)

    def on_rejected(self, source: Source, status: int, reason: str, details: str) -> None:
        """It never was a request: it counts by itself, and the log names the reason."""
        self.rejected += 1
        logs = _unfiltered(self._logs_of(None, source))
        if logs and self._records.has_room:
            message = pb.Exchange(
                time=time.time(),
                status=status,
                flags="DPE",
                details=details,
                termination=reason,
                upstream_time_s=-1.0,
                logs=logs,
            )
            self._records.put(_with_ends(message, source))

    def on_tcp_open(self, exchange: TcpExchange, source: Source) -> None:
        self.connections.begin(exchange, source)

    def on_tcp(self, exchange: TcpExchange, source: Source) -> None:
        outcome = exchange.outcome
        self.connections.end(exchange, source)
        logs = _unfiltered(self._logs_of(outcome.service, source))
        if logs and self._records.has_room:
            message = _tcp_record(outcome)
            message.logs.extend(logs)
            self._records.put(_with_ends(message, source))

    # Answers

    def parts(self, request_id: int, other: list[pb.Stats.Named]) -> Iterator[pb.ToControl]:
        """The answer to a StatsRequest in parts of bounded size."""
        series = [*self._series.values(), *self._changed_series.values()]
        for start in range(0, len(series), _PER_PART):
            part = pb.Stats(id=request_id, has_more=True)
            part.http.extend(each.message() for each in series[start : start + _PER_PART])
            yield pb.ToControl(stats=part)
        for exchange, call in self._calls.items():
            self._count_messages(exchange, call)
        messages = list(self._messages.items())
        for start in range(0, len(messages), _PER_PART):
            part = pb.Stats(id=request_id, has_more=True)
            for labels, (requests, responses) in messages[start : start + _PER_PART]:
                part.messages.add(labels=labels, requests=requests, responses=responses)
            yield pb.ToControl(stats=part)
        yield from self._changed_parts(request_id)
        self.connections.refresh()
        yield from self.tcp.parts(request_id, other)

    def _changed_parts(self, request_id: int) -> Iterator[pb.ToControl]:
        changed = iter(self._changed_messages.items())
        while chunk := list(islice(changed, _PER_PART)):
            part = pb.Stats(id=request_id, has_more=True)
            for labels, (requests, responses, counted) in chunk:
                part.messages.add(labels=labels, requests=requests, responses=responses, omitted=3 & ~counted)
            yield pb.ToControl(stats=part)

    # Labels

    def _plan_of(self, service: Service | None, source: Source) -> MetricPlan | None:
        state = self._state
        if not state.telemetry.has_overrides:
            return None
        service = service or state.served_service(source.destination[0])
        return state.telemetry.metrics("" if service is None else service.key)

    def _planned(
        self, plan: MetricPlan, labels: tuple[str, ...], facts: ExchangeFacts
    ) -> Sequence[HttpSeries]:
        """The series of overridden metrics; together with the others they are bounded."""
        found = []
        for group in plan.requests:
            changed = group.labels(labels, facts)
            key = (group.metrics, group.extra, changed)
            series = self._changed_series.get(key)
            if series is None:
                if len(self._series) + len(self._changed_series) >= _MAX_SERIES:
                    changed = (*_OVERFLOW, *(UNKNOWN for _ in group.extra))
                    key = (group.metrics, group.extra, changed)
                series = self._changed_series.setdefault(
                    key, HttpSeries(changed, group.extra, ~group.metrics & 15)
                )
            found.append(series)
        return found

    def _find(self, source: Source, outcome: Outcome, *, is_grpc: bool) -> HttpSeries:
        labels = self._labels(source, outcome, is_grpc=is_grpc)
        series = self._series.get(labels)
        if series is None:
            if len(self._series) + len(self._changed_series) >= _MAX_SERIES:
                labels = _OVERFLOW
            series = self._series.setdefault(labels, HttpSeries(labels))
        return series

    def _labels(self, source: Source, outcome: Outcome, *, is_grpc: bool) -> tuple[str, ...]:
        peer = self._source_of(source)
        return http_labels(
            labels_of(peer) if peer is not None else NOBODY,
            source.identity,
            outcome.service,
            outcome.workload,
            HttpFacts(outcome.status, outcome.flag, outcome.grpc_status, is_grpc=is_grpc),
        )

    def _source_of(self, source: Source) -> Workload | None:
        state = self._state
        return guess_source(state.mesh, state.place.network, source.address[0])


def _take(found: MutableMapping[str, bytes], fields: Sequence[Header], wanted: frozenset[str]) -> None:
    for name in wanted:
        key = name.encode()
        lines = [value for other, value in fields if other == key]
        if lines:
            found[name] = b",".join(lines)[:_MAX_HEADER_BYTES]


def _unfiltered(logs: Logs) -> Sequence[str]:
    """What was no request has nothing that a filter could ask for."""
    return [name for name, filter_ in logs.items() if filter_ is None]


def record(exchange: Exchange) -> pb.Exchange:
    """What the log says of an exchange."""
    outcome, request = exchange.outcome, exchange.request
    fields = {name: value for name, value in request.headers if name in _LOGGED}
    upstream = outcome.upstream
    return pb.Exchange(
        time=time.time() - outcome.duration_s,
        method=request.method,
        path=request.target,
        protocol=exchange.protocol,
        status=outcome.status,
        flags=outcome.flag,
        details=outcome.details,
        failure=outcome.failure_text,
        request_body_bytes=outcome.request_body_bytes,
        response_body_bytes=outcome.response_body_bytes,
        duration_s=outcome.duration_s,
        upstream_time_s=-1.0 if outcome.upstream_time_s is None else outcome.upstream_time_s,
        forwarded_for=fields.get(b"x-forwarded-for", b""),
        user_agent=fields.get(b"user-agent", b""),
        request_id=fields.get(b"x-request-id", request.request_id),
        authority=request.authority,
        upstream_host="" if upstream is None else socket_text(*upstream.address),
        upstream_cluster=outcome.cluster,
        route_name=outcome.route_name,
        attempts=outcome.attempts,
        grpc_status=outcome.grpc_status,
        policy=outcome.policy,
        request_header_bytes=outcome.request_header_bytes,
        response_header_bytes=outcome.response_header_bytes,
        original_path=fields.get(_ORIGINAL_PATH, b""),
    )


_ORIGINAL_PATH: Final = b"x-envoy-original-path"  # the proxy's own: a client's is taken out before
_LOGGED: Final = frozenset({b"x-forwarded-for", b"user-agent", b"x-request-id", _ORIGINAL_PATH})


def _tcp_record(outcome: TcpOutcome) -> pb.Exchange:
    upstream = outcome.upstream
    return pb.Exchange(
        time=time.time() - outcome.duration_s,
        flags=outcome.flag,
        failure="" if outcome.error is None else outcome.error.text,
        request_body_bytes=outcome.received_bytes,
        response_body_bytes=outcome.sent_bytes,
        duration_s=outcome.duration_s,
        upstream_time_s=-1.0,
        upstream_host="" if upstream is None else socket_text(*upstream.address),
        upstream_cluster=outcome.cluster,
        route_name=outcome.route_name,
        policy=outcome.policy,
        server_name=outcome.server_name,
        termination=denied_by_policy(outcome.policy) if outcome.policy else "",
    )


def _with_ends(message: pb.Exchange, source: Source) -> bytes:
    """The encoded record, with what the connection tells."""
    message.downstream_local = socket_text(*source.destination)
    message.downstream_remote = socket_text(*source.address)
    if source.identity is not None:
        message.source_principal = str(source.identity)
    return message.SerializeToString()


def pack_exchanges(records: list[bytes], dropped: int) -> pb.ToControl:
    """For RecordQueue."""

    exchanges = pb.Exchanges.FromString(joined(records))
    exchanges.dropped = dropped
    return pb.ToControl(exchanges=exchanges)
