"""The waypoint's metrics as a scraper reads them: prometheus-client's parser is the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dataplane.state.labels import NOBODY
from proto.mycelia import worker_pb2 as pb
from telemetry.metrics import Description, Histogram, Kind, render
from transport.spiffe import SpiffeId
from waypoint.control.metrics import HttpTotals
from waypoint.state.http_labels import BOUNDS, HTTP_LABEL_NAMES, HttpFacts, http_labels
from waypoint.worker.telemetry import HttpSeries

CLIENT = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/client")


def labels(
    status: int = 200, flag: str = "-", grpc: bytes = b"", *, is_grpc: bool = False
) -> tuple[str, ...]:
    return http_labels(NOBODY, CLIENT, None, None, HttpFacts(status, flag, grpc, is_grpc=is_grpc))


def report(*series: HttpSeries) -> list[pb.Stats]:
    return [pb.Stats(http=[each.message() for each in series])]


def samples(totals: HttpTotals) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = render(totals.families()).decode()
    found = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **wanted: str
) -> Iterator[float]:
    return (
        value
        for (sample, pairs), value in found.items()
        if sample == name and wanted.items() <= dict(pairs).items()
    )


def test_requests_and_histograms_have_istios_names_and_labels() -> None:
    series = HttpSeries(labels())
    series.count(3.0, 120, 900)
    series.count(7.0, 120, 900)
    totals = HttpTotals()
    totals.take(0, report(series))
    found = samples(totals)
    (requests,) = of(found, "istio_requests_total", reporter="waypoint", response_code="200")
    assert requests == 2
    assert list(of(found, "istio_request_duration_milliseconds_bucket", le="5.0")) == [1]
    assert list(of(found, "istio_request_duration_milliseconds_bucket", le="10.0")) == [2]
    assert list(of(found, "istio_request_duration_milliseconds_sum")) == [10]
    assert list(of(found, "istio_request_bytes_count")) == [2]
    assert list(of(found, "istio_response_bytes_bucket", le="+Inf")) == [2]


def test_the_clients_namespace_and_principal_are_the_certificates() -> None:
    named = dict(zip(HTTP_LABEL_NAMES, labels(503, "UH"), strict=True))
    assert named["source_workload_namespace"] == "shop"
    assert named["source_principal"] == str(CLIENT)
    assert (named["response_code"], named["response_flags"]) == ("503", "UH")
    assert named["connection_security_policy"] == "mutual_tls"
    assert named["destination_workload"] == "unknown"


def test_grpc_has_its_protocol_and_status() -> None:
    named = dict(zip(HTTP_LABEL_NAMES, labels(200, "-", b"14", is_grpc=True), strict=True))
    assert (named["request_protocol"], named["grpc_response_status"]) == ("grpc", "14")
    named = dict(zip(HTTP_LABEL_NAMES, labels(200, "-", b"14"), strict=True))
    assert (named["request_protocol"], named["grpc_response_status"]) == ("http", "")


def test_workers_are_summed_and_what_a_lost_one_counted_stays() -> None:
    first, second = HttpSeries(labels()), HttpSeries(labels())
    for series, count in ((first, 2), (second, 3)):
        for _ in range(count):
            series.count(1.0, 1, 1)
    totals = HttpTotals()
    totals.take(0, report(first))
    totals.take(1, report(second))
    assert list(of(samples(totals), "istio_requests_total")) == [5]
    totals.on_lost(0)
    assert list(of(samples(totals), "istio_requests_total")) == [5]
    totals.take(0, report(HttpSeries(labels())))
    assert list(of(samples(totals), "istio_requests_total")) == [5]
    assert list(of(samples(totals), "istio_request_duration_milliseconds_count")) == [5]


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (0.6, 1), (1.0, 1), (3_600_000.0, 18), (9e9, 19)])
def test_a_value_on_a_bound_belongs_to_it(value: float, bucket: int) -> None:
    series = HttpSeries(labels())
    series.count(value, 0, 0)
    assert series.durations.index(1) == bucket
    assert len(series.durations) == len(BOUNDS) + 1


def test_a_histogram_without_labels_is_parsed_too() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.add([1, 2, 3], 9.5)
    text = render([(Description("x", Kind.HISTOGRAM, "text"), {(): histogram})]).decode()
    (family,) = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert [sample.value for sample in family.samples] == [1, 3, 6, 9.5, 6]
