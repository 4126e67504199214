"""EnvoyFilter: the recipe for local rate limits is understood whole, everything else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from config.compile.resource import RATE_LIMIT
from tests.config.support import Mesh, errors_of, replica, service, waypoint
from tests.config.test_rate_limit_policy import limits, sent

WHOLE = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
LOCAL = "envoy.filters.http.local_ratelimit"
TYPE = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
WEB = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")


def config(**more: Any) -> dict[str, Any]:
    return {
        "stat_prefix": "http_local_rate_limiter",
        "token_bucket": {"max_tokens": 10, "tokens_per_fill": 5, "fill_interval": "60s"},
        "filter_enabled": WHOLE,
        "filter_enforced": WHOLE,
        **more,
    }


def patch(value: Any = None, *, name: str = LOCAL, **more: Any) -> dict[str, Any]:
    typed = value if value is not None else {"@type": TYPE, **config()}
    made = {
        "applyTo": "HTTP_FILTER",
        "match": {"context": "SIDECAR_INBOUND"},
        "patch": {"operation": "INSERT_BEFORE", "value": {"name": name, "typed_config": typed}},
    }
    return {**made, **more}


def envoy_filter(*patches: dict[str, Any], **spec: Any) -> str:
    given = {"targetRefs": [{"kind": "Service", "name": "web"}], "configPatches": list(patches), **spec}
    document = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "calm", "namespace": "shop"},
        "spec": {key: value for key, value in given.items() if value is not None},
    }
    return yaml.safe_dump(document)


def test_the_recipe_becomes_a_limit() -> None:
    headers = [{"append": False, "header": {"key": "x-local-rate-limit", "value": "true"}}]
    struct = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": TYPE,
        "value": config(response_headers_to_add=headers),
    }
    hcm = {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}}
    match = {"context": "SIDECAR_INBOUND", "listener": hcm}
    mesh = Mesh(waypoint(), replica(), WEB, envoy_filter(patch(struct, match=match)))
    found = sent(mesh)["shop/EnvoyFilter:calm"]
    assert found.name == "EnvoyFilter:calm"
    assert list(found.attachment.services) == ["shop/web.shop.svc.cluster.local"]
    (limit,) = found.limits
    assert (limit.requests, limit.per.seconds, limit.burst, list(limit.keys)) == (5, 60, 10, [])
    assert not found.tells
    assert [(each.name, each.value) for each in found.answer_headers] == [("x-local-rate-limit", "true")]


def test_the_plain_type_does_as_well_and_stands_beside_a_policy_of_its_name() -> None:
    plain = patch({"@type": TYPE, **config(enable_x_ratelimit_headers="DRAFT_VERSION_03")})
    policy = limits("targetRefs: [{kind: Service, name: web}], limits: [{requests: 1, per: 1s}]")
    mesh = Mesh(waypoint(), replica(), WEB, envoy_filter(plain), policy)
    assert sent(mesh).keys() == {"shop/calm", "shop/EnvoyFilter:calm"}
    assert sent(mesh)["shop/EnvoyFilter:calm"].tells
    assert mesh.conditions("EnvoyFilter", "calm")
    mesh.remove("EnvoyFilter", "shop", "calm")
    assert mesh.registry.resources[RATE_LIMIT].keys() == {"shop/calm"}


def typed(**more: Any) -> dict[str, Any]:
    return patch({"@type": TYPE, **config(**more)})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (envoy_filter(patch(name="envoy.filters.http.lua")), "instead: a FilterPolicy"),
        (envoy_filter(patch(name="envoy.filters.http.ratelimit")), "shared limits"),
        (envoy_filter(patch(name="envoy.filters.http.ext_authz")), "action CUSTOM"),
        (
            envoy_filter(patch(name="envoy.filters.http.gzip")),
            "found HTTP_FILTER INSERT_BEFORE envoy",
        ),
        (envoy_filter({"applyTo": "CLUSTER", "patch": {"operation": "MERGE"}}), "found CLUSTER MERGE"),
        (envoy_filter({"applyTo": "CLUSTER", "patch": {"operation": "MERGE"}}), "a DestinationRule"),
        (envoy_filter(patch(applyTo="NETWORK_FILTER")), "RateLimitPolicy with connections"),
        (envoy_filter({"applyTo": "HTTP_ROUTE"}), "HTTPRoute"),
        (envoy_filter({}), "found nothing"),
        (envoy_filter(typed(), {"applyTo": "CLUSTER"}), "found CLUSTER"),
        (envoy_filter(typed(filter_enabled={})), "filter_enabled is not 100 %"),
        (envoy_filter(typed(filter_enforced={"default_value": {"numerator": 50}})), "filter_enforced"),
        (envoy_filter(typed(descriptors=[{"entries": []}])), "limits with by and match"),
        (envoy_filter(typed(status={"code": 503})), "the answer is 429"),
        (envoy_filter(typed(local_rate_limit_per_downstream_connection=True)), "per_downstream_connection"),
        (envoy_filter(typed(token_bucket={"max_tokens": 1, "fill_interval": "10ms"})), "50ms"),
        (envoy_filter(typed(rate_limits=[])), "rate_limits"),
        (
            envoy_filter(typed(response_headers_to_add=[{"header": {"key": "content-length"}}])),
            "a header's name",
        ),
        (
            envoy_filter(typed(response_headers_to_add=[{"header": {"key": "a", "value": "%"}}])),
            "without %",
        ),
        (envoy_filter(patch({"@type": TYPE, "stat_prefix": "x"})), "no token_bucket"),
        (envoy_filter(patch({"@type": "type.googleapis.com/other"})), "is of type type.googleapis.com/other"),
        (envoy_filter(patch(match={"context": "SIDECAR_OUTBOUND"})), "match.context is SIDECAR_OUTBOUND"),
        (envoy_filter(patch(match={"listener": {"portNumber": 80}})), "one listener"),
        (envoy_filter(patch(match={"proxy": {"proxyVersion": ".*"}})), "match.proxy"),
        (envoy_filter(patch(match={"cluster": {}})), "match.cluster"),
        (envoy_filter(typed(), targetRefs=None), "only targetRefs lead to a waypoint"),
        (envoy_filter(typed(), targetRefs=None, workloadSelector={"labels": {"a": "b"}}), "workloadSelector"),
        (envoy_filter(), "at least 1"),
    ],
)
def test_everything_else_is_refused_by_name(text: str, complaint: str) -> None:
    errors = errors_of(text)
    assert errors
    assert complaint in " ".join(errors)
    assert all("EnvoyFilter shop/calm" in error for error in errors)


def test_the_documented_example_is_good() -> None:
    text = Path("docs/configuration.md").read_text()
    example = text.split("### EnvoyFilter", 1)[1].split("```yaml\n", 1)[1].split("```", 1)[0]
    assert errors_of(example) == []
