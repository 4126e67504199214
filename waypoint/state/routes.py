"""The routes of a service as the control plane tells them (ServiceRoutes), made into tables.

Invariants: a table exists only whole; what cannot be used is refused with `RoutesRejected`, which names the
service, the rule and the reason. Rules keep the order in which they came: precedence is decided before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.matching import named_tests, string_test
from waypoint.state.regex import Pattern
from waypoint.state.route_table import HttpTable, PathTest, RouteEntry
from waypoint.state.rules import Backend, Forward, HttpRule, backend, forward, http_rule

ROUTES_TYPE = "type.googleapis.com/mycelia.waypoint.ServiceRoutes"


@dataclass(frozen=True, slots=True)
class TcpRule:
    """Backends for connections with one of these server names; without names for every one."""

    name: str
    sni_hosts: tuple[str, ...]
    destinations: Forward


@dataclass(frozen=True, slots=True)
class PortTable:
    """What is declared for one port of a service. `protocol` is waypoint.proto's Protocol."""

    protocol: int
    http: HttpTable
    tcp_rules: tuple[TcpRule, ...] = ()

    def match_tcp(self, server_name: str | None) -> TcpRule | None:
        """The first rule for a connection; `server_name` is None where the client named none."""
        name = None if server_name is None else server_name.lower()
        for rule in self.tcp_rules:
            if not rule.sni_hosts or (name is not None and any(_sni(host, name) for host in rule.sni_hosts)):
                return rule
        return None


@dataclass(frozen=True, slots=True)
class ServiceTable:
    """All routes of a service, by its ports; a port that is not there is not served (NR)."""

    key: str
    ports: Mapping[int, PortTable] = field(default_factory=dict)


def parse_routes(content: bytes) -> ServiceTable:
    """The table from a ServiceRoutes resource; raises `RoutesRejected` with the rule and the reason."""
    message = pb.ServiceRoutes()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected(f"not a ServiceRoutes message: {error}") from error
    return service_table(message)


def service_table(message: pb.ServiceRoutes) -> ServiceTable:
    if not message.namespace or not message.hostname:
        raise RoutesRejected("routes without a namespace or hostname")
    key = f"{message.namespace}/{message.hostname}"
    ports: dict[int, PortTable] = {}
    for port in message.ports:
        if not 0 < port.service_port < 65536 or port.service_port in ports:
            raise RoutesRejected(f"{key}: port {port.service_port} is out of range or there twice")
        ports[port.service_port] = _port_table(key, port)
    return ServiceTable(key, ports)


def default_rule(service: str, port: int) -> HttpRule:
    """Without routes a request goes to the service that it was sent to."""
    return HttpRule("default", forward([Backend(service, port)]))


def _port_table(key: str, message: pb.PortRoutes) -> PortTable:
    entries: list[RouteEntry] = []
    for rule_message in message.http_rules:
        try:
            rule = http_rule(rule_message)
            matches: Sequence[pb.HttpMatch] = rule_message.matches or (pb.HttpMatch(),)
            first = len(entries)
            entries.extend(_entry(first + place, rule, match) for place, match in enumerate(matches))
        except RoutesRejected as error:
            raise RoutesRejected(
                f"{key}: {rule_message.name}: {error.text}", next_step=error.next_step
            ) from error
    if not message.http_rules:
        entries.append(RouteEntry(0, default_rule(key, message.service_port), is_path_alone=True))
    tcp_rules = [_tcp_rule(rule) for rule in message.tcp_rules]
    if not tcp_rules:
        tcp_rules = [TcpRule("default", (), forward([Backend(key, message.service_port)]))]
    return PortTable(message.protocol, HttpTable(entries), tuple(tcp_rules))


def _entry(order: int, rule: HttpRule, message: pb.HttpMatch) -> RouteEntry:
    path = _path_test(message.path) if message.HasField("path") else None
    headers = named_tests(list(message.headers), is_header=True)
    parameters = named_tests(list(message.query_parameters), is_header=False)
    without = tuple(named_tests(list(message.without_headers), is_header=True))
    authority = string_test(message.authority) if message.HasField("authority") else None
    scheme = string_test(message.scheme) if message.HasField("scheme") else None
    pattern = path.pattern if path is not None else None
    others = (
        message.method,
        headers,
        parameters,
        without,
        authority,
        scheme,
        message.source_namespace,
        pattern,
    )
    return RouteEntry(
        order=order,
        rule=rule,
        path=path,
        method=message.method.encode(),
        headers=headers,
        parameters=parameters,
        authority=authority,
        scheme=scheme,
        without_headers=without,
        source_namespace=message.source_namespace,
        is_path_alone=not any(others),
        pattern=pattern,
    )


def _path_test(message: pb.PathMatch) -> PathTest | None:
    any_case = message.is_case_ignored
    match message.WhichOneof("kind"):
        case "regex":
            return PathTest("regex", pattern=Pattern(message.regex, is_case_ignored=any_case))
        case "exact":
            kind, text = "exact", message.exact
        case "prefix":
            kind, text = "prefix", message.prefix
        case "string_prefix":
            kind, text = "string_prefix", message.string_prefix
        case _:
            return None
    if not text.startswith("/") and (kind != "string_prefix" or text):
        raise RoutesRejected(f"path {text!r} does not begin with a slash")
    value = (text.rstrip("/") if kind == "prefix" else text).encode()
    return PathTest(kind, value.lower() if any_case else value, is_case_ignored=any_case)


def _tcp_rule(message: pb.TcpRule) -> TcpRule:
    try:
        destinations = forward(backend(each) for each in message.backends)
    except RoutesRejected as error:
        raise RoutesRejected(f"{message.name}: {error.text}") from error
    return TcpRule(message.name, tuple(host.lower() for host in message.sni_hosts), destinations)


def _sni(host: str, name: str) -> bool:
    if host.startswith("*."):
        return name.endswith(host[1:]) and len(name) >= len(host)
    return host == name
