"""DestinationRules and services' own preferences to how waypoints treat destinations: config-api 3, 11."""

from __future__ import annotations

import pytest

from config.compile.resource import DESTINATION
from proto.mycelia import waypoint_pb2 as pb
from tests.config.destination_rules import (
    BASE,
    NEAREST,
    NEW,
    OLD,
    POOL,
    RANDOM,
    ROUND,
    USE,
    WEB,
    policy_of,
    rule,
)
from tests.config.support import (
    Mesh,
    entry,
    istio,
    namespace,
    parent,
    replica,
    service,
    waypoint,
)
from waypoint.state.destinations import parse_destination

# ---- precedence ----


def test_a_ports_policy_replaces_the_general_one_whole() -> None:
    ports = "portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 1}}}]"
    found = Mesh(*BASE, rule(f"{RANDOM}, {POOL}, retryBudget: {{}}, {ports}")).destination(WEB)
    assert found.policy.balancer == pb.TrafficPolicy.RANDOM
    own = found.port_policies[80]
    assert own.balancer == pb.TrafficPolicy.LEAST_REQUEST
    assert (own.connection_pool.maximum_connections, own.connection_pool.maximum_requests) == (1, 0)
    assert own.HasField("retry_budget")  # nothing that a port could say


def test_a_subset_overrides_part_by_part_what_holds_for_its_port() -> None:
    ports = (
        "portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {}}]"
    )
    subsets = (
        "{name: plain}, {name: own, trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}}, "
        "{name: port, trafficPolicy: {portLevelSettings: [{port: {number: 81}, connectionPool: {}}]}}"
    )
    found = Mesh(*BASE, rule(f"{RANDOM}, {POOL}, {ports}", subsets=subsets)).destination(WEB)
    plain, own, port = found.subsets
    assert not plain.HasField("policy")
    assert not plain.port_policies
    assert (own.policy.balancer, own.policy.connection_pool.maximum_retries) == (pb.TrafficPolicy.RANDOM, 1)
    assert own.policy.connection_pool.maximum_requests == 0  # the pool is replaced as one
    assert own.port_policies[80].balancer == pb.TrafficPolicy.ROUND_ROBIN
    assert own.port_policies[80].HasField("outlier_detection")
    assert own.port_policies[80].connection_pool.maximum_retries == 1
    assert port.policy.balancer == pb.TrafficPolicy.RANDOM
    assert port.policy.connection_pool.maximum_requests == 7
    assert port.port_policies[81].balancer == pb.TrafficPolicy.LEAST_REQUEST
    assert port.port_policies[80].HasField("outlier_detection")
    parsed = parse_destination(found.SerializeToString())
    assert parsed.policy_for(80, "own").pool.maximum_retries == 1


@pytest.mark.parametrize(
    ("general", "subset", "refusal"),
    [
        ("tls: {mode: SIMPLE, credentialName: c}", RANDOM, "there is no Secret shop/c"),
        ("tls: {mode: SIMPLE, credentialName: c}", "tls: {mode: DISABLE}", ""),
        (RANDOM, "tls: {mode: MUTUAL, credentialName: c}", "there is no Secret shop/c"),
        ("proxyProtocol: {}", "tls: {mode: SIMPLE}", "proxyProtocol is not supported"),
    ],
)
def test_what_is_refused_follows_the_policy_that_holds(general: str, subset: str, refusal: str) -> None:
    found = Mesh(*BASE, rule(general, subsets=f"{{name: a, trafficPolicy: {{{subset}}}}}")).destination(WEB)
    assert found.subsets[0].policy.refusal == refusal


