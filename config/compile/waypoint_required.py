"""`mycelia.io/waypoint-required` to a DENY policy: what did not come through the waypoint is refused. Pure.

Istio's own type, so Istio's node proxy enforces it as well. A workload lists one policy, in which each group
denies some ports to everybody but some principals; a client without identity is nobody. Workloads with the
same gates share a policy: its name says which waypoints may pass, and ends with a digest of the gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from config.compile.resource import AUTHORIZATION, Resource, make_resource, version_of
from proto.istio import authorization_pb2 as pb

NAME: Final = "waypoint-required"
MAX_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Gate:
    """`principals` alone may connect to `ports`; with `is_rest`, to all ports but those. None: nobody may."""

    ports: tuple[int, ...]
    principals: tuple[str, ...]
    is_rest: bool = False


def compile_requirement(namespace: str, gates: Sequence[Gate], waypoints: Iterable[str]) -> Resource:
    """`waypoints` are the names of those that may pass somewhere, for the policy's name."""
    groups = [_group(gate) for gate in gates]
    digest = version_of(pb.Authorization(groups=groups).SerializeToString(deterministic=True))[:8]
    names = sorted(set(waypoints))
    via = f"via-{'-'.join(names[:MAX_NAMED])}" if names else "but-none-is-bound"
    name = f"{NAME}-{via}-{digest}"
    message = pb.Authorization(
        name=name, namespace=namespace, scope=pb.WORKLOAD_SELECTOR, action=pb.DENY, groups=groups
    )
    return make_resource(AUTHORIZATION, f"{namespace}/{name}", message)


def _group(gate: Gate) -> pb.Group:
    """A group without clauses matches every connection."""
    match = pb.Match(not_principals=[pb.StringMatch(exact=each) for each in gate.principals])
    if gate.is_rest:
        match.not_destination_ports.extend(gate.ports)
    else:
        match.destination_ports.extend(gate.ports)
    is_empty = not gate.principals and not gate.ports
    return pb.Group(rules=[] if is_empty else [pb.Rules(matches=[match])])
