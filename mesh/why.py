"""`mycelia why SRC DST:PORT`: what the mesh would do with a connection or a request, and which rule decides.

Nothing is sent: manifests are compiled as the control plane does it, and the decisions of the two node
proxies (the route at the client, the verdict at the server) are asked with their traces: the same functions
that the data plane calls. Assumes that every agent has captured what labels order.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from config.compile.waypoint_required import NAME as WAYPOINT_REQUIRED
from config.registry.capture import Attached, decide
from config.registry.registry import Registry
from config.settings import MeshSettings
from config.source.directory import DirectorySource
from dataplane.state.model import Workload
from dataplane.state.policy import Connection
from dataplane.state.store import MeshState
from mesh.errors import BadArgumentError, UnknownWorkloadError
from mesh.why_request import Asked, Resources, Sent, judge, waypoint_of
from transport.spiffe import SpiffeId
from waypoint.state.place import Place
from ztunnel.state.inbound import Refusal, resolve_inbound
from ztunnel.state.rbac import authorize
from ztunnel.state.routing import NoRoute, Protocol, Route, RoutingContext, route


@dataclass(slots=True)
class Answer:
    """`is_allowed` None: the mesh has no say in it. `lines` are the steps, most important last."""

    is_allowed: bool | None
    verdict: str
    lines: list[str] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """0: the connection is carried; 1: it is refused. Raises MeshError for arguments that name nothing."""
    compiled = load(options.manifests, options.network)
    answer = explain(compiled, options.source, options.destination, options.network, asked_of(options))
    console = Console(soft_wrap=True, highlight=False)
    for line in answer.lines:
        console.print(f"  {escape(line)}")
    style = "bold red" if answer.is_allowed is False else "bold green"
    console.print(f"[{style}]{escape(answer.verdict)}[/]")
    return 1 if answer.is_allowed is False else 0


@dataclass(frozen=True, slots=True)
class Compiled:
    """What proxies would hold: `mesh` is a node proxy's state, `gateways` are namespaces and names."""

    mesh: MeshState
    resources: Resources
    gateways: tuple[tuple[str, str], ...]


def asked_of(options: argparse.Namespace) -> Asked | None:
    """The request that the options describe, if they do. Raises BadArgumentError."""
    if options.path is None:
        if options.method or options.host or options.header or options.claim:
            raise BadArgumentError("a request needs a path", next_step="add --path /")
        return None
    if options.path[:1] != "/":
        raise BadArgumentError(f"{options.path!r} is no path", next_step="it begins with a slash")
    headers = tuple(_pair(each, ":", "--header NAME:VALUE") for each in options.header)
    claims: dict[str, object] = {}
    for name, value in (_pair(each, "=", "--claim NAME=VALUE") for each in options.claim):
        claims[name] = value.split(",") if "," in value else value
    return Asked(options.path, options.method or "GET", options.host or "", headers, claims or None)


def _pair(text: str, mark: str, form: str) -> tuple[str, str]:
    name, found, value = text.partition(mark)
    if not found or not name.strip():
        raise BadArgumentError(f"{text!r} cannot be understood", next_step=f"write {form}")
    return name.strip(), value.strip()


def load(manifests: Path, network: str) -> Compiled:
    """Compile a folder of manifests as the control plane does."""
    source = DirectorySource(manifests)
    changes = source.load_blocking()
    registry = Registry(MeshSettings(network=network))
    registry.apply(changes.upserted)
    by_node: dict[str, set[tuple[str, str]]] = {}
    for each in registry.index.sources.values():
        attached = Attached(each.uid, each.namespace, each.name, each.service_account, each.addresses)
        if decide(each.node, attached, registry).capture:
            by_node.setdefault(each.node, set()).add((each.namespace, each.name))
    for node, places in by_node.items():
        registry.set_captured(node, places)
    resources = [
        (type_url, [(name, resource.payload) for name, resource in held.items()])
        for type_url, held in registry.resources.items()
    ]
    state = MeshState()
    for type_url, held in resources:
        state.apply(type_url, held, ())
    gateways = (ref for ref in source.manifests.in_force if ref.kind == "Gateway")
    return Compiled(state, resources, tuple((ref.namespace, ref.name) for ref in gateways))


def explain(
    compiled: Compiled, source: str, destination: str, network: str, asked: Asked | None = None
) -> Answer:
    state = compiled.mesh
    client = find_workload(state, source, network)
    target = find_address(state, destination, client.namespace)
    lines = [f"{client.namespace}/{client.name} ({client.identity}) connects to {target[0]}:{target[1]}"]
    if not client.is_hbone:
        lines.append(f"{client.namespace}/{client.name} is not captured: its connections leave as they are")
        return _at_server(state, Connection(client.addresses[0], None, *target), network, lines)
    decided = route(client, target, state, RoutingContext(network, lambda: 0.0), is_traced=True)
    lines += [f"client's proxy: {line}" for line in decided.trace]
    if isinstance(decided, NoRoute):
        return Answer(False, f"refused by the client's proxy: {decided.text}", lines)
    lines.append(f"client's proxy: {_route_text(decided)}")
    place = None if decided.service is None else waypoint_of(decided.service, compiled.gateways, state)
    if place is not None and decided.workload is not None:
        if asked is not None:
            request = Sent(asked, (client.addresses[0], client.identity), target)
            return _at_waypoint(compiled, place, decided.workload, request, lines)
        lines.append("the waypoint looks at each request: add --path to ask about one")
    elif asked is not None:
        lines.append("there is no waypoint on the way: nobody looks at requests")
    if decided.protocol is Protocol.TCP:
        return _at_server(state, Connection(client.addresses[0], None, *decided.address), network, lines)
    return _through_tunnel(state, client, decided, network, lines)


