"""Waypoint processes: what a node agent is to run, and how its word about them is read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from config.errors import ReportRejected
from config.kinds.schema import is_dns_label, is_dns_name
from config.registry.registry import Registry
from config.registry.waypoint_processes import Place, WaypointWord, gateway_of, is_run_by_agent
from proto.mycelia import node_pb2 as pb

MAX_WAYPOINTS: Final = 1_000
MAX_TEXT: Final = 512
STATES: Final[Mapping[int, str]] = {
    pb.WaypointReport.STARTING: "starting",
    pb.WaypointReport.READY: "ready",
    pb.WaypointReport.FAILED: "failed",
    pb.WaypointReport.STOPPING: "stopping",
}


@dataclass(frozen=True, slots=True)
class RunningWaypoint:
    """One process, as its node agent sees it. `state` is a value of STATES; 0: no process, no port."""

    namespace: str
    workload: str
    state: str
    problem: str = ""
    pid: int = 0
    metrics_port: int = 0

    @property
    def place(self) -> Place:
        return self.namespace, self.workload

    @property
    def word(self) -> WaypointWord:
        text = f"{self.state}: {self.problem}" if self.problem else self.state
        return WaypointWord(self.state == "ready", text)


def orders(node: str, registry: Registry) -> list[pb.WaypointOrder]:
    """The waypoints that a node's agent is to run."""
    index, settings = registry.index, registry.settings
    found: list[pb.WaypointOrder] = []
    for uid in sorted(index.sources_on(node)):
        source = index.sources[uid]
        ref = gateway_of(source)
        if ref is None or not is_run_by_agent(source, index.gateway(ref)):
            continue
        order = pb.WaypointOrder(
            namespace=source.namespace,
            gateway=ref.name,
            workload=source.name,
            service_account=source.service_account,
            addresses=source.addresses,
            trust_domain=settings.trust_domain,
            cluster_id=source.cluster or settings.cluster_id,
            network=registry.places.network(source),
        )
        found.append(order)
    return found


def words(waypoints: Iterable[RunningWaypoint]) -> dict[Place, WaypointWord]:
    return {each.place: each.word for each in waypoints}


def read_waypoints(report: pb.NodeReport) -> list[RunningWaypoint]:
    """Raises ReportRejected."""
    if len(report.waypoints) > MAX_WAYPOINTS:
        raise ReportRejected(f"{len(report.waypoints)} waypoints in a report; at most {MAX_WAYPOINTS}")
    found: dict[Place, RunningWaypoint] = {}
    for each in report.waypoints:
        if not is_dns_label(each.namespace) or not is_dns_name(each.workload):
            raise ReportRejected("a waypoint's namespace or workload is no name")
        if each.state not in STATES:
            raise ReportRejected(f"waypoint {each.namespace}/{each.workload}: state {each.state} is unknown")
        state = STATES[each.state]
        running = RunningWaypoint(
            each.namespace, each.workload, state, each.problem[:MAX_TEXT], each.pid, each.metrics_port
        )
        if running.place in found:
            raise ReportRejected(f"waypoint {each.namespace}/{each.workload} is there twice")
        found[running.place] = running
    return list(found.values())
