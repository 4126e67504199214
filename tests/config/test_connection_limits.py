"""RateLimitPolicy with `connections`: validation, and what node proxies are told of it."""

from __future__ import annotations

import pytest

from config.compile.resource import CONNECTION_LIMITS
from proto.mycelia import connection_limit_pb2 as pb
from tests.config.support import Mesh, errors_of, pod, service
from tests.config.test_rate_limit_policy import limits, sent

CALM = "connections: [{newPerSecond: 5}]"


def told(mesh: Mesh) -> dict[str, list[str]]:
    """By workload: the policies that limit it."""
    return {
        name.rpartition("/")[2]: [
            f"{policy.namespace}/{policy.name}" + "".join(f" {each}" for each in policy.services)
            for policy in pb.ConnectionLimits.FromString(each.payload).policies
        ]
        for name, each in mesh.registry.resources[CONNECTION_LIMITS].items()
    }


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("connections: []", "needs limits"),
        ("connections: [{name: a}]", "needs newPerSecond, open or bytesPerSecond"),
        ("connections: [{open: 0}]", "open"),
        ("connections: [{open: 3, burst: 4}]", "burst goes with newPerSecond"),
        ("connections: [{open: 3, burstBytes: 4}]", "burstBytes goes with bytesPerSecond"),
        ("connections: [{bytesPerSecond: 80000, burstBytes: 9999}]", "an eighth"),
        ("connections: [{open: 3, by: [route]}]", "callerNamespace"),
        (f"selector: {{}}, targetRefs: [{{kind: Service, name: web}}], {CALM}", "exclude each other"),
        (
            f"targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: g}}], {CALM}",
            "ServiceEntry",
        ),
        (f"{CALM}, limits: [{{requests: 1, per: 1s}}]", "limits of requests need targetRefs"),
    ],
)
def test_what_is_wrong_is_said(spec: str, complaint: str) -> None:
    errors = errors_of(limits(spec))
    assert errors
    assert complaint in " ".join(errors)


def test_every_field_is_told() -> None:
    spec = (
        "connections: [{name: all, newPerSecond: 5, burst: 9, open: 3, bytesPerSecond: 2000, "
        "burstBytes: 999, by: [caller, callerNamespace, sourceAddress, port]}, {open: 1}]"
    )
    mesh = Mesh(pod("web"), limits(spec))
    (resource,) = mesh.registry.resources[CONNECTION_LIMITS].values()
    message = pb.ConnectionLimits.FromString(resource.payload)
    assert message.uid == resource.name
    (policy,) = message.policies
    first, second = policy.limits
    assert (first.name, first.new_per_second, first.burst, first.open) == ("all", 5, 9, 3)
    assert (first.bytes_per_second, first.burst_bytes, list(first.keys)) == (2000, 999, [1, 2, 3, 4])
    assert (second.name, second.open, list(second.keys)) == ("connections[1]", 1, [])


def test_whose_connections_are_limited() -> None:
    mesh = Mesh(
        pod("web", labels="app: web"),
        pod("db", ip="10.0.0.2", labels="app: db"),
        pod("far", ip="10.0.0.3", labels="app: db", space="other"),
    )
    assert told(mesh) == {}
    mesh.apply(limits(CALM))
    assert told(mesh) == {"web": ["shop/calm"], "db": ["shop/calm"]}
    mesh.apply(limits(f"selector: {{matchLabels: {{app: db}}}}, {CALM}"))
    assert told(mesh) == {"db": ["shop/calm"]}
    mesh.apply(pod("web", labels="app: db"))
    assert told(mesh) == {"web": ["shop/calm"], "db": ["shop/calm"]}
    mesh.apply(pod("web", labels="app: web"))
    mesh.apply(limits(f"selector: {{matchLabels: {{app: db}}}}, {CALM}").replace("shop", "istio-system"))
    assert told(mesh) == {"db": ["istio-system/calm", "shop/calm"], "far": ["istio-system/calm"]}
    mesh.remove("RateLimitPolicy", "shop", "calm")
    mesh.remove("RateLimitPolicy", "istio-system", "calm")
    assert told(mesh) == {}


def test_a_service_leads_to_its_endpoints_also_when_it_comes_later() -> None:
    to_web = f"targetRefs: [{{kind: Service, name: web}}], {CALM}"
    mesh = Mesh(pod("a", labels="app: web"), limits(to_web))
    assert told(mesh) == {}
    assert any("TargetNotFound" in note for note in mesh.notes())
    mesh.apply(service("web", "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]"))
    assert told(mesh) == {"a": ["shop/calm shop/web.shop.svc.cluster.local"]}
    assert mesh.notes() == []
    assert mesh.conditions("RateLimitPolicy", "calm") == []
    assert sent(mesh) == {}
    mesh.apply(pod("b", ip="10.0.0.2", labels="app: web"))
    assert told(mesh).keys() == {"a", "b"}
    mesh.apply(pod("a", labels="app: other"))
    assert told(mesh).keys() == {"b"}
    mesh.remove("Service", "shop", "web")
    assert told(mesh) == {}