def _at_waypoint(
    compiled: Compiled, place: Place, waypoint: Workload, sent: Sent, lines: list[str]
) -> Answer:
    place = replace(place, network=waypoint.network, cluster_id=waypoint.cluster_id)
    judged = judge(compiled.resources, place, sent)
    lines += judged.lines
    if judged.is_allowed is False or judged.host is None:
        return Answer(judged.is_allowed, judged.verdict, lines)
    server = compiled.mesh.workload_by_ip(waypoint.network, judged.host[0])
    if server is None or not server.is_hbone:
        return Answer(judged.is_allowed, f"{judged.verdict}, to {judged.host[0]}:{judged.host[1]}", lines)
    same_family = [ip for ip in waypoint.addresses if (":" in ip) is (":" in judged.host[0])]
    address = (same_family or [*waypoint.addresses])[0]
    last = _verdict(compiled.mesh, Connection(address, waypoint.identity, *judged.host), server, lines)
    if last.is_allowed is False:
        return last
    return Answer(judged.is_allowed, f"{judged.verdict}; {last.verdict}", lines)


def _through_tunnel(
    state: MeshState, client: Workload, decided: Route, network: str, lines: list[str]
) -> Answer:
    server = decided.workload
    if server is None or decided.authority is None or decided.protocol is not Protocol.HBONE:
        return Answer(None, "goes to a gateway of another network, which decides further", lines)
    local_ip = decided.address[0]
    inbound = resolve_inbound(decided.authority, local_ip, server, state, network)
    if isinstance(inbound, Refusal):
        return Answer(False, f"refused by the server's proxy with {inbound.status}: {inbound.reason}", lines)
    same_family = [ip for ip in client.addresses if (":" in ip) is (":" in local_ip)] or [*client.addresses]
    connection = Connection(same_family[0], client.identity, *inbound.address)
    return _verdict(state, connection, server, lines)


def _at_server(state: MeshState, connection: Connection, network: str, lines: list[str]) -> Answer:
    """Plaintext that arrives at an address."""
    server = state.workload_by_ip(network, connection.dst_ip)
    if server is None:
        return Answer(None, "leaves the mesh in plaintext: the address is nobody's in it", lines)
    if not server.is_hbone:
        lines.append(f"{server.namespace}/{server.name} is not captured: no proxy is asked")
        return Answer(None, "carried in plaintext, the mesh has no say", lines)
    return _verdict(state, connection, server, lines)


def _verdict(state: MeshState, connection: Connection, server: Workload, lines: list[str]) -> Answer:
    verdict = authorize(connection, server, state, is_traced=True)
    who = _who(connection.identity)
    lines.append(f"server's proxy: {who} wants {connection.dst_ip}:{connection.dst_port} of {server.name}")
    lines += [f"server's proxy: {line}" for line in verdict.trace]
    if verdict.policy.rpartition("/")[2].startswith(WAYPOINT_REQUIRED):
        lines.append(
            "server's proxy: only what comes through the waypoint may pass (mycelia.io/waypoint-required)"
        )
    if not verdict.is_allowed:
        return Answer(False, f"denied: {verdict.reason}", lines)
    by = f" by {verdict.policy}" if verdict.policy else ""
    how = "over mutual TLS" if connection.identity is not None else "in plaintext"
    return Answer(True, f"allowed{by}, carried {how}", lines)


def _who(identity: SpiffeId | None) -> str:
    return str(identity) if identity is not None else "a client without identity"


def _route_text(decided: Route) -> str:
    text = f"{decided.protocol.value} to {decided.address[0]}:{decided.address[1]}"
    if decided.authority is not None:
        text += f", asks for {decided.authority}"
    if decided.expected_identities:
        text += f", expects {' or '.join(str(each) for each in dict.fromkeys(decided.expected_identities))}"
    return text


def find_workload(state: MeshState, text: str, network: str) -> Workload:
    """By address, or by NAMESPACE/NAME."""
    if _is_ip(text):
        found = state.workload_by_ip(network, text)
        if found is None:
            raise UnknownWorkloadError(f"no workload has the address {text}")
        return found
    known = {f"{each.namespace}/{each.name}": each for each in state.workloads.values()}
    try:
        return known[text]
    except KeyError:
        some = ", ".join(sorted(known)[:10]) or "none"
        raise UnknownWorkloadError(f"there is no workload {text}", next_step=f"known: {some}") from None


def find_address(state: MeshState, text: str, namespace: str) -> tuple[str, int]:
    """Of IP:PORT, [IPv6]:PORT, NAMESPACE/SERVICE:PORT, NAMESPACE/WORKLOAD:PORT or HOSTNAME:PORT."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadArgumentError(f"{text!r} is not DST:PORT", next_step="for example shop/web:80")
    if _is_ip(host):
        return str(ipaddress.ip_address(host)), int(port)
    address = next(_addresses_of(state, host, namespace), None)
    if address is None:
        raise UnknownWorkloadError(f"there is no service or workload {host} with an address")
    return address, int(port)


def _addresses_of(state: MeshState, name: str, namespace: str) -> Iterator[str]:
    by_host = state.service_by_hostname(name.lower(), namespace)
    if by_host is not None:
        yield from (vip.address for vip in by_host.vips)
    for service in state.services.values():
        if f"{service.namespace}/{service.name}" == name:
            yield from (vip.address for vip in service.vips)
    for workload in state.workloads.values():
        if f"{workload.namespace}/{workload.name}" == name:
            yield from workload.addresses


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
