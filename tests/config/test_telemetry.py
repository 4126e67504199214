"""Telemetry: validation, which waypoints hear of it, and what is reported."""

from __future__ import annotations

import pytest

from config.compile.resource import TELEMETRY
from proto.mycelia import telemetry_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, replica, service, waypoint

ENVOY = "accessLogging: [{providers: [{name: envoy}]}]"
TO_WEB = "targetRefs: [{kind: Service, name: web}]"
WEB = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")


def telemetry(spec: str, name: str = "logs", *, space: str = "shop", metadata: str = "") -> str:
    group = "telemetry.istio.io"
    return istio("Telemetry", name, f"{{{spec}}}", space=space, group=group, metadata=metadata)


def sent(mesh: Mesh) -> dict[str, pb.Telemetry]:
    return {
        name: pb.Telemetry.FromString(each.payload)
        for name, each in mesh.registry.resources[TELEMETRY].items()
    }


def meshed(*texts: str) -> Mesh:
    return Mesh(waypoint(), replica(), WEB, *texts)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("accessLogging: [{filter: {expression: 'response.kode == 1'}}]", "response.kode"),
        ("accessLogging: [{filter: {expression: 'response.code'}}]", "not a condition"),
        ("accessLogging: [{filter: {}}]", "expression"),
        ("accessLogging: [{match: {mode: BOTH}}]", "mode"),
        ("accessLogging: [{providers: [{}]}]", "name"),
        ("accessLogging: [{sampling: 1}]", "sampling"),
        ("tracing: [{randomSamplingPercentage: 5}]", "tracing is not supported yet"),
        ("metrics: [{}]", "metrics is not supported yet"),
        (f"selector: {{matchLabels: {{a: b}}}}, {TO_WEB}", "exclude each other"),
        ("targetRefs: [{kind: Pod, name: web}]", "targetRef"),
    ],
)
def test_what_is_wrong_is_said(spec: str, complaint: str) -> None:
    errors = errors_of(telemetry(spec))
    assert errors
    assert complaint in " ".join(errors)


def test_the_older_version_of_the_kind_is_read_too() -> None:
    assert not errors_of(telemetry(ENVOY).replace("io/v1\n", "io/v1alpha1\n"))


def test_levels_and_steps_are_told_to_waypoints() -> None:
    filtered = "accessLogging: [{match: {mode: SERVER}, filter: {expression: 'response.code > 1'}}]"
    mesh = meshed(
        telemetry(ENVOY, "all", space="istio-system"),
        telemetry("accessLogging: [{disabled: true}, {match: {mode: CLIENT}}]", "quiet"),
        telemetry(f"{TO_WEB}, {filtered}", "web"),
    )
    found = sent(mesh)
    assert found["istio-system/all"].level == pb.Telemetry.MESH
    assert list(found["istio-system/all"].logging[0].providers) == ["envoy"]
    assert found["shop/quiet"].level == pb.Telemetry.NAMESPACE
    assert [step.disabled for step in found["shop/quiet"].logging] == [True]
    assert found["shop/web"].level == pb.Telemetry.TARGET
    assert found["shop/web"].logging[0].filter == "response.code > 1"
    assert list(found["shop/web"].attachment.services) == ["shop/web.shop.svc.cluster.local"]
    resources = mesh.registry.resources[TELEMETRY].values()
    assert {each.waypoints for each in resources} == {("shop/wp",)}
    assert mesh.notes() == []


def test_every_waypoint_hears_of_a_general_one_also_those_that_come_later() -> None:
    mesh = meshed(telemetry(ENVOY, space="istio-system"))
    mesh.apply(waypoint("other", space="else"))
    (resource,) = mesh.registry.resources[TELEMETRY].values()
    assert resource.waypoints == ("else/other", "shop/wp")
    mesh.remove("Gateway", "else", "other")
    mesh.remove("Gateway", "shop", "wp")
    assert sent(mesh) == {}


def test_the_oldest_of_a_namespace_counts_and_the_other_one_is_reported() -> None:
    old = "creationTimestamp: '2025-01-01T00:00:00Z'"
    new = "creationTimestamp: '2026-01-01T00:00:00Z'"
    mesh = meshed(telemetry(ENVOY, "b", metadata=old), telemetry(ENVOY, "a", metadata=new))
    assert sent(mesh).keys() == {"shop/b"}
    assert [note for note in mesh.notes() if "Conflicted" in note and "shop/b is older" in note]
    mesh.remove("Telemetry", "shop", "b")
    assert sent(mesh).keys() == {"shop/a"}
    assert mesh.notes() == []


def test_two_for_one_service_are_reported() -> None:
    old = "creationTimestamp: '2025-01-01T00:00:00Z'"
    mesh = meshed(telemetry(f"{TO_WEB}, {ENVOY}", "b", metadata=old), telemetry(f"{TO_WEB}, {ENVOY}", "a"))
    found = sent(mesh)
    assert found["shop/b"].order < found["shop/a"].order
    assert any("Conflicted" in note for note in mesh.notes())


def test_a_provider_that_is_not_known_changes_nothing_and_is_reported() -> None:
    mesh = meshed(telemetry("accessLogging: [{providers: [{name: cloud}]}]"))
    assert not sent(mesh)["shop/logs"].logging
    assert any("cloud" in note for note in mesh.notes())


def test_a_selector_has_no_effect_and_that_is_said() -> None:
    mesh = meshed(telemetry(f"selector: {{matchLabels: {{app: web}}}}, {ENVOY}"))
    assert sent(mesh) == {}
    assert any("NoEffect" in note for note in mesh.notes())
