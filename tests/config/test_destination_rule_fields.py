"""Every field of a DestinationRule: what it becomes, what is refused, and that waypoints take it."""

from __future__ import annotations

import pytest

from config.compile.resource import DESTINATION
from tests.config.destination_rules import (
    BASE,
    NEAREST,
    POOL,
    RANDOM,
    ROUND,
    policy_of,
    rule,
)
from tests.config.support import (
    Mesh,
    entry,
    errors_of,
    istio,
    warnings_of,
)
from waypoint.state import hashing
from waypoint.state.destinations import parse_destination

# ---- fields ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loadBalancer: {simple: LEAST_REQUEST}", {}),
        ("loadBalancer: {simple: LEAST_CONN}", {}),
        (RANDOM, {"balancer": "RANDOM"}),
        (ROUND, {"balancer": "ROUND_ROBIN"}),
        ("loadBalancer: {simple: PASSTHROUGH}", {"balancer": "PASSTHROUGH"}),
        (
            "loadBalancer: {consistentHash: {httpHeaderName: X-User}}",
            {"balancer": "RING_HASH", "hash_key": {"header": "x-user"}},
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 2048}}}",
            {"balancer": "RING_HASH", "hash_key": {"source_ip": True}, "minimum_ring_size": "2048"},
        ),
        (
            "loadBalancer: {consistentHash: {httpQueryParameterName: Q, maglev: {tableSize: 251}}}",
            {"balancer": "MAGLEV", "hash_key": {"query_parameter": "Q"}, "table_size": "251"},
        ),
        (
            "loadBalancer: {consistentHash: {httpCookie: {name: c, path: /a, ttl: 0s}, minimumRingSize: 9}}",
            {
                "balancer": "RING_HASH",
                "hash_key": {"cookie": {"name": "c", "path": "/a", "ttl": "0s"}},
                "minimum_ring_size": "9",
            },
        ),
        (
            "loadBalancer: {consistentHash: {httpCookie: {name: c}, maglev: {}}}",
            {"balancer": "MAGLEV", "hash_key": {"cookie": {"name": "c"}}},
        ),
        (
            "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 30s}}",
            {
                "balancer": "ROUND_ROBIN",
                "slow_start": "30s",
                "slow_start_minimum_percent": 10.0,
                "slow_start_aggression": 1.0,
            },
        ),
        (
            "loadBalancer: {warmup: {duration: 30s, minimumPercent: 50, aggression: 1.5}}",
            {"slow_start": "30s", "slow_start_minimum_percent": 50.0, "slow_start_aggression": 1.5},
        ),
        (
            "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms, maxConnectionDuration: 1h, "
            "idleTimeout: 5m}, http: {http1MaxPendingRequests: 2, http2MaxRequests: 3, "
            "maxRequestsPerConnection: 4, maxRetries: 5, idleTimeout: 6s, h2UpgradePolicy: UPGRADE, "
            "maxConcurrentStreams: 7}}",
            {
                "connection_pool": {
                    "maximum_connections": 1,
                    "connect_timeout": "0.030s",
                    "longest_connection": "3600s",
                    "tcp_idle": "300s",
                    "maximum_pending": 2,
                    "maximum_requests": 3,
                    "requests_per_connection": 4,
                    "maximum_retries": 5,
                    "http_idle": "6s",
                    "upgrades_to_http2": True,
                    "maximum_streams": 7,
                }
            },
        ),
        (
            "connectionPool: {http: {useClientProtocol: true}}",
            {"connection_pool": {"uses_client_protocol": True}},
        ),
        (
            "outlierDetection: {}",
            {
                "outlier_detection": {
                    "consecutive_5xx": 5,
                    "consecutive_local_failures": 5,
                    "interval": "10s",
                    "base_ejection": "30s",
                    "maximum_ejection_percent": 10,
                },
                "locality": NEAREST,
            },
        ),
        (
            "outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, interval: 1s, "
            "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, baseEjectionTime: 2m, "
            "maxEjectionPercent: 100, minHealthPercent: 40}",
            {
                "outlier_detection": {
                    "consecutive_gateway_errors": 3,
                    "consecutive_local_failures": 2,
                    "splits_local_failures": True,
                    "interval": "1s",
                    "base_ejection": "120s",
                    "maximum_ejection_percent": 100,
                    "minimum_health_percent": 40,
                },
                "locality": NEAREST,
            },
        ),
        ("retryBudget: {}", {"retry_budget": {"percent": 20, "minimum_concurrency": 3}}),
        (
            "retryBudget: {percent: 12.6, minRetryConcurrency: 1}",
            {"retry_budget": {"percent": 13, "minimum_concurrency": 1}},
        ),
        ("tls: {mode: DISABLE}", {}),
        ("tls: {mode: ISTIO_MUTUAL}", {}),
        ("tls: {mode: SIMPLE, sni: a.b}", {"tls": {"server_name": "a.b", "names": ["a.b"]}}),
        (
            "tls: {mode: SIMPLE, subjectAltNames: [a, 'spiffe://b/c']}",
            {"tls": {"server_name": "web.shop.svc.cluster.local", "names": ["a", "spiffe://b/c"]}},
        ),
        (
            "tls: {mode: SIMPLE, insecureSkipVerify: true}",
            {"tls": {"server_name": "web.shop.svc.cluster.local", "is_unverified": True}},
        ),
        (
            "tls: {mode: SIMPLE, caCertificates: /ca.pem}",
            {"refusal": "tls.caCertificates (files; a Secret by credentialName is) is not supported"},
        ),
        ("tls: {mode: SIMPLE, credentialName: c}", {"refusal": "there is no Secret shop/c"}),
        ("proxyProtocol: {version: V2}", {"refusal": "proxyProtocol is not supported"}),
    ],
)
def test_every_field_of_a_policy(text: str, expected: dict[str, object]) -> None:
    assert policy_of(text) == expected


