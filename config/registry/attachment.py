"""Which routes count on a service's ports, and why others do not (config-api 6, 6.2, 6.6). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from config.compile.messages import Target
from config.compile.protocols import app_protocol, waypoint_protocol
from config.compile.routes import PortAttachment
from config.notes import Reason
from config.objects import (
    GrpcRoute,
    HttpRoute,
    Ref,
    Route,
    Service,
    ServiceEntry,
    TcpRoute,
    TlsRoute,
    VirtualService,
)
from config.registry.object_index import ObjectIndex
from config.registry.route_index import HOSTNAME, parent_key, target_key
from config.registry.virtual_attachment import ServiceHost, routes_of, virtual_services_on
from config.routing_rules import BackendRef, ParentRef
from proto.mycelia import waypoint_pb2 as pb

HTTP_PART: Final = "http"
STREAM_PART: Final = "tls and tcp"


@dataclass(frozen=True, slots=True)
class ServicePort:
    number: int
    name: str
    protocol: pb.Protocol.ValueType


@dataclass(frozen=True, slots=True)
class Refusal:
    """`part` is what of a VirtualService is meant: `http`, or `tls and tcp`."""

    route: Ref
    port: int
    reason: Reason
    text: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    ports: tuple[PortAttachment, ...]
    refusals: tuple[Refusal, ...] = ()


def ports_of(service: Service | ServiceEntry) -> tuple[ServicePort, ...]:
    if isinstance(service, Service):
        return tuple(
            ServicePort(
                each.number,
                each.name,
                waypoint_protocol(app_protocol(each.number, each.name, each.app_protocol)),
            )
            for each in service.ports
        )
    return tuple(
        ServicePort(
            each.number, each.name, waypoint_protocol(app_protocol(each.number, each.name, each.protocol))
        )
        for each in service.ports
    )


def routes_on(index: ObjectIndex, service: Ref, waypoint_namespaces: Iterable[str]) -> list[Route]:
    """Routes of the service's namespace (producers) and of its waypoint's, oldest first."""
    counting = {service.namespace, *waypoint_namespaces}
    found = [
        route
        for ref in index.routes.on(service)
        if ref.namespace in counting
        and isinstance(route := index.objects[ref], HttpRoute | GrpcRoute | TcpRoute | TlsRoute)
    ]
    return sorted(found, key=lambda route: route.meta.age_key)


def candidates_on(index: ObjectIndex, at: ServiceHost) -> Candidates:
    return Candidates(routes_on(index, at.service, at.waypoint_namespaces), virtual_services_on(index, at))


def speaks_of(parent: ParentRef, service: Ref, port: ServicePort) -> bool:
    return (
        parent_key(parent) == service
        and parent.port in (0, port.number)
        and parent.section in ("", port.name)
    )


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be attached to a host of a service: routes oldest first, VirtualServices in their order."""

    routes: Sequence[Route]
    virtual: Sequence[VirtualService] = ()


def attach(
    index: ObjectIndex, at: ServiceHost, ports: Iterable[ServicePort], candidates: Candidates
) -> Attachment:
    """Routes of the Gateway API have a port for themselves; where there are none, VirtualServices have it."""
    virtual = tuple(routes_of(index, each) for each in candidates.virtual)
    made: list[PortAttachment] = []
    refusals: list[Refusal] = []
    for port in ports:
        meant = [
            route
            for route in candidates.routes
            if any(speaks_of(parent, at.service, port) for parent in route.parents)
        ]
        http = [route for route in meant if isinstance(route, HttpRoute | GrpcRoute)]
        winners, losers = _one_kind(http)
        refusals += [
            Refusal(
                loser.meta.ref,
                port.number,
                Reason.SHADOWED,
                f"{http[0].meta.ref} is older and of the other kind; a port has HTTPRoutes or GRPCRoutes",
            )
            for loser in losers
        ]
        tls, tcp, unfit = _streams(meant, at.hostname, port.number)
        refusals += unfit
        streams = (*tls, *((tcp,) if tcp is not None else ()))
        refusals += _displaced(candidates.virtual, winners, streams, port)
        made.append(
            PortAttachment(
                port.number,
                port.protocol,
                tuple(winners),
                tls,
                tcp,
                () if winners else virtual,
                () if streams else virtual,
            )
        )
    return Attachment(tuple(made), tuple(refusals))


def _displaced(
    virtual: Iterable[VirtualService], http: Sequence[Route], streams: Sequence[Route], port: ServicePort
) -> Iterator[Refusal]:
    for each in virtual:
        for part, holders in ((HTTP_PART, http), (STREAM_PART, streams)):
            if holders and part in parts_on(each, port):
                holder = holders[0].meta.ref
                text = f"{holder} has the port: routes of the Gateway API come before VirtualServices"
                yield Refusal(each.meta.ref, port.number, Reason.SHADOWED, text, part)