# ---- which rules hold ----


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([rule(RANDOM, space="edge", host="web.shop.svc.cluster.local"), rule(ROUND)], "RANDOM"),
        ([rule(RANDOM), rule(ROUND, space="istio-system", host="web.shop.svc.cluster.local")], "RANDOM"),
        ([rule(RANDOM, space="istio-system", host="'*.shop.svc.cluster.local'".strip("'"))], "RANDOM"),
        ([rule(RANDOM, space="bank", host="web.shop.svc.cluster.local")], "LEAST_REQUEST"),
        ([rule(RANDOM, host="*.shop.svc.cluster.local"), rule(ROUND, name="z")], "ROUND_ROBIN"),
        (
            [rule(RANDOM, host="*.cluster.local"), rule(ROUND, host="*.svc.cluster.local", name="z")],
            "ROUND_ROBIN",
        ),
        ([rule(RANDOM, host="*")], "RANDOM"),
        ([rule(RANDOM, name="z", created=OLD), rule(ROUND, name="a", created=NEW)], "RANDOM"),
        ([rule(RANDOM, name="z"), rule(ROUND, name="a")], "ROUND_ROBIN"),
        ([rule(RANDOM, more="exportTo: ['.']")], "LEAST_REQUEST"),
        ([rule(RANDOM, more="exportTo: [edge]")], "RANDOM"),
        ([rule(RANDOM, more="workloadSelector: {matchLabels: {a: b}}")], "LEAST_REQUEST"),
        ([rule(RANDOM, host="WEB")], "RANDOM"),
        ([rule(RANDOM, host="web.shop")], "LEAST_REQUEST"),
    ],
)
def test_the_nearest_namespace_then_the_most_specific_host_then_age(rules: list[str], expected: str) -> None:
    mesh = Mesh(
        waypoint(space="edge", allowed="from: All"),
        replica(space="edge"),
        service("web", "ports: [{port: 80}]", labels=f"{USE}, istio.io/use-waypoint-namespace: edge"),
        *rules,
    )
    found = mesh.destination(WEB, waypoints="edge").policy.balancer
    assert pb.TrafficPolicy.Balancer.Name(found) == expected


def test_rules_for_one_host_are_put_together() -> None:
    mesh = Mesh(
        *BASE,
        rule(name="a", subsets="{name: x, labels: {app: a}}", created=OLD),
        rule(RANDOM, name="b", subsets="{name: x, labels: {app: b}}, {name: y}", created=NEW),
        rule(ROUND, name="c"),
    )
    found = mesh.destination(WEB)
    assert found.policy.balancer == pb.TrafficPolicy.RANDOM
    assert [subset.name for subset in found.subsets] == ["x", "y"]
    assert mesh.conditions("DestinationRule", "a", "Accepted") == [
        "Accepted=True Accepted: Service shop/web: holds at waypoints of namespace shop"
    ]
    assert mesh.conditions("DestinationRule", "b", "Accepted") == [
        "Accepted=True Accepted: Service shop/web: holds at waypoints of namespace shop; "
        "subset x is there already in an older rule"
    ]
    assert mesh.conditions("DestinationRule", "c", "Accepted") == [
        "Accepted=True Accepted: Service shop/web: holds at waypoints of namespace shop; "
        "its trafficPolicy has no effect, that of DestinationRule shop/b is older"
    ]


def test_waypoints_of_two_namespaces_may_see_a_service_differently() -> None:
    mesh = Mesh(
        *BASE,
        waypoint(space="bank"),
        replica(space="bank", ip="10.9.0.2"),
        service("till", "ports: [{port: 80}]", labels=USE, space="bank"),
        istio(
            "HTTPRoute",
            "r",
            f"{{{parent('till')}, rules: [{{backendRefs: [{{name: web, namespace: shop, port: 80}}]}}]}}",
            space="bank",
        ),
        rule(RANDOM),
        rule(ROUND, space="bank", host="web.shop.svc.cluster.local", more="exportTo: ['.']"),
    )
    assert mesh.destinations() == [
        "bank/bank/till.bank.svc.cluster.local",
        f"bank/{WEB}",
        f"shop/{WEB}",
    ]
    assert mesh.destination(WEB).policy.balancer == pb.TrafficPolicy.RANDOM
    assert mesh.destination(WEB, waypoints="bank").policy.balancer == pb.TrafficPolicy.ROUND_ROBIN
    resources = mesh.registry.resources[DESTINATION]
    assert resources[f"bank/{WEB}"].waypoints == ("bank/wp",)
    assert mesh.conditions("DestinationRule", "dr", "Accepted")[0] == (
        "Accepted=True Accepted: Service shop/web: holds at waypoints of namespace bank"
    )


# ---- which services ----


