"""Waypoints that node agents run: orders, what nodes say, and what the mesh makes of it."""

from __future__ import annotations

import json

import pytest

from config.errors import ReportRejected
from config.nodes.book import NodeBook
from config.nodes.waypoints import RunningWaypoint, orders, read_waypoints, words
from config.registry.capture import Attached, decide
from config.settings import MeshSettings
from proto.istio import workload_pb2
from proto.mycelia import node_pb2 as pb
from tests.config.support import (
    Mesh,
    entry,
    errors_of,
    namespace,
    pod,
    replica,
    service,
    warnings_of,
    waypoint,
)

USE = "istio.io/use-waypoint: wp"
LABELS = "gateway.networking.k8s.io/gateway-name: wp, mycelia.io/node: n1"


def said(mesh: Mesh, *states: RunningWaypoint, node: str = "n1") -> None:
    mesh.registry.waypoints_said(node, words(states))


def wp(state: str, problem: str = "", workload: str = "wp-0") -> RunningWaypoint:
    return RunningWaypoint("shop", workload, state, problem, 42, 15020)


def is_healthy(mesh: Mesh, name: str = "shop/wp-0") -> bool:
    return mesh.workload(name).status == workload_pb2.HEALTHY


def programmed(mesh: Mesh) -> str:
    (text,) = mesh.conditions("Gateway", "wp", "Programmed")
    return text.removeprefix("Programmed=")


# ---- orders ----


def test_an_order_has_everything_that_the_process_is_told() -> None:
    settings = MeshSettings(trust_domain="mesh.test", cluster_id="c1", network="net-1")
    own = entry("wp-0", ip="10.9.0.1", labels=LABELS, spec="serviceAccount: edge")
    mesh = Mesh(waypoint(), own, settings=settings)
    (order,) = orders("n1", mesh.registry)
    assert order == pb.WaypointOrder(
        namespace="shop",
        gateway="wp",
        workload="wp-0",
        service_account="edge",
        addresses=["10.9.0.1"],
        trust_domain="mesh.test",
        cluster_id="c1",
        network="net-1",
    )
    assert orders("n2", mesh.registry) == []


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([replica()], id="there is no Gateway"),
        pytest.param(
            [waypoint().replace("istio-waypoint", "istio"), replica()], id="the Gateway is no waypoint"
        ),
        pytest.param([waypoint(), entry("web", labels="mycelia.io/node: n1")], id="it is no replica"),
        pytest.param(
            [waypoint(), entry("wp-0", labels="gateway.networking.k8s.io/gateway-name: wp")],
            id="it is on no node",
        ),
        pytest.param(
            [
                waypoint(),
                pod("wp-0", labels="gateway.networking.k8s.io/gateway-name: wp", spec="nodeName: n1"),
            ],
            id="a kubelet runs it",
        ),
        pytest.param(
            [
                waypoint(),
                replica().replace("labels:", "annotations: {mycelia.io/run-waypoint: 'false'}, labels:", 1),
            ],
            id="somebody else runs it",
        ),
    ],
)
def test_no_order_where(texts: list[str]) -> None:
    assert orders("n1", Mesh(*texts).registry) == []


def test_orders_travel_with_those_of_capture() -> None:
    mesh = Mesh(waypoint(), replica())
    assert [each.workload for each in NodeBook().orders("n1", mesh.registry).waypoints] == ["wp-0"]


@pytest.mark.parametrize("mode", ["", ", istio.io/dataplane-mode: ambient"])
def test_a_waypoints_workload_is_never_captured(mode: str) -> None:
    mesh = Mesh(
        namespace("shop", "istio.io/dataplane-mode: ambient"),
        waypoint(),
        entry("wp-0", ip="10.9.0.1", labels=f"{LABELS}{mode}"),
    )
    decision = decide("n1", Attached("uid", "shop", "wp-0", "wp", ("10.9.0.1",)), mesh.registry)
    assert not decision.capture
    assert "a waypoint's workload, whose own traffic is never captured" in decision.reason


# ---- readiness ----


def test_without_a_nodes_word_the_manifest_counts() -> None:
    mesh = Mesh(waypoint(), replica())
    assert is_healthy(mesh)
    assert programmed(mesh) == "True Programmed: 1 of 1 workloads are ready"


