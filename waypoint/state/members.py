"""Which workloads are the endpoints of a cluster, where each is reached and how near it is. Pure.

Left out are those that must get nothing (unready, without capacity, of another subset) and those that this
waypoint cannot reach; for the latter there is a sentence, so that a cluster without hosts can say why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from dataplane.state.addressing import pick_ip
from dataplane.state.balance import rank_of, target_port
from dataplane.state.model import AppProtocol, BalancingMode, Locality, Service, Workload, is_ipv6
from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.circuit import Circuit
from waypoint.state.destinations import TrafficPolicy
from waypoint.state.hosts import Application, Endpoint, Member
from waypoint.state.locality import Distribution, weights
from waypoint.state.place import Place

_ELSEWHERE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What a cluster is about. `workloads` None: all of the service's."""

    service: Service
    port: int
    policy: TrafficPolicy
    application: Application | None
    circuit: Circuit
    place: Place
    workloads: Collection[str] | None = None

    def is_same(self, other: Wanted | None) -> bool:
        """Whether it is made of the very same objects: then a workload's answer is the same too."""
        return (
            other is not None
            and self.service is other.service
            and self.policy is other.policy
            and self.application is other.application
            and self.place is other.place
            and self.workloads is other.workloads
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A member and where it is; `endpoint6` for clients of IPv6, where that is another address."""

    workload: Workload
    member: Member
    endpoint: Endpoint
    endpoint6: Endpoint | None = None


def find_members(
    workloads: Iterable[Workload],
    wanted: Wanted,
    problems: list[str],
    known: dict[str, Found],
) -> Iterable[Found]:
    """Those of `workloads` that can be used; `problems` gets a line for each that cannot be reached.

    `known` has the answers of before for the same `wanted`: a change costs little for all that stay.
    """
    if wanted.policy.refusal:
        problems.append(f"nothing may go there: {wanted.policy.refusal}")
        return ()
    found = _usable(workloads, wanted, problems, known)
    locality = wanted.policy.locality
    distribution = None if locality is None else locality.distribution(wanted.place)
    return found if distribution is None else _distributed(list(found), distribution)


def _distributed(found: Sequence[Found], distribution: Distribution) -> Iterator[Found]:
    """With the weights that give each locality its share; without those that have none."""
    shares = weights(distribution, [each.workload for each in found])
    for each in found:
        share = shares.get(each.member.uid)
        if share is not None:
            yield replace(each, member=replace(each.member, weight=share))


def _usable(
    workloads: Iterable[Workload],
    wanted: Wanted,
    problems: list[str],
    known: dict[str, Found],
) -> Iterator[Found]:
    for workload in workloads:
        before = known.get(workload.uid)
        if before is not None and before.workload is workload:
            yield before
            continue
        if wanted.workloads is not None and workload.uid not in wanted.workloads:
            continue
        found = _find(workload, wanted)
        if isinstance(found, str):
            problems.append(f"endpoint {workload.uid} {found}")
        else:
            known[workload.uid] = found
            yield found


def _find(workload: Workload, wanted: Wanted) -> Found | str:
    service, place = wanted.service, wanted.place
    if not workload.is_healthy and not service.balancing.is_unhealthy_allowed:
        return "is not ready"
    if workload.capacity == 0:
        return "has no capacity"
    if workload.network != place.network:
        return f"is in network {workload.network!r}, and this waypoint reaches {place.network!r} only"
    port = target_port(workload, service, wanted.port)
    if port is None:
        return f"has no port for port {wanted.port} of the service"
    preference = _preference(workload, wanted)
    if preference is None:
        return "is not where the service's traffic distribution keeps it"
    endpoint = endpoint_of(workload, port, wanted, "0.0.0.0")
    if endpoint is None:
        return "has no address"
    endpoint6 = endpoint_of(workload, port, wanted, "::") if len(workload.addresses) > 1 else endpoint
    member = Member(workload.uid, workload.capacity, preference=preference)
    return Found(workload, member, endpoint, None if endpoint6 == endpoint else endpoint6)


def endpoint_of(workload: Workload, port: int, wanted: Wanted, family: str) -> Endpoint | None:
    """Where a workload is reached by a client that dialled an address like `family`."""
    host = pick_ip(workload, family, wanted.service) or workload.hostname
    if not host:
        return None
    identities = (*wanted.service.identities, workload.identity) if workload.is_hbone else ()
    return Endpoint(
        (host, port), wanted.application, identities, circuit=wanted.circuit, tls=wanted.policy.tls
    )


def _preference(workload: Workload, wanted: Wanted) -> int | None:
    """0 for the nearest; None where the service does not allow one so far (facts 7, config-api 3)."""
    place = wanted.place
    if wanted.policy.locality is not None:
        return wanted.policy.locality.level(workload, place)
    balancing = wanted.service.balancing
    if balancing.mode in (BalancingMode.STRICT, BalancingMode.FAILOVER) and balancing.preferences:
        rank = rank_of(workload, wanted.service, place)
        return None if rank is None else 2 * len(balancing.preferences) - rank
    if wanted.policy.outlier_detection is None:
        return 0
    return distance(place.locality, workload.locality)


def distance(own: Locality, other: Locality) -> int:
    """0 the same subzone, 1 the same zone, 2 the same region, 3 elsewhere."""
    if own.region != other.region:
        return _ELSEWHERE
    if own.zone != other.zone:
        return 2
    return 0 if own.subzone == other.subzone else 1


def application(protocol: int, policy: TrafficPolicy) -> Application | None:
    """What is spoken to a port of that waypoint.proto Protocol; None: as the client (waypoint-facts 5)."""
    if policy.pool.uses_client_protocol:
        return None
    if policy.pool.upgrades_to_http2 or protocol in (pb.HTTP2, pb.GRPC):
        return Application.HTTP2
    return Application.HTTP1 if protocol == pb.HTTP else None


def protocol_of(service: Service, port: int) -> int:
    """The protocol (waypoint.proto's) that the address book declares for a port of a service."""
    declared = service.protocols.get(port, AppProtocol.UNKNOWN)
    match declared:
        case AppProtocol.UNKNOWN:
            return pb.DETECT
        case AppProtocol.HTTP11:
            return pb.HTTP
        case AppProtocol.HTTP2:
            return pb.HTTP2
        case AppProtocol.GRPC:
            return pb.GRPC
        case AppProtocol.TCP | AppProtocol.TLS:
            return pb.TCP
        case _:
            assert_never(declared)


def is_address(host: str) -> bool:
    """Whether it is an IP address, not a name."""
    return is_ipv6(host) or host.replace(".", "").isdigit()
