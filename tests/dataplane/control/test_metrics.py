"""Facts 11.1 to 11.3 as a scraper sees them; prometheus-client's parser reads what is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from dataplane.control import metrics as names
from dataplane.control.metrics import MetricsPage, WorkerTotals, single
from dataplane.state.labels import LABEL_NAMES, RESPONSE_FLAGS_INDEX
from proto.mycelia import worker_pb2 as pb
from telemetry.metrics import Description, Labels, Number, render


def families_of(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def labels(flag: str = "-", *, region: str = "", workload: str = "web") -> list[str]:
    values = [f"v{number}" for number in range(len(LABEL_NAMES))]
    values[1] = workload
    values[RESPONSE_FLAGS_INDEX] = flag
    values[-4:] = [region, "", "", ""]
    return values


def series(flag: str = "-", *, region: str = "", workload: str = "web", **numbers: int) -> pb.Stats.Series:
    message = pb.Stats.Series(labels=labels(flag, region=region, workload=workload))
    for name, number in numbers.items():
        setattr(message, name, number)
    return message


def nothing() -> Iterable[tuple[Description, Mapping[Labels, Number]]]:
    return ()


def samples(totals: WorkerTotals) -> list[Sample]:
    text = MetricsPage(totals, "1.2", nothing, lambda: ()).render().decode()
    return [sample for family in families_of(text) for sample in family.samples]


def value(totals: WorkerTotals, name: str, **wanted: str) -> float | None:
    found = [
        sample.value
        for sample in samples(totals)
        if sample.name == name and wanted.items() <= sample.labels.items()
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_traffic_families() -> None:
    totals = WorkerTotals()
    totals.take(
        0,
        [
            pb.Stats(traffic=[series(opened=3, closed=2, sent_bytes=22, received_bytes=11)]),
            pb.Stats(traffic=[series("DENY", closed=1, failed=1)]),
        ],
    )
    clean, denied = {"response_flags": "-"}, {"response_flags": "DENY"}
    assert value(totals, "istio_tcp_connections_opened_total", **clean) == 3
    assert value(totals, "istio_tcp_connections_closed_total", **clean) == 2
    assert value(totals, "istio_tcp_sent_bytes_total", **clean) == 22
    assert value(totals, "istio_tcp_received_bytes_total", **clean) == 11
    assert value(totals, "istio_tcp_connections_failed_total", **clean) is None
    assert value(totals, "istio_tcp_connections_closed_total", **denied) == 1
    assert value(totals, "istio_tcp_connections_failed_total", **denied) == 1
    assert value(totals, "istio_tcp_connections_opened_total", **denied) is None


def test_labels_keep_their_order_and_localities_are_left_out_where_unknown() -> None:
    totals = WorkerTotals()
    totals.take(0, [pb.Stats(traffic=[series(opened=1), series(opened=1, region="eu", workload="x")])])
    lines = MetricsPage(totals, "1.2", nothing, lambda: ()).render().decode().splitlines()
    opened = [line for line in lines if line.startswith("istio_tcp_connections_opened_total{")]
    written = [[pair.partition("=")[0] for pair in line[line.index("{") + 1 :].split(",")] for line in opened]
    assert written == [list(LABEL_NAMES[:-4]), [*LABEL_NAMES[:-4], "source_region"]]


def test_workers_are_summed() -> None:
    totals = WorkerTotals()
    for index in (0, 1):
        totals.take(
            index,
            [
                pb.Stats(
                    traffic=[series(opened=index + 1)],
                    other=[pb.Stats.Named(name="istio_tcp_sockets_open", labels=["source"], value=2)],
                )
            ],
        )
    assert value(totals, "istio_tcp_connections_opened_total") == 3
    assert value(totals, "istio_tcp_sockets_open", reporter="source") == 4


def test_a_restarted_worker_takes_nothing_away() -> None:
    totals = WorkerTotals()
    named = [
        pb.Stats.Named(name="istio_tcp_sockets_open", labels=["source"], value=2),
        pb.Stats.Named(name="istio_on_demand_dns_total", value=5),
    ]
    totals.take(0, [pb.Stats(traffic=[series(opened=7)], other=named)])
    totals.on_lost(0)
    assert value(totals, "istio_tcp_connections_opened_total") == 7
    assert value(totals, "istio_on_demand_dns_total", hostname="unknown") == 5
    assert value(totals, "istio_tcp_sockets_open") is None  # a gauge ends with its process
    totals.take(0, [pb.Stats(traffic=[series(opened=1)])])
    assert value(totals, "istio_tcp_connections_opened_total") == 8
    totals.on_lost(0)
    totals.on_lost(0)
    assert value(totals, "istio_tcp_connections_opened_total") == 8


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 5))), max_size=40))
def test_totals_never_go_backwards(history: list[tuple[int, int | None]]) -> None:
    """None: the worker is lost; a number: it counts so many more and reports."""
    totals = WorkerTotals()
    counted = {0: 0, 1: 0, 2: 0}
    expected = 0
    for index, more in history:
        if more is None:
            totals.on_lost(index)
            counted[index] = 0
        else:
            counted[index] += more
            expected += more
            totals.take(index, [pb.Stats(traffic=[series(opened=counted[index])])])
        total = sum(numbers for d, s in totals.families() if d is names.OPENED for numbers in s.values())
        assert total == expected


def test_series_are_bounded() -> None:
    totals = WorkerTotals(max_series=10)
    totals.take(0, [pb.Stats(traffic=[series(opened=1, workload=f"w{n}") for n in range(25)])])
    opened = [s for s in samples(totals) if s.name == "istio_tcp_connections_opened_total"]
    assert len(opened) <= 11
    every = dict(totals.families())[names.OPENED]
    assert sum(every.values()) == 25


def test_reports_of_another_shape_are_ignored() -> None:
    totals = WorkerTotals()
    totals.take(
        0,
        [
            pb.Stats(
                traffic=[pb.Stats.Series(labels=["short"], opened=1)],
                other=[pb.Stats.Named(name="nobody_knows", value=1)],
            )
        ],
    )
    assert value(totals, "istio_tcp_connections_opened_total") is None


def test_the_rest_of_the_page() -> None:
    def extra() -> Iterable[tuple[Description, Mapping[Labels, Number]]]:
        yield single(names.ACTIVE, 2)
        yield single(names.PENDING, 1)
        yield single(names.STARTED, 4)
        yield single(names.STOPPED, 2)
        yield names.XDS_MESSAGES, {("type.googleapis.com/x",): 3}
        yield names.XDS_BYTES, {("type.googleapis.com/x",): 300}
        yield names.XDS_TERMINATIONS, {("Reconnect",): 1}

    text = MetricsPage(WorkerTotals(), "1.2", extra, lambda: ()).render().decode()
    found = {
        (s.name, tuple(s.labels.items())): s.value for family in families_of(text) for s in family.samples
    }
    assert found["istio_build", (("component", "ztunnel"), ("tag", "1.2"))] == 1
    assert found["workload_manager_active_proxy_count", ()] == 2
    assert found["workload_manager_pending_proxy_count", ()] == 1
    assert found["workload_manager_proxies_started_total", ()] == 4
    assert found["workload_manager_proxies_stopped_total", ()] == 2
    assert found["istio_xds_message_total", (("url", "type.googleapis.com/x"),)] == 3
    assert found["istio_xds_message_bytes_total", (("url", "type.googleapis.com/x"),)] == 300
    assert found["istio_xds_connection_terminations_total", (("reason", "Reconnect"),)] == 1
    assert found["process_open_fds", ()] > 3
    assert found["process_max_fds", ()] > 3
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert "# UNIT istio_xds_message_bytes bytes" in text
    assert text.endswith("# EOF\n")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_label_value_survives(text: str) -> None:
    page = render([(names.XDS_MESSAGES, {(text,): 1})]).decode()
    (sample,) = [s for family in families_of(page) for s in family.samples]
    assert sample.labels == {"url": text.encode("utf-8", "backslashreplace").decode()}