# ---- what is refused ----

BALANCE = "{host: web, trafficPolicy: {loadBalancer: "


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{}", "host: found nothing"),
        ("{host: 'a.*'}", "host: found text"),
        ("{host: web, subsets: [{name: a}, {name: a}]}", "subset"),
        ("{host: web, subsets: [{name: 'A b'}]}", "subsets[0].name"),
        ("{host: web, trafficPolicy: {loadBalancer: {simple: RANDM}}}", "did you mean RANDOM?"),
        (f"{BALANCE}{{simple: RANDOM, consistentHash: {{useSourceIp: true}}}}}}}}", "exclude"),
        (f"{BALANCE}{{consistentHash: {{}}}}}}}}", "a consistent hash needs one key"),
        (
            f"{BALANCE}{{consistentHash: {{useSourceIp: true, httpHeaderName: a}}}}}}}}",
            "a consistent hash needs one key",
        ),
        (
            f"{BALANCE}{{consistentHash: {{useSourceIp: true, ringHash: {{}}, maglev: {{}}}}}}}}}}",
            "ringHash and maglev exclude each other",
        ),
        (
            f"{BALANCE}{{consistentHash: {{useSourceIp: true, maglev: {{tableSize: 250}}}}}}}}}}",
            "250 is not prime",
        ),
        (
            f"{BALANCE}{{consistentHash: {{httpCookie: {{name: a, attributes: [{{name: b}}]}}}}}}}}}}",
            "attributes is not supported",
        ),
        (f"{BALANCE}{{zoneAwareLbSetting: {{}}}}}}}}", "zoneAwareLbSetting is not supported"),
        (f"{BALANCE}{{simple: RANDOM, warmup: {{duration: 1s}}}}}}}}", "warmup goes with"),
        (f"{BALANCE}{{warmup: {{}}}}}}}}", "warmup.duration: found nothing"),
        (
            f"{BALANCE}{{localityLbSetting: {{distribute: [{{from: a, to: {{b: 99}}}}]}}}}}}}}",
            "add up to 99",
        ),
        (
            f"{BALANCE}{{localityLbSetting: {{failover: [{{from: a/b, to: c}}]}}}}}}}}",
            "failover is between regions",
        ),
        (
            f"{BALANCE}{{localityLbSetting: {{failover: [{{from: a, to: c}}], failoverPriority: [a]}}}}}}}}",
            "exclude each other",
        ),
        ("{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1us}}}}", "1ms or more"),
        ("{host: web, trafficPolicy: {connectionPool: {http: {maxRetries: -1}}}}", "0 or more"),
        ("{host: web, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {}}}}}", "not supported"),
        ("{host: web, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}", "100 or less"),
        ("{host: web, trafficPolicy: {outlierDetection: {consecutiveErrors: 5}}}", "consecutive5xxErrors"),
        ("{host: web, trafficPolicy: {tls: {mode: MUTUAL}}}", "MUTUAL needs"),
        ("{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, credentialName: a}}}", "do not go with"),
        (
            "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 1}}, {port: {number: 1}}]}}",
            "portLevelSettings: port",
        ),
        ("{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 70000}}]}}", "65535 or less"),
        ("{host: web, trafficPolicy: {retryBudget: {percent: 101}}}", "100"),
    ],
)
def test_what_is_wrong_is_named(text: str, error: str) -> None:
    found = errors_of(istio("DestinationRule", "dr", text))
    assert found
    assert any(error in each for each in found), found
    assert "DestinationRule shop/dr: " in found[0]


