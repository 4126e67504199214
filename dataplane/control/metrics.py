"""The proxy's metrics: names, help and labels (facts 11.2, 11.3), and the sum over its workers.

Workers report absolute numbers since their start. A worker's last report is kept; when it goes away its
numbers stay in the totals, so that no total ever goes backwards. What a crashed worker counted after
its last report is lost.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dataplane.state.labels import LABEL_NAMES, NO_FLAG, RESPONSE_FLAGS_INDEX, UNKNOWN
from proto.mycelia import worker_pb2 as pb
from telemetry.metrics import OVERFLOW, Description, Histogram, Kind, Labels, Number, render

MAX_SERIES = 50_000

_LOCALITY = frozenset(LABEL_NAMES[-4:])
_SOURCE_LABELS = LABEL_NAMES[1:9]


def _traffic(name: str, text: str) -> Description:
    return Description(f"istio_tcp_{name}", Kind.COUNTER, text, LABEL_NAMES, optional=_LOCALITY)


OPENED = _traffic("connections_opened", "The total number of TCP connections opened")
CLOSED = _traffic("connections_closed", "The total number of TCP connections closed")
RECEIVED = _traffic(
    "received_bytes", "The size of total bytes received during request in case of a TCP connection"
)
SENT = _traffic("sent_bytes", "The size of total bytes sent during response in case of a TCP connection")
FAILED = _traffic("connections_failed", "The total number of TCP connections that failed")

SOCKETS_OPEN = Description(
    "istio_tcp_sockets_open", Kind.GAUGE, "The number of accepted sockets currently open", ("reporter",)
)
ON_DEMAND_DNS = Description(
    "istio_on_demand_dns",
    Kind.COUNTER,
    "The total number of requests that used on-demand DNS",
    (*_SOURCE_LABELS, "hostname"),
)
XDS_TERMINATIONS = Description(
    "istio_xds_connection_terminations",
    Kind.COUNTER,
    "The total number of completed connections to the xDS server",
    ("reason",),
)
XDS_MESSAGES = Description("istio_xds_message", Kind.COUNTER, "Total number of messages received", ("url",))
XDS_BYTES = Description(
    "istio_xds_message_bytes", Kind.COUNTER, "Total number of bytes received", ("url",), unit="bytes"
)
BUILD = Description("istio_build", Kind.GAUGE, "Istio component build info", ("component", "tag"))
ACTIVE = Description(
    "workload_manager_active_proxy_count", Kind.GAUGE, "The total number of workloads with a running proxy"
)
PENDING = Description(
    "workload_manager_pending_proxy_count", Kind.GAUGE, "The total number of workloads whose proxy is not up"
)
STARTED = Description("workload_manager_proxies_started", Kind.COUNTER, "The total number of proxies started")
STOPPED = Description("workload_manager_proxies_stopped", Kind.COUNTER, "The total number of proxies stopped")
OPEN_FDS = Description("process_open_fds", Kind.GAUGE, "Number of open file descriptors, all processes")
MAX_FDS = Description("process_max_fds", Kind.GAUGE, "Maximum number of open file descriptors of one process")
RESIDENT = Description(
    "process_resident_memory_bytes", Kind.GAUGE, "Resident memory, all processes", unit="bytes"
)
WORKERS = Description("mycelia_workers", Kind.GAUGE, "Data workers that are running")
WORKER_LOSSES = Description("mycelia_worker_losses", Kind.COUNTER, "Data workers that ended unexpectedly")
LOG_DROPPED = Description(
    "mycelia_log_lines_dropped", Kind.COUNTER, "Log lines lost because the writer was slow"
)
FLOWS_DROPPED = Description(
    "mycelia_flow_records_dropped", Kind.COUNTER, "Access log records lost because a queue was full"
)

POLICY_CLOSED = Description(
    "mycelia_worker_policy_closed_connections",
    Kind.COUNTER,
    "Open connections that were closed because policy does not allow them any more",
)
CONNECTION_LIMITS = Description(
    "mycelia_ztunnel_connection_limits",
    Kind.COUNTER,
    "Connections that a limit refused, and waits of connections that it paced",
    ("policy", "limit", "effect"),
)
WORKER_WORKLOADS = Description(
    "mycelia_worker_workloads", Kind.GAUGE, "Workloads served, summed over workers"
)
CLIENT_CONNECTIONS = Description(
    "mycelia_waypoint_client_connections", Kind.GAUGE, "Open tunnel connections of clients' ztunnels"
)
UPSTREAM_CONNECTIONS = Description(
    "mycelia_waypoint_upstream_connections",
    Kind.GAUGE,
    "Open connections to applications",
)
REJECTED_REQUESTS = Description(
    "mycelia_waypoint_rejected_requests",
    Kind.COUNTER,
    "Messages of clients that a codec turned away before they were requests",
)
REFUSED_TUNNELS = Description(
    "mycelia_waypoint_refused_tunnels",
    Kind.COUNTER,
    "Requests for tunnels that were answered with an error: malformed, not served here, no memory",
)
FAILED_HANDSHAKES = Description(
    "mycelia_waypoint_failed_handshakes", Kind.COUNTER, "Clients that did not get through the TLS handshake"
)
POLICY_MATCHES = Description(
    "mycelia_waypoint_policy_matches",
    Kind.COUNTER,
    "Requests and connections that a policy denied, audited, or would deny if it were no dry run",
    ("policy", "effect"),
)
FILTER_REQUESTS = Description(
    "mycelia_waypoint_filter_requests",
    Kind.COUNTER,
    "Requests by filter and what became of them there",
    ("filter", "result"),
)
FILTER_SECONDS = Description(
    "mycelia_waypoint_filter_seconds", Kind.COUNTER, "Time until a filter let a request pass", ("filter",)
)
POOL_CONNECTIONS = Description(
    "mycelia_worker_pool_connections", Kind.GAUGE, "Open outbound HBONE connections in pools"
)

# What workers may report beside traffic, by the name in their report.
_NAMED = {
    d.sample_name: d
    for d in (
        *(SOCKETS_OPEN, ON_DEMAND_DNS, POLICY_CLOSED, CONNECTION_LIMITS, WORKER_WORKLOADS, POOL_CONNECTIONS),
        *(CLIENT_CONNECTIONS, UPSTREAM_CONNECTIONS),
        *(REJECTED_REQUESTS, REFUSED_TUNNELS, FAILED_HANDSHAKES, POLICY_MATCHES),
        *(FILTER_REQUESTS, FILTER_SECONDS),
    )
}

# opened, closed, failed, sent bytes, received bytes; then the bits of what is counted
_Numbers = tuple[int, int, int, int, int, int]
_ZERO: _Numbers = (0, 0, 0, 0, 0, 0)
_TRAFFIC = (OPENED, CLOSED, FAILED, SENT, RECEIVED)
_BITS = (1, 2, 2, 4, 8)
_ALL_COUNTED = 15


class WorkerTotals:
    """Sums the workers' reports."""

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self._current: dict[int, list[pb.Stats]] = {}
        self._gone: dict[Labels, _Numbers] = {}
        self._gone_named: dict[tuple[str, Labels], float] = {}

    def take(self, index: int, parts: list[pb.Stats]) -> None:
        """A worker's complete report replaces its former one."""
        self._current[index] = parts

    def on_lost(self, index: int) -> None:
        """Keep what the worker had counted; its gauges end with it."""
        for stats in self._current.pop(index, []):
            self._add_traffic(self._gone, stats)
            for named in stats.other:
                description = _NAMED.get(named.name)
                if description is not None and description.kind is Kind.COUNTER:
                    key = (named.name, _fitting(description, named.labels))
                    self._gone_named[key] = self._gone_named.get(key, 0) + named.value

    def families(self) -> Iterator[tuple[Description, Mapping[Labels, Number]]]:
        """The traffic families and the named ones, summed."""
        totals = dict(self._gone)
        for stats in self._reports():
            self._add_traffic(totals, stats)
        samples: dict[str, dict[Labels, Number]] = {description.name: {} for description in _TRAFFIC}
        for labels, numbers in totals.items():
            is_clean = labels[RESPONSE_FLAGS_INDEX] == NO_FLAG
            for description, bit, number in zip(_TRAFFIC, _BITS, numbers[:-1], strict=True):
                # Opened and bytes count under the flag `-` alone, failures never under it (facts 11.2).
                is_always_there = is_clean and description not in (CLOSED, FAILED) and numbers[-1] & bit
                if number or is_always_there:
                    samples[description.name][labels] = number
        for description in _TRAFFIC:
            yield description, samples[description.name]
        yield from self._named_families()

    def _named_families(self) -> Iterator[tuple[Description, Mapping[Labels, Number]]]:
        named: dict[str, dict[Labels, Number]] = {name: {} for name in _NAMED}
        for (name, labels), value in self._gone_named.items():
            named[name][labels] = value
        for stats in self._reports():
            for item in stats.other:
                description = _NAMED.get(item.name)
                if description is None:
                    continue
                samples = named[item.name]
                labels = _fitting(description, item.labels)
                samples[labels] = samples.get(labels, 0) + item.value
        for name, description in _NAMED.items():
            yield description, {labels: _whole(value) for labels, value in named[name].items()}

    def _reports(self) -> Iterator[pb.Stats]:
        for parts in self._current.values():
            yield from parts

    def _add_traffic(self, totals: dict[Labels, _Numbers], stats: pb.Stats) -> None:
        for series in stats.traffic:
            labels = tuple(series.labels)
            if len(labels) != len(LABEL_NAMES):
                continue
            if labels not in totals and len(totals) >= self._max_series:
                labels = (OVERFLOW,) * len(LABEL_NAMES)
            old = totals.get(labels, _ZERO)
            totals[labels] = (
                old[0] + series.opened,
                old[1] + series.closed,
                old[2] + series.failed,
                old[3] + series.sent_bytes,
                old[4] + series.received_bytes,
                old[5] | (_ALL_COUNTED & ~series.omitted),
            )