def test_a_node_that_speaks_has_the_last_word() -> None:
    mesh = Mesh(waypoint(), replica(), service("web", "ports: [{port: 80}]", labels=USE))
    said(mesh)
    assert not is_healthy(mesh)
    assert programmed(mesh) == (
        "False AddressNotAssigned: none of its 1 workloads is ready (wp-0 on n1: not started yet)"
    )
    assert "no workload of shop/wp is ready" in mesh.conditions("Service", "web")[0]
    said(mesh, wp("failed", "address 10.9.0.1 is not here"))
    assert programmed(mesh).endswith("(wp-0 on n1: failed: address 10.9.0.1 is not here)")
    said(mesh, wp("ready"))
    assert is_healthy(mesh)
    assert programmed(mesh) == "True Programmed: 1 of 1 workloads are ready"
    said(mesh, wp("stopping"))
    assert not is_healthy(mesh)


def test_the_manifest_can_still_deny_it() -> None:
    mesh = Mesh(waypoint(), replica(is_ready=False))
    said(mesh, wp("ready"))
    assert not is_healthy(mesh)


def test_a_waypoint_that_somebody_else_runs_is_not_the_nodes_to_judge() -> None:
    foreign = replica().replace("labels:", "annotations: {mycelia.io/run-waypoint: 'false'}, labels:", 1)
    mesh = Mesh(waypoint(), foreign)
    said(mesh)
    assert is_healthy(mesh)


def test_a_gateway_that_comes_later_makes_the_nodes_word_count() -> None:
    mesh = Mesh(replica())
    said(mesh)
    assert is_healthy(mesh)
    mesh.apply(waypoint())
    assert not is_healthy(mesh)


def test_one_of_two_replicas_is_enough() -> None:
    mesh = Mesh(waypoint(), replica(), replica("wp-1", ip="10.9.0.2"))
    said(mesh, wp("ready"), wp("starting", "waits for a certificate", "wp-1"))
    assert is_healthy(mesh)
    assert not is_healthy(mesh, "shop/wp-1")
    assert programmed(mesh) == (
        "True Programmed: 1 of 2 workloads are ready (wp-1 on n1: starting: waits for a certificate)"
    )


def test_a_canary_counts_once_its_node_says_ready() -> None:
    labels = f"{USE}, istio.io/use-waypoint-canary: next"
    mesh = Mesh(waypoint(), replica(), waypoint("next"), replica("next-0", "next", ip="10.9.0.2"))
    mesh.apply(
        service(
            "web",
            "ports: [{port: 80}]",
            labels=labels,
            annotations="istio.io/use-waypoint-canary-weight: '10'",
        )
    )
    said(mesh, wp("ready"), wp("starting", workload="next-0"))
    assert not mesh.service("shop/web.shop.svc.cluster.local").weighted_waypoints
    said(mesh, wp("ready"), wp("ready", workload="next-0"))
    assert len(mesh.service("shop/web.shop.svc.cluster.local").weighted_waypoints) == 2


# ---- what nodes send ----


def test_a_report_is_read_and_survives_a_restart_of_the_control_plane() -> None:
    report = pb.NodeReport(
        waypoints=[
            pb.WaypointReport(
                namespace="shop",
                workload="wp-0",
                state=pb.WaypointReport.READY,
                pid=42,
                metrics_port=15020,
            )
        ]
    )
    read = read_waypoints(report)
    assert read == [wp("ready")]
    book = NodeBook()
    book.report("n1", [], read)
    again = NodeBook.restore(json.loads(json.dumps(book.snapshot())))
    assert again.waypoints("n1") == (wp("ready"),)


@pytest.mark.parametrize(
    ("waypoints", "text"),
    [
        ([pb.WaypointReport(namespace="a b", workload="wp")], "is no name"),
        ([pb.WaypointReport(namespace="a", workload="w", state=9)], "state 9 is unknown"),  # type: ignore[arg-type]
        ([pb.WaypointReport(namespace="a", workload="w")] * 2, "is there twice"),
        ([pb.WaypointReport(namespace="a", workload=f"w{i}") for i in range(1001)], "at most 1000"),
    ],
)
def test_a_bad_report_is_rejected(waypoints: list[pb.WaypointReport], text: str) -> None:
    with pytest.raises(ReportRejected, match=text):
        read_waypoints(pb.NodeReport(waypoints=waypoints))


# ---- manifests ----


def test_a_workload_without_account_runs_under_its_gateways_name() -> None:
    assert Mesh(waypoint(), replica()).workload("shop/wp-0").service_account == "wp"


def test_run_waypoint_is_a_boolean() -> None:
    text = replica().replace("labels:", "annotations: {mycelia.io/run-waypoint: nope}, labels:", 1)
    (error,) = errors_of(text)
    assert 'mycelia.io/run-waypoint]: found "nope"; allowed: "true", "false"' in error


def test_a_revision_is_told_to_mean_nothing() -> None:
    (warning,) = warnings_of(waypoint(labels="istio.io/rev: canary"))
    assert "has no effect here: this control plane takes Gateways of every revision" in warning
