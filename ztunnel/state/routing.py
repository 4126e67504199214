"""Where a captured connection goes (facts 3.2-3.5): a pure decision over the mesh state.

The order of the questions is Istio's: the destination as a service with a waypoint, then an upstream
(here a virtual address counts before a workload's own), then another network, then a workload's
waypoint, then direct.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

from dataplane.state import balance
from dataplane.state.addressing import pick_ip, resolve_reference
from dataplane.state.model import (
    HBONE_PORT,
    BalancingMode,
    GatewayRef,
    Service,
    Workload,
    is_ipv6,
    socket_text,
)
from dataplane.state.store import MeshState
from transport.spiffe import SpiffeId


class Protocol(enum.Enum):
    TCP = "tcp"
    HBONE = "hbone"
    DOUBLE_HBONE = "double_hbone"


class RouteProblem(enum.Enum):
    """Why there is no route (facts 3.6)."""

    UNKNOWN_WAYPOINT = "unknown waypoint"
    UNKNOWN_NETWORK_GATEWAY = "unknown network gateway"
    NO_HEALTHY_UPSTREAM = "no healthy upstream"
    NO_VALID_DESTINATION = "no valid destination"
    NO_SERVICE = "no service for a destination in another network"


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """What a decision takes from the process: its network and a source of numbers in [0, 1)."""

    network: str
    random: Callable[[], float]
    hbone_port: int = HBONE_PORT


@dataclass(frozen=True, slots=True)
class Route:
    """A decided route.

    `address` is the TCP destination. Where `hostname_to_resolve` is set its ip is empty: resolve the
    name, prefer answers of the family that `is_ipv6_preferred` says, and continue with
    `with_ip(answer)`. `authority` is what the CONNECT asks for (None: plain TCP); for DOUBLE_HBONE it
    goes into both requests. `expected_identities` are the server's on the (outer) TLS connection,
    `inner_identities` those of the inner one. `workload` is the next hop (a waypoint or gateway where
    one is used), `service` the service that was meant.
    """

    protocol: Protocol
    address: tuple[str, int]
    authority: str | None = None
    expected_identities: tuple[SpiffeId, ...] = ()
    service: Service | None = None
    workload: Workload | None = None
    inner_identities: tuple[SpiffeId, ...] = ()
    hostname_to_resolve: str = ""
    is_ipv6_preferred: bool = False
    trace: tuple[str, ...] = ()

    def with_ip(self, ip: str) -> Route:
        """This route with the resolved address of `hostname_to_resolve` filled in."""
        authority = self.authority
        if authority is not None and authority.startswith(":"):
            authority = socket_text(ip, int(authority[1:]))
        return replace(self, address=(ip, self.address[1]), authority=authority, hostname_to_resolve="")


@dataclass(frozen=True, slots=True)
class NoRoute:
    problem: RouteProblem
    text: str
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class _Upstream:
    workload: Workload
    port: int
    service: Service | None
    ip: str  # empty: `workload.hostname` is to be resolved, or the workload is behind a gateway

    @property
    def identities(self) -> tuple[SpiffeId, ...]:
        own = self.workload.identity
        return (own,) if self.service is None else (*self.service.identities, own)


def route(
    source: Workload,
    destination: tuple[str, int],
    state: MeshState,
    context: RoutingContext,
    *,
    is_traced: bool = False,
) -> Route | NoRoute:
    """Decide the way of one connection that `source` made to `destination`."""
    decision = _Decision(source, destination, state, context, [] if is_traced else None)
    result = decision.make()
    return replace(result, trace=tuple(decision.trace)) if decision.trace else result


class _Decision:
    """One routing decision; an object only to carry its five inputs."""

    __slots__ = ("context", "destination", "source", "state", "trace")

    def __init__(
        self,
        source: Workload,
        destination: tuple[str, int],
        state: MeshState,
        context: RoutingContext,
        trace: list[str] | None,
    ) -> None:
        self.source = source
        self.destination = destination
        self.state = state
        self.context = context
        self.trace = trace

    def _note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(text)

    def make(self) -> Route | NoRoute:
        source, destination = self.source, self.destination
        service = self._addressed_service()
        if service is not None:
            self._note(f"{destination[0]} is a virtual address of service {service.key}")
            reference = self._service_waypoint(service)
            if reference is not None:
                return self._to_service_waypoint(reference, service)
        upstream = self._upstream(source.network, destination, is_waypoint=False)
        if upstream is None:
            if service is not None and service.balancing.mode is not BalancingMode.PASSTHROUGH:
                return NoRoute(
                    RouteProblem.NO_HEALTHY_UPSTREAM, f"no healthy upstream: {socket_text(*destination)}"
                )
            self._note("no workload or service of the mesh: passed through unchanged")
            return Route(Protocol.TCP, destination)
        if isinstance(upstream, NoRoute):
            return upstream
        if upstream.workload.network != source.network:
            return self._through_gateway(upstream.workload, service)
        if service is None and upstream.workload.waypoint is not None:
            if not self._is_behind(upstream.workload.waypoint):
                return self._to_workload_waypoint(upstream)
            self._note("the client is the workload's waypoint: sent on directly")
        return self._direct(upstream)

    # --- the destination ---

    def _addressed_service(self) -> Service | None:
        network, ip = self.context.network, self.destination[0]
        if self.state.workload_by_ip(network, ip) is not None:
            return None
        return self.state.service_by_vip(network, ip, self.source.namespace)

    def _service_waypoint(self, service: Service) -> GatewayRef | None:
        total = 0
        for candidate in service.weighted_waypoints:
            total += candidate.weight
        if total == 0:
            return service.waypoint
        point = self.context.random() * total
        for candidate in service.weighted_waypoints:
            point -= candidate.weight
            if point < 0:
                return candidate.gateway
        return service.weighted_waypoints[-1].gateway  # random() gave 1.0

    def _upstream(
        self, network: str, address: tuple[str, int], *, is_waypoint: bool
    ) -> _Upstream | NoRoute | None:
        """What answers at an address: a service's endpoint before a workload; None: nothing (usable)."""
        ip, port = address
        service = self.state.service_by_vip(network, ip, self.source.namespace)
        if service is not None:
            if service.balancing.mode is BalancingMode.PASSTHROUGH:
                self._note(f"service {service.key} passes through to the original destination")
                return None
            return self._endpoint(service, port, ip, is_waypoint=is_waypoint)
        workload = self.state.workload_by_ip(network, ip)
        if workload is None:
            return None
        self._note(f"{ip} is workload {workload.uid}")
        return self._finish(workload, port, None, ip)

    def _endpoint(
        self, service: Service, port: int, wanted_ip: str, *, is_waypoint: bool
    ) -> _Upstream | NoRoute | None:
        endpoints = self.state.endpoints(service)
        if endpoints is None:
            self._note(f"service {service.key} has no endpoints")
            return None
        workload = endpoints.pick(
            service, port, self.source, is_waypoint=is_waypoint, random=self.context.random
        )
        if self.trace is not None:
            balance.candidates(
                endpoints.workloads.values(),
                service,
                port,
                self.source,
                is_waypoint=is_waypoint,
                trace=self.trace,
            )
        if workload is None:
            self._note(f"service {service.key} has no usable endpoint for port {port}")
            return None
        target = balance.target_port(workload, service, port)
        if target is None:
            self._note(f"port {port} of service {service.key} leads to no port of {workload.uid}")
            return None
        self._note(f"endpoint {workload.uid} chosen, port {target}")
        return self._finish(workload, target, service, wanted_ip)

    def _finish(
        self, workload: Workload, port: int, service: Service | None, wanted_ip: str
    ) -> _Upstream | NoRoute:
        ip = pick_ip(workload, wanted_ip, service)
        if ip is None:
            if workload.network_gateway is None and not workload.hostname:
                return NoRoute(
                    RouteProblem.NO_VALID_DESTINATION,
                    f"no valid destination: workload {workload.uid} has no usable address",
                )
            ip = ""
        return _Upstream(workload, port, service, ip)

    # --- the ways ---

    def _direct(self, upstream: _Upstream) -> Route:
        workload = upstream.workload
        hostname = "" if upstream.ip else workload.hostname
        authority: str | None = None
        port = upstream.port
        if workload.is_hbone:
            authority = socket_text(upstream.ip, upstream.port) if upstream.ip else f":{upstream.port}"
            port = self.context.hbone_port
        return Route(
            Protocol.HBONE if workload.is_hbone else Protocol.TCP,
            (upstream.ip, port),
            authority,
            upstream.identities,
            upstream.service,
            workload,
            hostname_to_resolve=hostname,
            is_ipv6_preferred=is_ipv6(self.destination[0]),
        )

    def _to_service_waypoint(self, reference: GatewayRef, service: Service) -> Route | NoRoute:
        waypoint = self._gateway(reference, is_waypoint=True)
        if isinstance(waypoint, NoRoute):
            return waypoint
        if waypoint.workload.network != self.source.network:
            return self._through_gateway(waypoint.workload, service)
        self._note(f"sent through the service's waypoint {reference}")
        return self._waypoint_route(waypoint, service)

    def _to_workload_waypoint(self, upstream: _Upstream) -> Route | NoRoute:
        reference = upstream.workload.waypoint
        assert reference is not None
        waypoint = self._gateway(reference, is_waypoint=True)
        if isinstance(waypoint, NoRoute):
            return waypoint
        self._note(f"sent through the workload's waypoint {reference}")
        return self._waypoint_route(waypoint, upstream.service)

    def _waypoint_route(self, waypoint: _Upstream, service: Service | None) -> Route | NoRoute:
        if not waypoint.ip and not waypoint.workload.hostname:
            return NoRoute(
                RouteProblem.NO_VALID_DESTINATION,
                f"no valid destination: waypoint {waypoint.workload.uid} has no address",
            )
        return Route(
            Protocol.HBONE,
            (waypoint.ip, waypoint.port),
            socket_text(*self.destination),
            waypoint.identities,
            service,
            waypoint.workload,
            hostname_to_resolve="" if waypoint.ip else waypoint.workload.hostname,
            is_ipv6_preferred=is_ipv6(self.destination[0]),
        )

    def _through_gateway(self, workload: Workload, service: Service | None) -> Route | NoRoute:
        """To another network: two tunnels, the outer one to the gateway in front of `workload` (facts
        3.4).
        """
        if service is None:
            return NoRoute(
                RouteProblem.NO_SERVICE,
                f"no service for {socket_text(*self.destination)}, which is in network {workload.network!r}",
            )
        if workload.network_gateway is None:
            return NoRoute(
                RouteProblem.NO_VALID_DESTINATION,
                f"no valid destination: workload {workload.uid} is in network {workload.network!r}"
                " and has no network gateway",
            )
        gateway = self._gateway(workload.network_gateway, is_waypoint=False)
        if isinstance(gateway, NoRoute):
            return gateway
        if not gateway.ip and not gateway.workload.hostname:
            return NoRoute(
                RouteProblem.NO_VALID_DESTINATION,
                f"no valid destination: network gateway {gateway.workload.uid} has no address",
            )
        self._note(f"sent through network gateway {workload.network_gateway}")
        return Route(
            Protocol.DOUBLE_HBONE,
            (gateway.ip, gateway.port),
            f"{service.hostname}:{self.destination[1]}",
            gateway.identities,
            service,
            gateway.workload,
            inner_identities=service.identities,
            hostname_to_resolve="" if gateway.ip else gateway.workload.hostname,
            is_ipv6_preferred=is_ipv6(self.destination[0]),
        )

    def _gateway(self, reference: GatewayRef, *, is_waypoint: bool) -> _Upstream | NoRoute:
        """Resolve a waypoint or network gateway (facts 3.4, 3.5)."""
        if reference.address:
            found = self._upstream(
                reference.network, (reference.address, reference.hbone_port), is_waypoint=is_waypoint
            )
        else:
            found = self._gateway_by_hostname(reference, is_waypoint=is_waypoint)
        if found is not None:
            return found
        if is_waypoint:
            return NoRoute(RouteProblem.UNKNOWN_WAYPOINT, f"unknown waypoint: {reference}")
        return NoRoute(RouteProblem.UNKNOWN_NETWORK_GATEWAY, f"unknown network gateway: {reference}")

    def _gateway_by_hostname(self, reference: GatewayRef, *, is_waypoint: bool) -> _Upstream | NoRoute | None:
        wanted_ip = self.destination[0]
        service = self.state.service_by_key(reference.namespace, reference.hostname)
        if service is not None:
            return self._endpoint(service, reference.hbone_port, wanted_ip, is_waypoint=is_waypoint)
        workload = self.state.workload_by_hostname(reference.namespace, reference.hostname)
        if workload is None:
            return None
        return self._finish(workload, reference.hbone_port, None, wanted_ip)

    def _is_behind(self, reference: GatewayRef) -> bool:
        """Is the source itself the waypoint that `reference` names?"""
        source = self.source
        found = resolve_reference(reference, self.state, source.namespace)
        if found is None:
            return False
        if isinstance(found, Workload):
            return found.uid == source.uid
        endpoints = self.state.endpoints(found)
        return endpoints is not None and source.uid in endpoints.workloads
