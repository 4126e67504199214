"""Short ways to say routes and requests in tests."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state import regex
from waypoint.state.hosts import Endpoint, Host, Member
from waypoint.state.request import Header, RequestFacts
from waypoint.state.route_table import HttpTable, RouteEntry
from waypoint.state.routes import service_table

PORT = 80

needs_re2 = pytest.mark.skipif(not regex.is_available(), reason="the package google-re2 is not installed")


def rule(*matches: pb.HttpMatch, name: str = "", **fields: object) -> pb.HttpRule:
    message = pb.HttpRule(name=name, matches=matches, **fields)  # type: ignore[arg-type]
    if message.WhichOneof("action") is None:
        message.forward.backends.add(weight=1, service="shop/web", port=PORT)
    return message


def table(*rules: pb.HttpRule) -> HttpTable:
    """Rules without a name are called 0, 1, 2..."""
    for number, each in enumerate(rules):
        each.name = each.name or str(number)
    port = pb.PortRoutes(service_port=PORT, protocol=pb.HTTP, http_rules=rules)
    return service_table(pb.ServiceRoutes(namespace="shop", hostname="web", ports=[port])).ports[PORT].http


def entry(each: pb.HttpRule) -> RouteEntry:
    found = table(each).match(request("/"))
    return found if found is not None else table(each)._entries[0]


def path(**kind: str | bool) -> pb.HttpMatch:
    return pb.HttpMatch(path=pb.PathMatch(**kind))  # type: ignore[arg-type]


def request(
    target: str = "/",
    *headers: Header,
    method: str = "GET",
    authority: str = "web",
    scheme: str = "http",
    source_namespace: str = "",
) -> RequestFacts:
    return RequestFacts(
        method.encode(),
        target.encode(),
        headers,
        authority=authority.encode(),
        scheme=scheme.encode(),
        source_namespace=source_namespace,
    )


def host(
    uid: str,
    weight: int = 1,
    preference: int = 0,
    age: float = 0.0,
    *,
    is_healthy: bool = True,
) -> Host:
    member = Member(uid, weight, is_healthy=is_healthy, preference=preference)
    return Host(member, Endpoint(("10.0.0.1", 8080)), joined_at=-age)


def hosts(count: int, weight: int = 1) -> list[Host]:
    return [host(f"host-{number}", weight) for number in range(count)]