def single(description: Description, value: Number) -> tuple[Description, Mapping[Labels, Number]]:
    return description, {(): value}


class MetricsPage:
    """Everything that a scrape shows; `extra` gives the families of the control process's parts."""

    def __init__(
        self,
        totals: WorkerTotals,
        version: str,
        extra: Callable[[], Iterable[tuple[Description, Mapping[Labels, Number | Histogram]]]],
        pids: Callable[[], tuple[int, ...]],
        *,
        component: str = "ztunnel",
    ) -> None:
        self._totals = totals
        self._version = version
        self._extra = extra
        self._pids = pids
        self._component = component

    def render(self) -> bytes:
        return render(self._families())

    def _families(self) -> Iterator[tuple[Description, Mapping[Labels, Number | Histogram]]]:
        yield from self._totals.families()
        yield from self._extra()
        yield BUILD, {(self._component, self._version): 1}
        pids = (os.getpid(), *self._pids())
        yield single(OPEN_FDS, sum(_open_descriptors(pid) for pid in pids))
        yield single(MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        yield single(RESIDENT, sum(_resident_bytes(pid) for pid in pids))


def _fitting(description: Description, labels: Sequence[str]) -> Labels:
    """As many labels as documented; what a worker does not say is unknown."""
    count = len(description.labels)
    return (*labels[:count], *(UNKNOWN,) * (count - len(labels)))


def _whole(value: float) -> Number:
    return int(value) if value == int(value) else value


def _open_descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, without a Path for each
    except OSError:  # it has just ended
        return 0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