def test_what_has_another_effect_than_it_seems_is_a_warning() -> None:
    found = warnings_of(
        rule(
            "connectionPool: {tcp: {tcpKeepalive: {time: 1s}}}, loadBalancer: {consistentHash: "
            "{useSourceIp: true, maglev: {tableSize: 5000011}}, localityLbSetting: {}}",
            subsets="{name: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, "
            "minimumRingSize: 100000}}}}",
        )
    )
    assert [each.partition("spec.")[2].partition(":")[0] for each in found] == [
        "trafficPolicy.connectionPool.tcp.tcpKeepalive",
        "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        "trafficPolicy.loadBalancer.localityLbSetting",
        "subsets[0].trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
    ]
    assert hashing.MAXIMUM_RING == 1 << 16
    assert hashing.MAGLEV_SIZE == 65537


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_all_versions_are_read_alike(version: str) -> None:
    assert not errors_of(rule(RANDOM).replace("io/v1", f"io/{version}"))


# ---- the other side ----


@pytest.mark.parametrize(
    "text",
    [
        rule(),
        rule(f"{ROUND}, {POOL}, outlierDetection: {{}}, retryBudget: {{}}"),
        rule("loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: 1h}, maglev: {tableSize: 251}}}"),
        rule("loadBalancer: {warmup: {duration: 1m, aggression: 2}}, tls: {mode: SIMPLE}"),
        rule("loadBalancer: {localityLbSetting: {distribute: [{from: '*', to: {'eu/*': 80, us/a/b: 20}}]}}"),
        rule(
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [version=v1, "
            "topology.istio.io/subzone]}}"
        ),
        rule(
            f"{RANDOM}, portLevelSettings: [{{port: {{number: 80}}, {POOL}}}]",
            subsets="{name: a, labels: {app: web}, trafficPolicy: {outlierDetection: {}}}, {name: b}",
        ),
    ],
)
def test_a_waypoint_takes_what_is_compiled(text: str) -> None:
    mesh = Mesh(*BASE, entry("a", labels="app: web, version: v1, mycelia.io/node: n1"), text)
    for resource in mesh.registry.resources[DESTINATION].values():
        assert parse_destination(resource.payload).key == resource.name.partition("/")[2]