def test_destinations_are_what_is_served_and_what_routes_lead_to() -> None:
    route = istio(
        "HTTPRoute",
        "r",
        f"{{{parent()}, rules: [{{backendRefs: [{{name: v1, port: 80}}], filters: [{{type: RequestMirror, "
        "requestMirror: {backendRef: {name: v2, port: 80}}}]}]}",
    )
    mesh = Mesh(*BASE, service("idle", "ports: [{port: 80}]"), route)
    names = ["v1", "v2", "web"]
    assert mesh.destinations() == [f"shop/shop/{name}.shop.svc.cluster.local" for name in names]
    delta = mesh.remove("HTTPRoute", "shop", "r")
    assert sorted(name for type_, name in delta.removed if type_ == DESTINATION) == [
        "shop/shop/v1.shop.svc.cluster.local",
        "shop/shop/v2.shop.svc.cluster.local",
    ]
    mesh.remove("Gateway", "shop", "wp")
    assert mesh.destinations() == []


def test_a_service_entry_without_resolution_passes_through() -> None:
    out = istio(
        "ServiceEntry",
        "out",
        "{hosts: [a.example], resolution: NONE, addresses: [10.8.0.0/16], "
        "ports: [{number: 80, name: http, protocol: HTTP}]}",
        metadata=f"labels: {{{USE}}}",
    )
    found = Mesh(*BASE, out, rule(RANDOM, host="a.example")).destination("shop/a.example")
    assert found.policy.balancer == pb.TrafficPolicy.PASSTHROUGH


# ---- subsets ----


def subset_of(mesh: Mesh) -> list[str]:
    (subset,) = mesh.destination(WEB).subsets
    return [uid.rpartition("/")[2] for uid in subset.workloads]


def test_subsets_follow_the_workloads() -> None:
    blue = "app: web, color: blue, mycelia.io/node: n1"
    mesh = Mesh(
        *BASE,
        rule(subsets="{name: blue, labels: {color: blue}}"),
        entry("a", labels=blue),
        entry("b", ip="10.0.0.2", labels="app: web, color: green, mycelia.io/node: n1"),
        entry("other", ip="10.0.0.3", labels="app: db, color: blue, mycelia.io/node: n1"),
    )
    assert subset_of(mesh) == ["a"]
    mesh.apply(entry("b", ip="10.0.0.2", labels=blue))
    assert subset_of(mesh) == ["a", "b"]
    mesh.remove("WorkloadEntry", "shop", "a")
    assert subset_of(mesh) == ["b"]
    mesh.apply(service("web", "selector: {app: db}, ports: [{name: http, port: 80}]", labels=USE))
    assert subset_of(mesh) == ["other"]


def test_workloads_cost_nothing_where_no_rule_names_them() -> None:
    mesh = Mesh(*BASE, rule(RANDOM))
    before = mesh.registry.compiled
    delta = mesh.apply(entry("a", labels="app: web, mycelia.io/node: n1"))
    assert mesh.registry.compiled - before == 1
    assert not any(each.type_url == DESTINATION for each in delta.upserts)


def test_a_rule_costs_what_it_concerns() -> None:
    others = [service(f"s{number}", "ports: [{port: 80}]", labels=USE) for number in range(50)]
    mesh = Mesh(*BASE, *others)
    before = mesh.registry.compiled
    delta = mesh.apply(rule(RANDOM))
    assert (mesh.registry.compiled - before, len(delta.upserts)) == (1, 1)
    before = mesh.registry.compiled
    assert not mesh.apply(rule(RANDOM, name="idle", host="nobody.example"))
    assert mesh.registry.compiled == before
    assert len(mesh.apply(rule(ROUND, name="wide", host="*.shop.svc.cluster.local")).upserts) == 50


# ---- localities ----


def locality_of(text: str, *others: str) -> dict[str, object] | None:
    found = policy_of(text, *others).get("locality")
    assert found is None or isinstance(found, dict)
    return found