def parts_on(virtual: VirtualService, port: ServicePort) -> list[str]:
    """What of a VirtualService can have an effect on a port, by its protocol."""
    found: list[str] = []
    if virtual.http and port.protocol != pb.TCP:
        found.append(HTTP_PART)
    if (virtual.tls or virtual.tcp) and port.protocol in (pb.TCP, pb.DETECT):
        found.append(STREAM_PART)
    return found


HttpKinds = HttpRoute | GrpcRoute


def _one_kind(routes: Sequence[HttpKinds]) -> tuple[list[HttpKinds], list[HttpKinds]]:
    """HTTPRoutes and GRPCRoutes do not share a port: the oldest object's kind has it."""
    kind = type(routes[0]) if routes else None
    winners = [route for route in routes if type(route) is kind]
    return winners, [route for route in routes if type(route) is not kind]


def _streams(
    routes: Iterable[Route], hostname: str, port: int
) -> tuple[tuple[TlsRoute, ...], TcpRoute | TlsRoute | None, list[Refusal]]:
    tls: list[TlsRoute] = []
    plain: TcpRoute | TlsRoute | None = None
    refused: list[Refusal] = []
    for route in routes:
        match route:
            case TlsRoute(hostnames=hostnames) if hostnames and hostname in hostnames:
                tls.append(route)
            case TlsRoute(hostnames=hostnames) if hostnames:
                text = f"none of its hostnames is {hostname}, the only name that TLS to this parent carries"
                refused.append(Refusal(route.meta.ref, port, Reason.HOSTNAME_MISMATCH, text))
            case TcpRoute() | TlsRoute() if plain is None:
                plain = route
            case TcpRoute() | TlsRoute():
                text = f"{plain.meta.ref} is older and has the port" if plain is not None else ""
                refused.append(Refusal(route.meta.ref, port, Reason.SHADOWED, text))
            case _:
                pass
    return tuple(tls), plain, refused


# ---- backends ----


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where a backend leads, and the reason where it leads nowhere."""

    target: Target
    reason: Reason = Reason.RESOLVED_REFS


def resolve_backend(index: ObjectIndex, backend: BackendRef) -> Resolution:
    if backend.unsupported:
        text = f"filter {', '.join(backend.unsupported)} is not supported on a backend"
        return _unresolved(Reason.INVALID_FILTER, text)
    key = target_key(backend)
    if key is None:
        named = f'kind "{backend.kind}" of group "{backend.group}"'
        return _unresolved(
            Reason.INVALID_KIND, f"{named} is not supported; allowed: Service, ServiceEntry, Hostname"
        )
    if key.kind == HOSTNAME:
        return _resolve_host(index, backend)
    service = index.service(key)
    hosts = index.hosts_of(service)
    if service is None or not hosts:
        return _unresolved(Reason.BACKEND_NOT_FOUND, f"{key} is not there, or has no part in the mesh")
    if index.owner_of(f"{key.namespace}/{hosts[0]}") != key:
        return _unresolved(Reason.BACKEND_NOT_FOUND, f"{key} does not have its host {hosts[0]}")
    return _with_port(backend, service, f"{key.namespace}/{hosts[0]}")


def _resolve_host(index: ObjectIndex, backend: BackendRef) -> Resolution:
    owner = index.owner_of(f"{backend.namespace}/{backend.name}") or index.canonical_entry(backend.name)
    service = index.service(owner) if owner is not None else None
    if owner is None or service is None:
        return _unresolved(Reason.BACKEND_NOT_FOUND, f"no service has the host {backend.name}")
    return _with_port(backend, service, f"{owner.namespace}/{backend.name}")


def _with_port(backend: BackendRef, service: Service | ServiceEntry, name: str) -> Resolution:
    numbers = [port.number for port in service.ports]
    port = backend.port or (numbers[0] if len(numbers) == 1 else 0)
    if port not in numbers:
        text = f"{service.meta.ref} has no port {port}" if port else f"{backend}: port is missing"
        return _unresolved(Reason.BACKEND_NOT_FOUND, text)
    return Resolution(Target(name, port))


def _unresolved(reason: Reason, text: str) -> Resolution:
    return Resolution(Target(problem=text), reason)


def resolver(index: ObjectIndex) -> Callable[[BackendRef], Target]:
    return lambda backend: resolve_backend(index, backend).target


def unresolved(index: ObjectIndex, backends: Iterable[BackendRef]) -> Iterator[Resolution]:
    found = (resolve_backend(index, backend) for backend in backends)
    return (each for each in found if each.target.problem)
