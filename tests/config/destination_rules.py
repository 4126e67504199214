"""DestinationRules in short, and a mesh for them."""

from __future__ import annotations

from google.protobuf import json_format

from tests.config.support import (
    Mesh,
    istio,
    replica,
    service,
    waypoint,
)

USE = "istio.io/use-waypoint: wp"
WEB = "shop/web.shop.svc.cluster.local"
BASE = (
    waypoint(),
    replica(),
    service("web", "selector: {app: web}, ports: [{name: http, port: 80}]", labels=USE),
    service("v1", "ports: [{port: 80}]"),
    service("v2", "ports: [{port: 80}]"),
)
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"


def rule(
    policy: str = "",
    *,
    name: str = "dr",
    host: str = "web",
    subsets: str = "",
    more: str = "",
    space: str = "shop",
    created: str = "",
) -> str:
    parts = [
        f"host: {host!r}",
        f"trafficPolicy: {{{policy}}}" if policy else "",
        f"subsets: [{subsets}]" if subsets else "",
        more,
    ]
    metadata = f"creationTimestamp: {created!r}" if created else ""
    return istio(
        "DestinationRule", name, f"{{{', '.join(filter(None, parts))}}}", space=space, metadata=metadata
    )


def policy_of(text: str, *others: str) -> dict[str, object]:
    found = Mesh(*BASE, *others, rule(text)).destination(WEB).policy
    return json_format.MessageToDict(found, preserving_proto_field_name=True)


RANDOM, ROUND = "loadBalancer: {simple: RANDOM}", "loadBalancer: {simple: ROUND_ROBIN}"
POOL = "connectionPool: {http: {http2MaxRequests: 7}}"
NEAREST = {"terms": [{"same": "REGION"}, {"same": "ZONE"}, {"same": "SUBZONE"}]}
