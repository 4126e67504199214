"""VirtualServices in short, and a mesh for them."""

from __future__ import annotations

from google.protobuf import json_format

from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, istio, replica, service, waypoint

USE = "istio.io/use-waypoint: wp"
WEB = "shop/web.shop.svc.cluster.local"
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
BASE = (
    waypoint(),
    replica(),
    service("web", "ports: [{name: http, port: 80}]", labels=USE),
    service("v1", "ports: [{port: 8080}]"),
    service("v2", "ports: [{name: a, port: 80}, {name: b, port: 81}]"),
    istio("DestinationRule", "web", "{host: web, subsets: [{name: blue, labels: {color: blue}}]}"),
)
TO_V1 = "route: [{destination: {host: v1}}]"
TCP_TO_V1 = "route: [{destination: {host: v1}}]"
TO_V2 = "route: [{destination: {host: v2}}]"


def virtual(
    *http: str,
    name: str = "vs",
    hosts: str = "web",
    more: str = "",
    space: str = "shop",
    created: str = "",
) -> str:
    """Each route in flow style, without braces."""
    parts = [f"hosts: [{hosts}]" if hosts else "", more]
    if http:
        parts.append(f"http: [{', '.join(f'{{{each}}}' for each in http)}]")
    metadata = f"creationTimestamp: {created!r}" if created else ""
    spec = f"{{{', '.join(filter(None, parts))}}}"
    return istio("VirtualService", name, spec, space=space, metadata=metadata)


def rules_of(*texts: str) -> list[pb.HttpRule]:
    return Mesh(*BASE, *texts).http_rules()


def only(*http: str) -> pb.HttpRule:
    (rule,) = rules_of(virtual(*http))
    return rule


def as_dict(message: pb.HttpMatch | pb.Redirect | pb.Fault | pb.RetryPolicy | pb.Cors) -> dict[str, object]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def targets(rule: pb.HttpRule) -> list[tuple[str, int, int]]:
    """(service, port, weight); a backend that leads nowhere has the status in place of the port."""
    return [
        (each.service.partition("/")[2].partition(".")[0], each.port or each.failure_status, each.weight)
        for each in rule.forward.backends
    ]


def ids(found: list[pb.HttpRule]) -> list[str]:
    return [rule.name.removeprefix("VirtualService/") for rule in found]
