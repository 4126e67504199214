"""AuthorizationPolicy to Authorization: each row of ztunnel-facts 7.5 and config-api 8.4."""

from __future__ import annotations

import pytest

from config.settings import MeshSettings
from proto.istio import authorization_pb2 as pb
from tests.config.support import Mesh, entry, istio, namespace


def compiled(spec: str, *, space: str = "shop", metadata: str = "") -> pb.Authorization:
    mesh = Mesh(istio("AuthorizationPolicy", "p", spec, space=space, metadata=metadata))
    return mesh.policy(f"{space}/p")


def groups(spec: str) -> str:
    """The groups of a policy with this one rule, as text without whitespace."""
    text = str(pb.Authorization(groups=compiled(f"{{rules: [{spec}]}}").groups))
    return "".join(text.split())


@pytest.mark.parametrize(
    ("spec", "space", "scope"),
    [
        ("{selector: {matchLabels: {app: web}}}", "shop", pb.WORKLOAD_SELECTOR),
        ("{selector: {matchLabels: {app: web}}}", "istio-system", pb.WORKLOAD_SELECTOR),
        ("{selector: {}}", "shop", pb.NAMESPACE),
        ("{}", "shop", pb.NAMESPACE),
        ("{}", "istio-system", pb.GLOBAL),
    ],
)
def test_scope_follows_selector_and_namespace(spec: str, space: str, scope: int) -> None:
    policy = compiled(spec, space=space)
    assert policy.scope == scope
    assert policy.namespace == space


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{targetRefs: [{kind: Service, name: web}]}", "TargetNotFound: Service web: there is no such"),
        (
            "{targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: w}}",
            "TargetNotFound: Gateway w",
        ),
        ("{action: AUDIT}", "UnsupportedValue: action AUDIT is not supported by node proxies; not enforced"),
        ("{action: CUSTOM, provider: {name: x}, rules: [{}]}", "action CUSTOM is not supported"),
    ],
)
def test_policies_that_node_proxies_cannot_enforce_are_not_sent_and_said_so(spec: str, reason: str) -> None:
    mesh = Mesh(istio("AuthorizationPolicy", "p", spec))
    assert mesh.policies() == []
    assert any(reason in note for note in mesh.notes())


def test_an_empty_allow_policy_is_sent_without_groups_and_so_denies_all() -> None:
    policy = compiled("{}")
    assert (policy.action, len(policy.groups)) == (pb.ALLOW, 0)


def test_an_empty_rule_is_a_group_that_matches_all() -> None:
    policy = compiled("{action: DENY, rules: [{}]}")
    assert policy.action == pb.DENY
    assert [len(group.rules) for group in policy.groups] == [0]


def test_clauses_stand_in_the_order_to_from_when() -> None:
    rule = (
        "{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}], "
        "to: [{operation: {ports: ['80']}}], "
        "when: [{key: source.namespace, values: [c], notValues: [d]}, "
        "{key: destination.port, values: ['1']}]}"
    )
    assert groups(rule) == (
        "groups{"
        "rules{matches{destination_ports:80}}"
        'rules{matches{namespaces{exact:"a"}}matches{namespaces{exact:"b"}}}'
        'rules{matches{namespaces{exact:"c"}not_namespaces{exact:"d"}}}'
        "rules{matches{destination_ports:1}}"
        "}"
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("*", "presence{}"),
        ("*/sa/web", 'suffix:"/sa/web"'),
        ("td/ns/*", 'prefix:"td/ns/"'),
        ("td/ns/a/sa/b", 'exact:"td/ns/a/sa/b"'),
    ],
)
def test_strings_match_exactly_by_prefix_by_suffix_or_by_presence(text: str, match: str) -> None:
    rule = f"{{from: [{{source: {{principals: ['{text}']}}}}]}}"
    assert groups(rule) == f"groups{{rules{{matches{{principals{{{match}}}}}}}}}"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("notPrincipals: ['*']", "not_principals{presence{}}"),
        ("namespaces: [a], notNamespaces: ['b-*']", 'namespaces{exact:"a"}not_namespaces{prefix:"b-"}'),
        ("serviceAccounts: [web]", 'service_accounts{namespace:"shop"serviceAccount:"web"}'),
        ("notServiceAccounts: [a/web]", 'not_service_accounts{namespace:"a"serviceAccount:"web"}'),
        ("ipBlocks: [10.0.0.1]", r'source_ips{address:"\n\000\000\001"length:32}'),
        ("notIpBlocks: [10.0.0.0/8]", r'not_source_ips{address:"\n\000\000\000"length:8}'),
        ("trustDomains: [td]", 'principals{prefix:"td/"}'),
        ("trustDomains: ['prod-*', '*']", 'principals{prefix:"prod-"}principals{presence{}}'),
        (
            "principals: [a], notTrustDomains: [td]",
            'principals{exact:"a"}not_principals{prefix:"td/"}',
        ),
    ],
)
def test_sources(source: str, match: str) -> None:
    assert groups(f"{{from: [{{source: {{{source}}}}}]}}") == f"groups{{rules{{matches{{{match}}}}}}}"


def test_ipv6_blocks_have_sixteen_bytes() -> None:
    (group,) = compiled("{rules: [{from: [{source: {ipBlocks: ['fd00::/8', '::1']}}]}]}").groups
    block, host = group.rules[0].matches[0].source_ips
    assert (len(block.address), block.length) == (16, 8)
    assert (len(host.address), host.length) == (16, 128)


