"""Judgement of requests by AuthorizationPolicies: tables from authz-cases 2 to 8, and a naive reference."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.policy_builders import RuleText, facts, message, policy
from waypoint.state.authorization import (
    Authorizer,
    Policy,
    custom_table,
    parse_authorization,
)
from waypoint.state.errors import RoutesRejected
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.rule_table import first_segment

CART = "cluster.local/ns/shop/sa/cart"


def passes(request: PolicyFacts, *policies: Policy, is_for_streams: bool = False) -> bool:
    return Authorizer(policies, is_for_streams=is_for_streams).judge(request) is None


def to(**fields: Sequence[str]) -> RuleText:
    return {"to": [fields]}


def source(**fields: Sequence[str]) -> RuleText:
    return {"from": [fields]}


def when(key: str, values: Sequence[str] = (), not_values: Sequence[str] = ()) -> RuleText:
    return {"when": [(key, values, not_values)]}


# ---- authz-cases 2: paths ----


@pytest.mark.parametrize(
    ("pattern", "path", "is_matched"),
    [
        ("/admin", "/admin", True),
        ("/admin", "/admin/", False),
        ("/admin", "/Admin", False),
        ("/admin", "/admin?x=1", True),
        ("/admin", "//admin", False),
        ("/admin", "/admin%2f", False),
        ("/allow*", "/allow", True),
        ("/allow*", "/allowx", True),
        ("/allow*", "/allow/x?y", True),
        ("/public*", "/private", False),
        ("*/suffix", "/x/suffix", True),
        ("*/suffix", "/suffix", True),
        ("*/suffix", "/x/suffix/", False),
        ("*", "/anything", True),
        ("/a/{*}/b", "/a/x/b", True),
        ("/a/{*}/b", "/a//b", False),
        ("/a/{*}/b", "/a/x/y/b", False),
        ("/a/{**}", "/a/", True),
        ("/a/{**}", "/a", False),
        ("/a/{**}", "/a/x/y?z", True),
        ("/foo/{*}/bar/{**}", "/foo/z/bar/b.txt", True),
        ("/foo/{*}/bar/{**}", "/foo/bar/b", False),
        ("/foo/{*}/bar/{**}", "/foo//bar/b", False),
        ("/store/{**}/cart", "/store//cart", True),
        ("/store/{**}/cart", "/store/a/b/cart", True),
        ("/store/{**}/cart", "/store/cart", False),
        ("/a.b/{*}", "/a.b/c", True),
        ("/a.b/{*}", "/axb/c", False),  # literal characters are no expression
        ("/proto.EchoTestService/Echo", "/proto.EchoTestService/Echo", True),
    ],
)
def test_paths(pattern: str, path: str, is_matched: bool) -> None:
    assert passes(facts(path), policy(to(paths=[pattern]))) is is_matched
    assert passes(facts(path), policy(to(paths=[pattern]), action="DENY")) is not is_matched
    assert passes(facts(path), policy(to(notPaths=[pattern]))) is not is_matched


def test_deny_comes_before_allow() -> None:
    both = (policy(to(paths=["/allow/admin"]), action="DENY"), policy(to(paths=["/allow*"]), name="a"))
    assert not passes(facts("/allow/admin?p=1"), *both)
    assert passes(facts("/allow"), *both)
    assert not passes(facts("/other"), *both)


# ---- 3: hosts, 4: methods, ports ----


@pytest.mark.parametrize(
    ("pattern", "host", "is_matched"),
    [
        ("secret.com", "Secret.com", True),
        ("SECRET.com", "secret.com", True),
        ("secret.com", "secret.com:8080", False),
        ("secret.com*", "secret.com:8080", True),
        ("secret.com:*", "secret.com:8080", True),
        ("secret.com", "secret.com.", False),
        ("*.com", "a.COM", True),
        ("*", "a", True),
    ],
)
def test_hosts(pattern: str, host: str, is_matched: bool) -> None:
    assert passes(facts(host=host), policy(to(hosts=[pattern]))) is is_matched
    assert passes(facts(host=host), policy(to(hosts=[pattern]), action="DENY")) is not is_matched


@pytest.mark.parametrize(
    ("rule", "request_", "is_matched"),
    [
        (to(methods=["GET"]), facts(method="get"), False),
        (to(methods=["GET"]), facts(method="HEAD"), False),
        (to(methods=["*"]), facts(method="PURGE"), True),
        (to(methods=["P*"]), facts(method="POST"), True),
        (to(notMethods=["GET", "HEAD"]), facts(method="POST"), True),
        (to(ports=["80"]), facts(port=80), True),
        (to(ports=["80"]), facts(port=8080), False),
        (to(notPorts=["80"]), facts(port=80), False),
        (to(paths=["/a"], methods=["GET"]), facts("/a", "POST"), False),
        ({"to": [{"paths": ["/a"]}, {"methods": ["POST"]}]}, facts("/b", "POST"), True),
        ({"to": [{"paths": ["/a"]}], "from": [{"namespaces": ["x"]}]}, facts("/a"), False),
        ({}, facts("/anything"), True),
    ],
)
def test_operations(rule: RuleText, request_: PolicyFacts, is_matched: bool) -> None:
    assert passes(request_, policy(rule)) is is_matched


# ---- 5: headers ----


@pytest.mark.parametrize(
    ("values", "lines", "allows", "denies"),
    [
        (["admin"], ["admin"], True, True),
        (["admin"], ["user", "admin"], True, True),
        (["admin"], ["admin,user"], False, False),
        (["admin,user"], ["admin", "user"], False, True),  # as an application may read it
        (["admin*"], ["admin", "user"], True, True),
        (["*user"], ["admin", "user"], True, True),
        (["admin"], [], False, False),
        (["*"], [""], True, True),
        (["*"], [], False, False),
        (["admin"], [" admin\t"], True, True),
        (["admin"], ["Admin"], False, False),
    ],
)
def test_header_lines(values: list[str], lines: list[str], allows: bool, denies: bool) -> None:
    request = facts(headers=[("x-role", line) for line in lines])
    rule = when("request.headers[X-Role]", values)
    assert passes(request, policy(rule)) is allows
    assert passes(request, policy(rule, action="DENY")) is not denies


@pytest.mark.parametrize(
    ("lines", "is_held"), [([], True), (["user"], True), (["admin"], False), (["user", "admin"], False)]
)
def test_headers_that_must_not_be(lines: list[str], is_held: bool) -> None:
    request = facts(headers=[("x-role", line) for line in lines])
    assert passes(request, policy(when("request.headers[x-role]", (), ["admin"]))) is is_held


def test_pseudo_headers_by_their_names() -> None:
    assert passes(facts(method="PUT"), policy(when("request.headers[:method]", ["PUT"])))
    assert passes(facts("/a?b=c"), policy(when("request.headers[:path]", ["/a?b=c"])))
    assert passes(facts(host="h:1"), policy(when("request.headers[:authority]", ["h:1"])))


# ---- 6: who ----


@pytest.mark.parametrize(
    ("rule", "caller", "is_matched"),
    [
        (source(principals=[CART]), f"spiffe://{CART}", True),
        (source(principals=["*"]), f"spiffe://{CART}", True),
        (source(principals=["*"]), None, False),
        (source(notPrincipals=["*"]), None, True),
        (source(principals=["*/ns/shop/sa/cart"]), "spiffe://other/ns/shop/sa/cart", True),
        (source(principals=["cluster.local/ns/shop/*"]), f"spiffe://{CART}", True),
        (source(principals=["cluster.local/ns/sho"]), f"spiffe://{CART}", False),
        (source(namespaces=["shop"]), f"spiffe://{CART}", True),
        (source(namespaces=["sh*"]), f"spiffe://{CART}", True),
        (source(namespaces=["*"]), None, False),
        (source(notNamespaces=["shop"]), f"spiffe://{CART}", False),
        (source(serviceAccounts=["shop/cart"]), f"spiffe://{CART}", True),
        (source(serviceAccounts=["shop/cart"]), "spiffe://other/ns/shop/sa/cart", True),
        (source(serviceAccounts=["shop/a.b"]), "spiffe://td/ns/shop/sa/axb", False),
        (source(serviceAccounts=["bank/cart"]), f"spiffe://{CART}", False),
        (source(trustDomains=["cluster.local"]), f"spiffe://{CART}", True),
        (source(trustDomains=["cluster*"]), f"spiffe://{CART}", True),
        (source(notTrustDomains=["other"]), f"spiffe://{CART}", True),
        (when("source.principal", [CART]), f"spiffe://{CART}", True),
        (when("source.namespace", ["shop"]), f"spiffe://{CART}", True),
        (when("source.serviceAccount", ["shop/cart"]), f"spiffe://{CART}", True),
    ],
)
def test_callers(rule: RuleText, caller: str | None, is_matched: bool) -> None:
    assert passes(facts(caller=caller), policy(rule)) is is_matched
    assert passes(facts(caller=caller), policy(rule, action="DENY")) is not is_matched


@pytest.mark.parametrize(
    ("block", "ip", "is_matched"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("fd00::/8", "fd00::1", True),
        ("0.0.0.0/0", "fd00::1", False),
        ("::/0", "10.0.0.1", False),
        ("10.0.0.0/8", "", False),
    ],
)
def test_addresses(block: str, ip: str, is_matched: bool) -> None:
    for rule in (source(ipBlocks=[block]), source(remoteIpBlocks=[block]), when("source.ip", [block])):
        assert passes(facts(ip=ip), policy(rule)) is is_matched
    assert passes(facts(ip=ip), policy(source(notIpBlocks=[block]))) is not is_matched


def test_the_remote_address_is_never_what_a_header_claims() -> None:
    request = facts(ip="10.0.0.1", headers=[("x-forwarded-for", "1.2.3.4")])
    assert not passes(request, policy(source(remoteIpBlocks=["1.2.3.4"])))


# ---- 7: credentials ----

CLAIMS: dict[str, Any] = {
    "iss": "https://issuer",
    "sub": "me",
    "aud": ["a", "b"],
    "azp": "app",
    "groups": ["g1", 7],
    "level": 5,
    "is_admin": True,
    "nested": {"deep": {"role": "boss"}},
    "dotted.name": "x",
}


@pytest.mark.parametrize(
    ("rule", "is_matched"),
    [
        (source(requestPrincipals=["https://issuer/me"]), True),
        (source(requestPrincipals=["*"]), True),
        (source(requestPrincipals=["https://issuer/*"]), True),
        (source(requestPrincipals=["*/me"]), True),
        (source(requestPrincipals=["https://issuer/you"]), False),
        (source(notRequestPrincipals=["*"]), False),
        (when("request.auth.principal", ["https://issuer/me"]), True),
        (when("request.auth.audiences", ["b"]), True),
        (when("request.auth.audiences", ["c"]), False),
        (when("request.auth.presenter", ["app"]), True),
        (when("request.auth.claims[groups]", ["g1"]), True),
        (when("request.auth.claims[groups]", ["7"]), False),
        (when("request.auth.claims[level]", ["5"]), False),
        (when("request.auth.claims[is_admin]", ["true"]), False),
        (when("request.auth.claims[nested][deep][role]", ["boss"]), True),
        (when("request.auth.claims[nested][deep][none]", ["boss"]), False),
        (when("request.auth.claims[nested][deep]", ["*"]), False),
        (when("request.auth.claims[dotted.name]", ["x"]), True),
        (when("request.auth.claims[groups]", (), ["g1"]), False),
        (when("request.auth.claims[none]", (), ["g1"]), True),
    ],
)
def test_claims_of_a_valid_token(rule: RuleText, is_matched: bool) -> None:
    assert passes(facts(claims=CLAIMS), policy(rule)) is is_matched


@pytest.mark.parametrize(
    "rule",
    [
        source(requestPrincipals=["*"]),
        when("request.auth.claims[groups]", ["*"]),
        when("request.auth.audiences", ["*"]),
        when("request.auth.presenter", ["*"]),
    ],
)
def test_without_a_token_nothing_about_one_holds(rule: RuleText) -> None:
    assert not passes(facts(headers=[("authorization", "Bearer x")]), policy(rule))


def test_a_deny_rule_for_everyone_without_a_token() -> None:
    deny = policy(source(notRequestPrincipals=["*"]), action="DENY")
    assert not passes(facts(), deny)
    assert passes(facts(claims=CLAIMS), deny)


# ---- 8: logic ----


def test_no_policy_allows_and_an_allow_policy_without_rules_denies() -> None:
    assert passes(facts())
    assert not passes(facts(), policy())
    assert passes(facts(), policy({}))
    assert passes(facts(), policy({}, action="AUDIT"))
    assert passes(facts(), policy(to(paths=["/x"]), action="DENY"))


def test_one_allow_policy_of_many_is_enough() -> None:
    many = [policy(to(paths=[f"/{n}"]), name=f"p{n}") for n in range(5)]
    assert passes(facts("/3"), *many)
    assert not passes(facts("/9"), *many)


def test_connections_know_no_requests() -> None:
    connection = PolicyFacts(source_ip="10.0.0.1", destination=("10.96.0.1", 80), server_name="a.com")
    allow = policy(to(methods=["GET"], ports=["80"]))
    assert not passes(connection, allow, is_for_streams=True)
    assert passes(connection, policy(to(ports=["80"])), is_for_streams=True)
    deny = policy(to(methods=["GET"], ports=["80"]), action="DENY")
    assert not passes(connection, deny, is_for_streams=True)
    assert passes(connection, policy(to(methods=["GET"], ports=["81"]), action="DENY"), is_for_streams=True)
    assert passes(connection, policy(when("connection.sni", ["*.com"])), is_for_streams=True)
    assert not passes(connection, policy(when("connection.sni", ["b.com"])), is_for_streams=True)


@pytest.mark.parametrize(
    "rule",
    [
        to(notMethods=["POST"]),
        to(notPaths=["/a"]),
        to(notHosts=["a"]),
        {"to": [{"ports": ["80"]}, {"methods": ["GET"]}]},
        source(notRequestPrincipals=["*"]),
        when("request.headers[x]", (), ["a"]),
        when("request.auth.claims[x]", (), ["a"]),
    ],
)
def test_no_absence_of_something_about_requests_allows_a_connection(rule: RuleText) -> None:
    connection = PolicyFacts(source_ip="10.0.0.1", destination=("10.96.0.1", 80))
    assert not passes(connection, policy(rule), is_for_streams=True)
    assert passes(connection, policy(rule, {}), is_for_streams=True)
    assert Authorizer([policy(rule, action="AUDIT")], is_for_streams=True).audit.all(connection) == []
    refusal = Authorizer([policy(rule)], is_for_streams=True).judge(connection)
    assert refusal is not None
    assert refusal.policy.endswith("rules[0] is about requests, and this is none")


def test_custom_policies_are_found_apart_from_the_others() -> None:
    enforced = policy(to(paths=["/a*"]), action="CUSTOM", name="c", provider="judge")
    tried = policy({}, action="CUSTOM", name="d", provider="judge", is_dry_run=True)
    others = [policy({}, action=action, name=action.lower()) for action in ("ALLOW", "DENY", "AUDIT")]
    table = custom_table([enforced, tried, *others])
    assert table.first(facts("/b")) is None
    found = table.first(facts("/ab"))
    assert found is not None
    assert (found.policy.name, found.policy.provider) == ("c", "judge")
    assert [each.name for each in custom_table([enforced, tried], is_dry_run=True).policies] == ["d"]
    connection = PolicyFacts(source_ip="10.0.0.1", destination=("10.96.0.1", 80))
    assert custom_table([enforced], is_for_streams=True).first(connection) is not None
    assert passes(facts("/a"), enforced)  # it is no DENY


def test_a_refusal_names_policy_rule_and_clause() -> None:
    deny = policy(
        {"to": [{"paths": ["/x"]}, {"paths": ["/a"]}], "from": [{"namespaces": ["shop"]}]}, action="DENY"
    )
    refusal = Authorizer([deny]).judge(facts("/a"))
    assert refusal is not None
    assert refusal.matched == "ns[shop]-policy[p]-rule[0]"
    assert refusal.policy == "AuthorizationPolicy/shop/p rules[0] from[0] to[1]"
    nobody = Authorizer(
        [policy(name="e"), policy(to(paths=["/b"]), when("source.ip", ["9.9.9.9"]), name="f")]
    )
    refusal = nobody.judge(facts("/a"))
    assert refusal is not None
    assert refusal.matched == "none"
    assert refusal.policy == (
        "no ALLOW rule holds: AuthorizationPolicy/shop/e has no rules; "
        "AuthorizationPolicy/shop/f rules[0] no to; AuthorizationPolicy/shop/f rules[1] no when[0]"
    )


def test_audits_are_all_found_in_order() -> None:
    audits = [policy(to(paths=["/a*"]), {}, name=name, action="AUDIT") for name in ("x", "y")]
    found = Authorizer(audits).audit.all(facts("/abc"))
    assert [(rule.policy.name, rule.index) for rule in found] == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (when("request.nonsense", ["a"]), "rules[0]: a policy's key 'request.nonsense' is not known"),
        (source(ipBlocks=["10.0.0.999"]), "rules[0]: '10.0.0.999' is no address or network"),
        (to(ports=["eighty"]), "rules[0]: eighty: not all of these are ports"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_its_place(rule: RuleText, reason: str) -> None:
    with pytest.raises(RoutesRejected) as caught:
        policy(rule)
    assert caught.value.text == reason


def test_bytes_that_are_no_policy_or_another_are_refused() -> None:
    with pytest.raises(RoutesRejected):
        parse_authorization("shop/p", b"\xff\xff")
    with pytest.raises(RoutesRejected):
        parse_authorization("shop/q", message({}).SerializeToString())


@pytest.mark.parametrize(
    ("path", "segment"), [(b"/a/b", b"/a/"), (b"/a", b""), (b"/", b""), (b"", b""), (b"//x", b"//")]
)
def test_first_segments(path: bytes, segment: bytes) -> None:
    assert first_segment(path) == segment


# ---- a reference written from the documentation, without any index ----


def reference(request: PolicyFacts, policies: Sequence[tuple[str, Sequence[RuleText]]]) -> bool:
    def text(pattern: str, value: str) -> bool:
        if pattern == "*":
            return True
        if pattern.startswith("*"):
            return value.endswith(pattern[1:])
        if pattern.endswith("*"):
            return value.startswith(pattern[:-1])
        return pattern == value

    def one(name: str, pattern: str) -> bool:
        identity = request.identity
        match name:
            case "paths":
                return text(pattern, request.path.decode())
            case "methods":
                return text(pattern, request.method.decode())
            case "hosts":
                return text(pattern.lower(), request.authority.decode().lower())
            case "principals":
                return identity is not None and text(pattern, identity.principal)
            case "namespaces":
                return identity is not None and text(pattern, identity.namespace)
            case _:
                return ipaddress.ip_address(request.source_ip) in ipaddress.ip_network(pattern)

    def fields_hold(fields: Any) -> bool:
        for name, values in fields.items():
            if name.startswith("not"):
                plain = name[3].lower() + name[4:]
                if any(one(plain, value) for value in values):
                    return False
            elif not any(one(name, value) for value in values):
                return False
        return True

    def header_holds(key: str, values: Sequence[str], not_values: Sequence[str]) -> bool:
        name = key.partition("[")[2][:-1].lower().encode()
        lines = [value.decode() for each, value in request.headers if each == name]
        if values and not any(text(pattern, line) for pattern in values for line in lines):
            return False
        return not any(text(pattern, line) for pattern in not_values for line in lines)

    def rule_holds(rule: RuleText) -> bool:
        return all(
            not rule.get(part) or any(fields_hold(fields) for fields in rule[part]) for part in ("from", "to")
        ) and all(header_holds(*condition) for condition in rule.get("when", ()))

    if any(action == "DENY" and any(map(rule_holds, rules)) for action, rules in policies):
        return False
    allows = [rules for action, rules in policies if action == "ALLOW"]
    return not allows or any(rule_holds(rule) for rules in allows for rule in rules)


PATHS = ["/", "/a", "/a/b", "/a/b/c", "/b/x", "/ab", "//a"]
WORDS = {
    "paths": ["/a", "/a/b", "/a/*", "/a*", "/b/*", "*/b", "*", "/", "//*"],
    "methods": ["GET", "POST", "*", "G*"],
    "hosts": ["web", "WEB", "*.com", "w*"],
    "principals": [CART, "cluster.local/ns/bank/sa/till", "*", "cluster.local/*", "*/sa/till"],
    "namespaces": ["shop", "bank", "*", "b*"],
    "ipBlocks": ["10.0.0.0/24", "10.0.1.1", "fd00::/8"],
}


def _fields(names: Sequence[str]) -> st.SearchStrategy[dict[str, list[str]]]:
    spelt = list(names) + ["not" + name[0].upper() + name[1:] for name in names]

    def values(name: str) -> st.SearchStrategy[list[str]]:
        plain = name if name in WORDS else name[3].lower() + name[4:]
        return st.lists(st.sampled_from(WORDS[plain]), min_size=1, max_size=3)

    chosen = st.lists(st.sampled_from(spelt), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda found: st.fixed_dictionaries({name: values(name) for name in found}))


RULES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(_fields(["principals", "namespaces", "ipBlocks"]), min_size=1, max_size=2),
        "to": st.lists(_fields(["paths", "methods", "hosts"]), min_size=1, max_size=2),
        "when": st.lists(
            st.tuples(
                st.sampled_from(["request.headers[X-A]", "request.headers[x-b]"]),
                st.lists(st.sampled_from(["1", "2*", "*"]), max_size=2),
                st.lists(st.sampled_from(["1", "*3"]), max_size=1),
            ),
            min_size=1,
            max_size=2,
        ),
    },
)
REQUESTS = st.builds(
    facts,
    st.sampled_from(PATHS),
    st.sampled_from(["GET", "POST", "get"]),
    host=st.sampled_from(["web", "Web", "a.com"]),
    headers=st.lists(
        st.tuples(st.sampled_from(["x-a", "x-b", "accept"]), st.sampled_from(["1", "23"])), max_size=1
    ),
    caller=st.sampled_from(
        [None, f"spiffe://{CART}", "spiffe://cluster.local/ns/bank/sa/till", "spiffe://td/ns/b/sa/c"]
    ),
    ip=st.sampled_from(["10.0.0.7", "10.0.1.1", "fd00::1"]),
)
POLICIES = st.lists(
    st.tuples(st.sampled_from(["ALLOW", "DENY"]), st.lists(RULES, min_size=1, max_size=3)), max_size=5
)


@given(REQUESTS, POLICIES)
def test_any_policies_judge_as_the_documentation_says(
    request_: PolicyFacts, policies: list[tuple[str, list[RuleText]]]
) -> None:
    made = [policy(*rules, action=action, name=f"p{n}") for n, (action, rules) in enumerate(policies)]
    assert passes(request_, *made) is reference(request_, policies)
