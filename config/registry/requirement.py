"""What `mycelia.io/waypoint-required` asks for at a workload (docs/waypoints.md). Pure.

* The namespace or the workload asks: to a port that services target, only their waypoints and the workload's
  own may connect; to any other port only the workload's own.
* A service asks: to the ports that it targets, only its own waypoints may connect, or those of other services
  that target the port and ask as well: at the port nobody can tell for which of them a connection is.

What is asked adds up. A workload's own "false" takes it out of its namespace's, and of nothing else. Where no
waypoint is bound nobody may connect. A waypoint's own workloads are exempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from config import keys
from config.compile.resource import Resource
from config.compile.waypoint_required import Gate, compile_requirement
from config.objects import Ref
from config.registry.object_index import ObjectIndex
from config.registry.selectors import Labels
from config.registry.target_ports import PortPairs
from config.registry.waypoints import Enrolment
from config.registry.workload_source import WorkloadSource
from config.settings import MeshSettings

Waypoints = frozenset[Ref]


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that a workload is an endpoint of. `ports` are (service, target) pairs."""

    labels: Labels
    ports: PortPairs
    enrolment: Enrolment


@dataclass(frozen=True, slots=True)
class Reached:
    """A workload with all ways that lead to it; `own` is what its own address goes through."""

    source: WorkloadSource
    namespace_labels: Labels
    own: Enrolment
    serving: Sequence[Serving]


def asks(labels: Labels) -> bool:
    return labels.get(keys.WAYPOINT_REQUIRED) == "true"


def asks_whole(source: WorkloadSource, namespace_labels: Labels) -> bool:
    """Whether all of the workload's ports are meant."""
    own = source.labels.get(keys.WAYPOINT_REQUIRED)
    return asks(source.labels) or (own is None and asks(namespace_labels))


def is_exempt(source: WorkloadSource, index: ObjectIndex) -> bool:
    """A waypoint's own workloads, and what lies outside of the mesh."""
    return index.is_waypoint(source) or not source.has_policies


def requirement(reached: Reached, index: ObjectIndex, settings: MeshSettings) -> Resource | None:
    """The policy that the workload lists; None where nothing is asked for."""
    source = reached.source
    if is_exempt(source, index):
        return None
    asking = [each for each in reached.serving if asks(each.labels)]
    wanted = [(ports, waypoints, False) for waypoints, ports in _merged(_by_port(asking)).items()]
    if asks_whole(source, reached.namespace_labels):
        direct = frozenset(reached.own.bound)
        by_port = {port: found | direct for port, found in _by_port(reached.serving).items()}
        wanted += [(ports, waypoints, False) for waypoints, ports in _merged(by_port).items()]
        wanted.append((tuple(sorted(by_port)), direct, True))
    if not wanted:
        return None
    gates = {
        Gate(ports, tuple(sorted(principals(waypoints, index, settings))), is_rest)
        for ports, waypoints, is_rest in wanted
    }
    names = {each.name for _, waypoints, _ in wanted for each in waypoints}
    in_order = sorted(gates, key=lambda gate: (gate.is_rest, gate.ports, gate.principals))
    return compile_requirement(source.namespace, in_order, names)


def principals(waypoints: Iterable[Ref], index: ObjectIndex, settings: MeshSettings) -> set[str]:
    return {
        f"{settings.trust_domain}/ns/{each.namespace}/sa/{account}"
        for each in waypoints
        for account in index.waypoint_accounts(each)
    }


def _by_port(serving: Iterable[Serving]) -> dict[int, Waypoints]:
    found: dict[int, Waypoints] = {}
    for each in serving:
        for _, target in each.ports:
            found[target] = found.get(target, frozenset()) | frozenset(each.enrolment.bound)
    return found


def _merged(by_port: Mapping[int, Waypoints]) -> dict[Waypoints, tuple[int, ...]]:
    """Ports that the same waypoints may connect to."""
    found: dict[Waypoints, tuple[int, ...]] = {}
    for port, waypoints in sorted(by_port.items()):
        found[waypoints] = (*found.get(waypoints, ()), port)
    return found
