"""Policies with targetRefs: where they are bound, what waypoints are told, what the status says."""

from __future__ import annotations

import pytest

from config.compile.resource import REQUEST_AUTHORIZATION
from config.registry.conditions import conditions
from proto.mycelia import authorization_l7_pb2 as pb
from tests.config.support import Mesh, istio, replica, service, waypoint

USE = "istio.io/use-waypoint: wp"
WEB = "shop/web.shop.svc.cluster.local"
TO_WEB = "targetRefs: [{kind: Service, name: web}]"
TO_GATEWAY = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]"
TO_CLASS = "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]"


def web(labels: str = USE, name: str = "web") -> str:
    return service(name, "ports: [{name: http, port: 80}]", labels=labels)


def policy(
    target: str, more: str = "rules: [{}]", *, name: str = "p", space: str = "shop", **fields: str
) -> str:
    return istio("AuthorizationPolicy", name, f"{{{target}, {more}}}", space=space, **fields)


def sent(mesh: Mesh) -> dict[str, tuple[tuple[str, ...], pb.AuthorizationPolicy]]:
    """Resource name -> (waypoints, message)."""
    return {
        name: (each.waypoints, pb.AuthorizationPolicy.FromString(each.payload))
        for name, each in mesh.registry.resources[REQUEST_AUTHORIZATION].items()
    }


def status(mesh: Mesh) -> tuple[bool, str]:
    (found,) = [each for each in conditions(mesh.registry) if each.type == "WaypointAccepted"]
    return found.is_true, found.reason.value


def test_a_policy_goes_to_the_waypoint_of_its_service() -> None:
    mesh = Mesh(waypoint(), replica(), web(), policy(TO_WEB, "action: DENY, rules: [{}]"))
    ((waypoints, message),) = sent(mesh).values()
    assert waypoints == ("shop/wp",)
    assert list(message.attachment.services) == [WEB]
    assert not message.attachment.waypoints
    assert message.action == pb.AuthorizationPolicy.DENY
    assert mesh.policies() == []  # never at node proxies
    assert status(mesh) == (True, "Accepted")


@pytest.mark.parametrize(
    ("target", "space", "manifests", "expected"),
    [
        (TO_WEB, "shop", (), (False, "TargetNotFound")),
        (TO_WEB, "shop", (web(""),), (False, "AncestorNotBound")),
        (TO_WEB, "shop", (web(),), (False, "AncestorNotBound")),
        (TO_GATEWAY, "shop", (), (False, "TargetNotFound")),
        (TO_GATEWAY, "shop", (waypoint(),), (True, "Accepted")),
        (TO_GATEWAY, "bank", (waypoint(),), (False, "TargetNotFound")),
        (TO_CLASS, "shop", (waypoint(),), (False, "Invalid")),
        (TO_CLASS, "istio-system", (waypoint(),), (True, "Accepted")),
        (TO_CLASS, "istio-system", (), (False, "AncestorNotBound")),
        (
            "targetRefs: [{kind: Service, name: web}, {kind: Service, name: none}]",
            "shop",
            (waypoint(), replica(), web()),
            (True, "PartiallyInvalid"),
        ),
    ],
)
def test_what_the_status_says(
    target: str, space: str, manifests: tuple[str, ...], expected: tuple[bool, str]
) -> None:
    mesh = Mesh(*manifests, policy(target, space=space))
    assert status(mesh) == expected
    assert bool(sent(mesh)) is expected[0]
    is_noted = any("AuthorizationPolicy" in note for note in mesh.notes())
    assert is_noted is (expected[1] != "Accepted")


def test_for_a_gateway_and_for_all_of_them() -> None:
    mesh = Mesh(waypoint(), waypoint("next"), waypoint("far", space="bank"))
    mesh.apply(policy(TO_GATEWAY, name="one"), policy(TO_CLASS, name="all", space="istio-system"))
    one, everyone = sent(mesh)["shop/one"], sent(mesh)["istio-system/all"]
    assert one[0] == tuple(one[1].attachment.waypoints) == ("shop/wp",)
    assert everyone[0] == tuple(everyone[1].attachment.waypoints) == ("bank/far", "shop/next", "shop/wp")
    mesh.remove("Gateway", "bank", "far")
    assert sent(mesh)["istio-system/all"][0] == ("shop/next", "shop/wp")