def scopes(*names: str) -> dict[str, object]:
    return {"terms": [{"same": name} for name in names]}


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("", RANDOM, None),
        ("", "outlierDetection: {}", NEAREST),
        ("trafficDistribution: PreferClose", RANDOM, scopes("NETWORK", "REGION", "ZONE")),
        (
            "trafficDistribution: PreferSameNode",
            "outlierDetection: {}",
            scopes("NETWORK", "REGION", "ZONE", "SUBZONE", "NODE"),
        ),
        (
            "internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            "loadBalancer: {localityLbSetting: {enabled: false}}",
            {**scopes("NODE"), "is_strict": True},
        ),
        (
            "trafficDistribution: PreferClose",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}",
            {},
        ),
        ("trafficDistribution: PreferClose", "loadBalancer: {localityLbSetting: {}}", {}),
        (
            "",
            "loadBalancer: {localityLbSetting: {distribute: [{from: 'eu/*', to: {'eu/a': 80, us: 20}}]}}",
            {"distributions": [{"from": "eu/*", "to": {"eu/a": 80, "us": 20}}]},
        ),
        (
            "",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}",
            {**NEAREST, "failovers": [{"from": "eu", "to": "us"}]},
        ),
        ("", "loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}", {}),
        (
            "",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: "
            "[topology.istio.io/network, topology.kubernetes.io/region, team, kubernetes.io/hostname]}}",
            scopes("NETWORK", "REGION"),
        ),
    ],
)
def test_localities_by_the_rule_then_by_the_service(
    spec: str, text: str, expected: dict[str, object] | None
) -> None:
    web = service("web", f"ports: [{{name: http, port: 80}}]{', ' + spec if spec else ''}", labels=USE)
    assert locality_of(text, web) == expected


def test_a_namespaces_preference_reaches_destinations() -> None:
    annotation = "networking.istio.io/traffic-distribution: PreferClose"
    mesh = Mesh(*BASE, namespace("shop", annotations=annotation))
    assert len(mesh.destination(WEB).policy.locality.terms) == 3
    mesh.apply(namespace("shop"))
    assert not mesh.destination(WEB).HasField("policy")


def test_priorities_by_labels_name_the_workloads_that_have_them() -> None:
    mesh = Mesh(
        *BASE,
        rule(
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: "
            "[version=v1, topology.kubernetes.io/region=eu]}}"
        ),
        entry("a", labels="app: web, version: v1, mycelia.io/node: n1", spec="locality: eu/z"),
        entry("b", ip="10.0.0.2", labels="app: web, mycelia.io/node: n1"),
    )

    def named() -> list[list[str]]:
        terms = mesh.destination(WEB).policy.locality.terms
        return [[uid.rpartition("/")[2] for uid in term.workloads.uids] for term in terms]

    assert named() == [["a"], ["a"]]
    mesh.apply(entry("b", ip="10.0.0.2", labels="app: web, mycelia.io/node: n1", spec="locality: eu"))
    assert named() == [["a"], ["a", "b"]]


# ---- conditions ----


def test_conditions_say_where_a_rule_holds_and_what_is_not_supported() -> None:
    mesh = Mesh(
        *BASE,
        rule(
            "tls: {mode: MUTUAL, credentialName: c}, proxyProtocol: {}, outlierDetection: {}, "
            "loadBalancer: {localityLbSetting: {failoverPriority: [team]}}",
            name="tls",
        ),
        rule(RANDOM, name="nobody", host="nobody.example"),
        rule(RANDOM, name="idle", host="v1"),
        rule(RANDOM, name="wide", host="*.shop.svc.cluster.local"),
        rule(RANDOM, name="alien", host="web.shop.svc.cluster.local", space="bank"),
        rule(RANDOM, name="sidecar", more="workloadSelector: {matchLabels: {a: b}}"),
    )
    assert mesh.conditions("DestinationRule", "tls") == [
        "Accepted=True Accepted: Service shop/web: holds at waypoints of namespace shop",
        "PartiallyInvalid=True UnsupportedValue: trafficPolicy: there is no Secret shop/c; requests that it "
        "is for get 503; trafficPolicy: proxyProtocol is not supported; requests that it is for get 503; "
        "trafficPolicy: failoverPriority is used up to label team, whose value at "
        "waypoints is unknown",
    ]
    assert mesh.conditions("DestinationRule", "nobody") == [
        "Accepted=False NoMatchingParent: no service has the host nobody.example"
    ]
    assert mesh.conditions("DestinationRule", "idle") == [
        "Accepted=False AncestorNotBound: Service shop/v1: no waypoint sends there: nothing applies the rule"
    ]
    assert "Accepted=False Conflicted: Service shop/web: has no effect at waypoints of namespace shop: " in (
        "\n".join(mesh.conditions("DestinationRule", "wide"))
    )
    assert "Conflicted" in mesh.conditions("DestinationRule", "alien")[0]
    assert "workloadSelector" in mesh.conditions("DestinationRule", "sidecar")[0]
