"""PeerAuthentication to DENY policies: each row of ztunnel-facts 7.6 and config-api 9."""

from __future__ import annotations

import pytest

from proto.istio import authorization_pb2 as pb
from tests.config.support import Mesh, entry, istio, namespace

STATIC = "istio-system/istio_converted_static_strict"
PORTS = "shop/converted_peer_authentication_own"
WEB = "selector: {matchLabels: {app: web}}"


def peer(name: str, spec: str, *, space: str = "shop", created: str = "") -> str:
    metadata = f'creationTimestamp: "{created}"' if created else ""
    return istio("PeerAuthentication", name, spec, space=space, metadata=metadata)


def mesh_with(*peers: str) -> Mesh:
    return Mesh(namespace("shop"), entry("web", labels="app: web"), *peers)


def listed(*peers: str) -> list[str]:
    return list(mesh_with(*peers).workload("shop/web").authorization_policies)


def test_the_static_policy_exists_with_the_first_object_and_goes_with_the_last() -> None:
    mesh = mesh_with()
    assert mesh.policies() == []
    mesh.apply(peer("any", "{mtls: {mode: PERMISSIVE}}", space="bank"))
    assert mesh.policies() == [STATIC]
    policy = mesh.policy(STATIC)
    assert (policy.scope, policy.action) == (pb.WORKLOAD_SELECTOR, pb.DENY)
    assert "".join(str(pb.Authorization(groups=policy.groups)).split()) == (
        "groups{rules{matches{not_principals{presence{}}}}}"
    )
    mesh.remove("PeerAuthentication", "bank", "any")
    assert mesh.policies() == []


@pytest.mark.parametrize(
    ("mesh_mode", "namespace_mode", "own_mode", "is_strict"),
    [
        ("", "", "", False),
        ("STRICT", "", "", True),
        ("STRICT", "PERMISSIVE", "", False),
        ("STRICT", "UNSET", "", True),
        ("STRICT", "DISABLE", "", False),
        ("PERMISSIVE", "STRICT", "", True),
        ("", "STRICT", "PERMISSIVE", False),
        ("", "STRICT", "DISABLE", False),
        ("", "STRICT", "UNSET", True),
        ("", "", "STRICT", True),
        ("UNSET", "UNSET", "UNSET", False),
    ],
)
def test_the_nearest_level_that_says_something_decides(
    mesh_mode: str, namespace_mode: str, own_mode: str, is_strict: bool
) -> None:
    peers = []
    if mesh_mode:
        peers.append(peer("mesh", f"{{mtls: {{mode: {mesh_mode}}}}}", space="istio-system"))
    if namespace_mode:
        peers.append(peer("general", f"{{mtls: {{mode: {namespace_mode}}}}}"))
    if own_mode:
        peers.append(peer("own", f"{{{WEB}, mtls: {{mode: {own_mode}}}}}"))
    assert listed(*peers) == ([STATIC] if is_strict else [])


def test_the_oldest_of_a_level_counts_and_the_others_are_told() -> None:
    mesh = mesh_with(
        peer("a-young", "{mtls: {mode: STRICT}}", created="2026-02-02T00:00:00Z"),
        peer("b-old", "{mtls: {mode: PERMISSIVE}}", created="2026-01-01T00:00:00Z"),
        peer("c-undated", "{mtls: {mode: STRICT}}"),
    )
    assert list(mesh.workload("shop/web").authorization_policies) == []
    assert [note.split(":")[0] for note in sorted(mesh.notes())] == [
        "PeerAuthentication shop/a-young",
        "PeerAuthentication shop/c-undated",
    ]
    mesh.remove("PeerAuthentication", "shop", "b-old")
    assert list(mesh.workload("shop/web").authorization_policies) == [STATIC]


def test_names_decide_between_objects_of_one_age() -> None:
    assert listed(peer("b", "{mtls: {mode: PERMISSIVE}}"), peer("a", "{mtls: {mode: STRICT}}")) == [STATIC]


def test_selectors_have_no_effect_in_the_root_namespace() -> None:
    mesh = mesh_with(peer("own", f"{{{WEB}, mtls: {{mode: STRICT}}}}", space="istio-system"))
    assert list(mesh.workload("shop/web").authorization_policies) == []
    assert "NoEffect" in mesh.notes()[0]


@pytest.mark.parametrize(
    ("top", "ports", "expected", "keys"),
    [
        # Not strict on top, strict ports: each port of its own, ANDed inside one match.
        (
            "PERMISSIVE",
            "9090: {mode: STRICT}, 8080: {mode: STRICT}",
            (
                "groups{rules{matches{not_principals{presence{}}destination_ports:8080}}}"
                "groups{rules{matches{not_principals{presence{}}destination_ports:9090}}}"
            ),
            [PORTS],
        ),
        # Strict on top, exempt ports: one group of clauses, and no static key.
        (
            "STRICT",
            "8080: {mode: PERMISSIVE}, 9090: {mode: DISABLE}, 7070: {mode: STRICT}",
            (
                "groups{rules{matches{not_destination_ports:8080}}rules{matches{not_destination_ports:9090}}"
                "rules{matches{not_principals{presence{}}}}}"
            ),
            [PORTS],
        ),
        ("STRICT", "8080: {mode: STRICT}", None, [STATIC]),
        ("PERMISSIVE", "8080: {mode: PERMISSIVE}", None, []),
        ("DISABLE", "8080: {mode: UNSET}", None, []),
        ("STRICT", "8080: {mode: UNSET}", None, [STATIC]),
    ],
)
def test_port_levels(top: str, ports: str, expected: str | None, keys: list[str]) -> None:
    mesh = mesh_with(peer("own", f"{{{WEB}, mtls: {{mode: {top}}}, portLevelMtls: {{{ports}}}}}"))
    assert list(mesh.workload("shop/web").authorization_policies) == keys
    assert (PORTS in mesh.policies()) == (expected is not None)
    if expected is not None:
        policy = mesh.policy(PORTS)
        assert (policy.scope, policy.action) == (pb.WORKLOAD_SELECTOR, pb.DENY)
        assert "".join(str(pb.Authorization(groups=policy.groups)).split()) == expected


def test_ports_without_a_mode_on_top_inherit_it_and_follow_its_changes() -> None:
    mesh = mesh_with(peer("own", f"{{{WEB}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}}}"))
    assert list(mesh.workload("shop/web").authorization_policies) == []
    mesh.apply(peer("mesh", "{mtls: {mode: STRICT}}", space="istio-system"))
    assert list(mesh.workload("shop/web").authorization_policies) == [PORTS]
    assert len(mesh.policy(PORTS).groups[0].rules) == 2
    mesh.apply(peer("mesh", "{mtls: {mode: PERMISSIVE}}", space="istio-system"))
    assert list(mesh.workload("shop/web").authorization_policies) == []
    assert mesh.policies() == [STATIC]


def test_peer_keys_come_after_the_policies_of_selectors() -> None:
    mesh = mesh_with(
        peer("general", "{mtls: {mode: STRICT}}"),
        istio("AuthorizationPolicy", "zz", f"{{{WEB}}}"),
    )
    assert list(mesh.workload("shop/web").authorization_policies) == ["shop/zz", STATIC]