@pytest.mark.parametrize(
    ("key", "values", "match"),
    [
        ("source.ip", "10.0.0.1", r'source_ips{address:"\n\000\000\001"length:32}'),
        ("source.namespace", "a*", 'namespaces{prefix:"a"}'),
        ("source.principal", "a/ns/b/sa/c", 'principals{exact:"a/ns/b/sa/c"}'),
        ("destination.ip", "10.0.0.1", r'destination_ips{address:"\n\000\000\001"length:32}'),
        ("destination.port", "8080", "destination_ports:8080"),
    ],
)
def test_conditions_that_a_connection_can_answer(key: str, values: str, match: str) -> None:
    rule = f"{{when: [{{key: {key}, values: ['{values}']}}]}}"
    assert groups(rule) == f"groups{{rules{{matches{{{match}}}}}}}"
    negative = f"{{when: [{{key: {key}, notValues: ['{values}']}}]}}"
    assert groups(negative) == f"groups{{rules{{matches{{not_{match}}}}}}}"


L7_PARTS = [
    "to: [{operation: {hosts: [a]}}]",
    "to: [{operation: {notHosts: [a]}}]",
    "to: [{operation: {methods: [GET]}}]",
    "to: [{operation: {notMethods: [GET]}}]",
    "to: [{operation: {paths: [/a]}}]",
    "to: [{operation: {notPaths: [/a]}}]",
    "from: [{source: {remoteIpBlocks: [1.2.3.4]}}]",
    "from: [{source: {notRemoteIpBlocks: [1.2.3.4]}}]",
    "from: [{source: {requestPrincipals: [a/b]}}]",
    "from: [{source: {notRequestPrincipals: [a/b]}}]",
    "from: [{source: {trustDomains: ['*x']}}]",
    "from: [{source: {trustDomains: [x], principals: [y]}}]",
    "when: [{key: remote.ip, values: [1.2.3.4]}]",
    "when: [{key: connection.sni, values: [a]}]",
    "when: [{key: source.serviceAccount, values: [a/b]}]",
    "when: [{key: source.trustDomain, values: [a]}]",
    "when: [{key: 'request.headers[a]', values: [b]}]",
    "when: [{key: request.auth.principal, values: [b]}]",
]


@pytest.mark.parametrize("part", L7_PARTS)
def test_an_allow_rule_with_a_part_of_requests_is_left_out_and_told(part: str) -> None:
    mesh = Mesh(istio("AuthorizationPolicy", "p", f"{{rules: [{{{part}}}, {{}}]}}"))
    assert [len(group.rules) for group in mesh.policy("shop/p").groups] == [0]
    (note,) = mesh.notes()
    assert "UnsupportedValue: node proxies cannot judge rules[0]: " in note
    assert "less is allowed" in note


def test_an_allow_policy_of_such_rules_only_still_denies_by_default() -> None:
    policy = compiled("{rules: [{to: [{operation: {paths: [/a]}}]}]}")
    assert (policy.action, len(policy.groups)) == (pb.ALLOW, 0)


def test_a_deny_rule_loses_the_part_and_denies_more() -> None:
    policy = compiled(
        "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], "
        "to: [{operation: {ports: ['80'], paths: [/a]}}]}]}"
    )
    (group,) = policy.groups
    assert list(group.rules[0].matches[0].destination_ports) == [80]
    assert group.rules[1].matches[0].namespaces[0].exact == "a"


@pytest.mark.parametrize("part", [part for part in L7_PARTS if "principals" not in part])
def test_a_deny_clause_of_such_parts_only_becomes_an_empty_match(part: str) -> None:
    """Which never matches (facts 7.3): the rule has no effect, and the status says so."""
    mesh = Mesh(istio("AuthorizationPolicy", "p", f"{{action: DENY, rules: [{{{part}}}]}}"))
    (group,) = mesh.policy("shop/p").groups
    (clause,) = group.rules
    assert [match.ByteSize() for match in clause.matches] == [0]
    assert "more is denied" in mesh.notes()[0]


def test_a_dry_run_policy_is_sent_as_such() -> None:
    policy = compiled("{}", metadata='annotations: {istio.io/dry-run: "true"}')
    assert policy.dry_run


def test_a_dry_run_policy_is_not_sent_where_it_would_be_enforced() -> None:
    mesh = Mesh(
        istio("AuthorizationPolicy", "p", "{}", metadata='annotations: {istio.io/dry-run: "true"}'),
        settings=MeshSettings(is_dry_run_sent=False),
    )
    assert mesh.policies() == []


def test_workloads_list_the_selecting_policies_of_their_namespace_and_of_the_root_in_order() -> None:
    selector = "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}"
    mesh = Mesh(
        namespace("shop"),
        entry("web", labels="app: web"),
        entry("other", ip="10.0.0.2", labels="app: other"),
        istio("AuthorizationPolicy", "z", selector),
        istio("AuthorizationPolicy", "a", selector),
        istio("AuthorizationPolicy", "root", selector, space="istio-system"),
        istio("AuthorizationPolicy", "elsewhere", selector, space="bank"),
        istio("AuthorizationPolicy", "general", "{}"),
        istio("AuthorizationPolicy", "unsent", "{selector: {matchLabels: {app: web}}, action: AUDIT}"),
    )
    assert list(mesh.workload("shop/web").authorization_policies) == ["istio-system/root", "shop/a", "shop/z"]
    assert list(mesh.workload("shop/other").authorization_policies) == []
    mesh.remove("AuthorizationPolicy", "shop", "a")
    assert list(mesh.workload("shop/web").authorization_policies) == ["istio-system/root", "shop/z"]
