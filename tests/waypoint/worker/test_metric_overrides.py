"""Metrics as the Telemetry kind changes them, from real requests to the page that is scraped."""

from __future__ import annotations

from typing import Any

import pytest

from proto.mycelia import telemetry_pb2 as pb
from tests.waypoint.worker.test_access_logging import Logged, logged, telemetry
from waypoint.control.metrics import HttpTotals
from waypoint.state.metric_overrides import merge_overrides, parse_overrides

Override, Change = pb.Telemetry.Override, pb.Telemetry.LabelChange


def changing(*overrides: pb.Telemetry.Override) -> pb.Telemetry:
    made = telemetry()
    made.overrides.extend(overrides)
    return made


def scraped(waypoint: Logged) -> dict[str, dict[str, Any]]:
    """By metric: label text -> value, of what is counted."""
    totals = HttpTotals()
    observer = waypoint.log.telemetry  # type: ignore[attr-defined]
    totals.take(0, waypoint.ask(lambda: [each.stats for each in observer.parts(1, [])]))
    return {
        description.name: {description.label_text(labels): value for labels, value in samples.items()}
        for description, samples in totals.families()
    }


def test_a_label_of_one_s_own_and_one_less() -> None:
    changes = [
        Change(name="tenant", expression="request.headers['x-tenant']"),
        Change(name="source_app", removed=True),
        Change(name="response_code", expression="response.code >= 400 ? 'bad' : 'good'"),
    ]
    with logged(changing(Override(metrics=1023, tags=changes))) as waypoint:
        waypoint.logged("/a", x_tenant="blue")
        waypoint.logged("/gone")
        found = scraped(waypoint)
    requests = sorted(found["istio_requests"])
    assert [('tenant="blue"' in each, 'tenant="unknown"' in each) for each in requests] in (
        [(True, False), (False, True)],
        [(False, True), (True, False)],
    )
    assert all('source_app=""' in each for each in requests)
    assert sum('response_code="good"' in each for each in requests) == 1
    assert sum('response_code="bad"' in each for each in requests) == 1
    assert found["istio_request_duration_milliseconds"].keys() == found["istio_requests"].keys()


def test_one_metric_is_left_out_and_one_has_other_labels() -> None:
    overrides = (
        Override(metrics=4, disabled=True),
        Override(metrics=1, tags=[Change(name="host", expression="request.host")]),
    )
    with logged(changing(*overrides)) as waypoint:
        waypoint.logged("/a", "/a")
        found = scraped(waypoint)
    assert found["istio_request_bytes"] == {}
    ((labels, count),) = found["istio_requests"].items()
    assert 'host="' in labels
    assert count == 2
    ((labels, histogram),) = found["istio_response_bytes"].items()
    assert "host=" not in labels
    assert sum(histogram.counts) == 2


def test_all_can_be_left_out_and_come_back() -> None:
    with logged(changing(Override(metrics=1023, disabled=True))) as waypoint:
        waypoint.logged("/a")
        assert scraped(waypoint)["istio_requests"] == {}
        waypoint.put(changing())
        waypoint.logged("/a")
        assert list(scraped(waypoint)["istio_requests"].values()) == [1]


@pytest.mark.parametrize(
    ("overrides", "metrics"),
    [
        ([Override(metrics=1023, disabled=True), Override(metrics=1, disabled=False)], [1]),
        ([Override(metrics=1, disabled=True)], [14]),
        ([Override(metrics=2, tags=[Change(name="a", expression="'b'")])], [13, 2]),
        (
            [
                Override(metrics=1023, tags=[Change(name="a", expression="'b'")]),
                Override(metrics=1023, tags=[Change(name="a", removed=True)]),
            ],
            [15],
        ),
    ],
)
def test_later_overrides_come_after_earlier_ones(
    overrides: list[pb.Telemetry.Override], metrics: list[int]
) -> None:
    plan = merge_overrides(parse_overrides(changing(*overrides)))
    assert plan is not None
    assert [group.metrics for group in plan.requests] == metrics
    assert not any(group.extra for group in plan.requests if group.metrics == 15)


def test_without_overrides_everything_is_as_always() -> None:
    assert merge_overrides(()) is None


@pytest.mark.parametrize(
    ("overrides", "messages", "connections"),
    [
        ([Override(metrics=1023, disabled=True)], [], []),
        ([Override(metrics=16, disabled=True)], [32], [960]),
        ([Override(metrics=64, disabled=True), Override(metrics=512, disabled=True)], [48], [384]),
        ([Override(metrics=256, tags=[Change(name="source_app", removed=True)])], [48], [704, 256]),
        ([Override(metrics=1023, tags=[Change(name="tenant", expression="'a'")])], [48], [960]),
        ([Override(metrics=32, tags=[Change(name="response_code", removed=True)])], [48], [960]),
    ],
)
def test_metrics_of_messages_and_connections_each_for_itself(
    overrides: list[pb.Telemetry.Override], messages: list[int], connections: list[int]
) -> None:
    plan = merge_overrides(parse_overrides(changing(*overrides)))
    assert plan is not None
    assert [group.metrics for group in plan.messages] == messages
    assert [group.metrics for group in plan.connections] == connections
