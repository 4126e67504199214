"""RateLimitPolicy: validation, and what waypoints are told of it."""

from __future__ import annotations

import pytest

from config.compile.resource import RATE_LIMIT
from proto.mycelia import rate_limit_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, parent, replica, service, waypoint

TO_WEB = "targetRefs: [{kind: Service, name: web}]"


def limits(spec: str) -> str:
    return istio("RateLimitPolicy", "calm", f"{{{spec}}}", group="mycelia.io").replace(
        "io/v1\n", "io/v1alpha1\n"
    )


def sent(mesh: Mesh) -> dict[str, pb.RateLimitPolicy]:
    return {
        name: pb.RateLimitPolicy.FromString(each.payload)
        for name, each in mesh.registry.resources[RATE_LIMIT].items()
    }


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (TO_WEB, "limits"),
        ("limits: [{requests: 1, per: 1s}]", "targetRefs"),
        (f"{TO_WEB}, limits: []", "limits"),
        (f"{TO_WEB}, limits: [{{requests: 0, per: 1s}}]", "requests"),
        (f"{TO_WEB}, limits: [{{requests: '5', per: 1s}}]", "requests"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: often}}]", "duration"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s, burst: 0}}]", "burst"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s, by: [moon]}}]", "caller, sourceAddress"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s, by: ['header:']}}]", "header:NAME"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s, match: {{}}}}]", "match says nothing"),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s}}], mode: Shared", "mode"),
        (
            f"{TO_WEB}, limits: [{{requests: 1, per: 1s}}], failureMode: Open",
            "goes with a limit that is shared",
        ),
        (f"{TO_WEB}, limits: [{{requests: 1, per: 1s, shared: true}}], failureMode: Ajar", "Local, Open"),
        ("targetRefs: [{kind: Pod, name: web}], limits: [{requests: 1, per: 1s}]", "HTTPRoute"),
    ],
)
def test_what_is_wrong_is_said(spec: str, complaint: str) -> None:
    errors = errors_of(limits(spec))
    assert errors
    assert complaint in " ".join(errors)


def test_every_field_is_told_to_the_waypoint_of_a_service_and_of_a_route() -> None:
    web = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")
    spec = f"{{{parent()}, rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
    to_route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}"
    calm = limits(
        f"targetRefs: [{{kind: Service, name: web}}, {to_route}], headers: false, limits: ["
        "{requests: 5, per: 500ms, burst: 9, by: [caller, sourceAddress, route, service, ]}, "
        "{name: w, requests: 1, per: 1m, by: ['header:X-A', 'claim:a.b'],"
        " match: {methods: [POST], paths: [/a*]}}]"
    )
    mesh = Mesh(waypoint(), replica(), web, istio("HTTPRoute", "r", spec), calm)
    found = sent(mesh)["shop/calm"]
    assert list(found.attachment.services) == ["shop/web.shop.svc.cluster.local"]
    assert list(found.attachment.routes) == ["HTTPRoute/shop/r"]
    assert not found.tells
    first, second = found.limits
    assert (first.name, first.requests, first.per.ToMilliseconds(), first.burst) == ("limits[0]", 5, 500, 9)
    assert [key.WhichOneof("kind") for key in first.keys] == ["caller", "source_address", "route", "service"]
    assert (second.name, list(second.methods), list(second.paths)) == ("w", ["POST"], ["/a*"])
    assert [(key.header, key.claim) for key in second.keys] == [("X-A", ""), ("", "a.b")]


def test_a_route_that_goes_takes_its_limit_along() -> None:
    web = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")
    spec = f"{{{parent()}, rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
    to_route = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]"
    mesh = Mesh(waypoint(), replica(), web, limits(f"{to_route}, limits: [{{requests: 1, per: 1s}}]"))
    assert sent(mesh) == {}
    mesh.apply(istio("HTTPRoute", "r", spec))
    assert sent(mesh).keys() == {"shop/calm"}
    mesh.remove("HTTPRoute", "shop", "r")
    assert sent(mesh) == {}
    assert any("TargetNotFound" in note for note in mesh.notes())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("", 0), (", failureMode: Local", 0), (", failureMode: Open", 1), (", failureMode: Closed", 2)],
)
def test_a_shared_limit_and_its_failure_mode_are_told(mode: str, expected: int) -> None:
    web = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")
    spec = f"{TO_WEB}{mode}, limits: [{{requests: 1, per: 1s, shared: true}}, {{requests: 1, per: 1s}}]"
    found = sent(Mesh(waypoint(), replica(), web, limits(spec)))["shop/calm"]
    assert [each.shared for each in found.limits] == [True, False]
    assert found.failure_mode == expected