def test_it_follows_what_it_is_attached_to_in_any_order() -> None:
    mesh = Mesh(policy(TO_WEB))
    assert sent(mesh) == {}
    mesh.apply(web())
    mesh.apply(waypoint())
    assert sent(mesh) == {}
    mesh.apply(replica())
    assert sent(mesh)["shop/p"][0] == ("shop/wp",)
    mesh.apply(web("istio.io/use-waypoint: other"))
    assert sent(mesh) == {}
    mesh.apply(web())
    assert sent(mesh)["shop/p"][0] == ("shop/wp",)
    mesh.remove("AuthorizationPolicy", "shop", "p")
    assert sent(mesh) == {}


def test_every_field_is_told() -> None:
    rules = """rules: [{
        from: [{source: {principals: [cluster.local/ns/a/sa/b], notNamespaces: [x], requestPrincipals: ['*'],
                         ipBlocks: [10.0.0.0/8], remoteIpBlocks: [1.2.3.4]}},
               {source: {serviceAccounts: [cart, bank/till]}}],
        to: [{operation: {hosts: [a.com], notPorts: ['81'], methods: [GET], paths: ['/a/{*}/b']}}],
        when: [{key: 'request.headers[X-A]', values: [a], notValues: [b]},
               {key: source.serviceAccount, values: [cart]}]}]"""
    mesh = Mesh(waypoint(), policy(TO_GATEWAY, rules.replace("\n", " ")))
    (rule,) = sent(mesh)["shop/p"][1].rules

    def told(clauses: object) -> list[tuple[str, list[str], list[str]]]:
        return [(each.key, list(each.values), list(each.not_values)) for each in clauses]  # type: ignore[attr-defined]

    assert told(rule.sources[0].clauses) == [
        ("source.principal", ["cluster.local/ns/a/sa/b"], []),
        ("source.namespace", [], ["x"]),
        ("source.ip", ["10.0.0.0/8"], []),
        ("remote.ip", ["1.2.3.4"], []),
        ("request.auth.principal", ["*"], []),
    ]
    assert told(rule.sources[1].clauses) == [("source.serviceAccount", ["shop/cart", "bank/till"], [])]
    assert told(rule.operations[0].clauses) == [
        ("request.path", ["/a/{*}/b"], []),
        ("request.method", ["GET"], []),
        ("destination.port", [], ["81"]),
        ("request.host", ["a.com"], []),
    ]
    assert told(rule.conditions) == [
        ("request.headers[X-A]", ["a"], ["b"]),
        ("source.serviceAccount", ["shop/cart"], []),
    ]


@pytest.mark.parametrize(("action", "conditions_told"), [("ALLOW", 2), ("DENY", 1)])
def test_what_waypoints_cannot_know_fails_closed_and_is_reported(action: str, conditions_told: int) -> None:
    rules = (
        f"action: {action}, rules: [{{when: [{{key: 'experimental.envoy.filters.x[y]', values: [a]}},"
        " {key: source.namespace, values: [b]}]}]"
    )
    mesh = Mesh(waypoint(), policy(TO_GATEWAY, rules))
    (rule,) = sent(mesh)["shop/p"][1].rules
    assert len(rule.conditions) == conditions_told
    assert any("UnsupportedValue" in note and "experimental" in note for note in mesh.notes())


def test_dry_run_and_custom_are_told() -> None:
    custom = "action: CUSTOM, provider: {name: judge}, rules: [{to: [{operation: {paths: [/a]}}]}]"
    dry = "annotations: {istio.io/dry-run: 'true'}"
    mesh = Mesh(waypoint(), policy(TO_GATEWAY, custom, name="c"), policy(TO_GATEWAY, name="d", metadata=dry))
    assert sent(mesh)["shop/c"][1].provider == "judge"
    assert any("shop/c" in note and "provider judge is not known" in note for note in mesh.notes())
    assert sent(mesh)["shop/d"][1].is_dry_run
