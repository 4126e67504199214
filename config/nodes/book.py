"""What every node agent last said, and what it is to do. Pure.

Invariants
* A node's word stands until the node itself says otherwise: not the agent's silence, nor a restart of the
  control plane, makes a captured workload look uncaptured, because others would then send it plaintext.
* A node speaks for itself only (the caller checks that), and only about workloads its manifests place there
  (the registry checks that).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Final

from config.errors import ReportRejected, StateDamaged
from config.kinds.schema import are_labels, is_dns_label, is_dns_name, parse_ip
from config.nodes.waypoints import RunningWaypoint
from config.nodes.waypoints import orders as waypoint_orders
from config.registry.capture import Attached, Decision, Registration, decide
from config.registry.registry import Registry
from proto.mycelia import node_pb2 as pb

MAX_WORKLOADS: Final = 5_000
MAX_TEXT: Final = 512
MAX_ADDRESSES: Final = 64
MAX_LABELS: Final = 64


class NodeBook:
    def __init__(self) -> None:
        self._attached: dict[str, dict[str, Attached]] = {}  # node -> uid -> workload
        self._waypoints: dict[str, tuple[RunningWaypoint, ...]] = {}

    def nodes(self) -> Iterator[str]:
        return iter(sorted(self._attached))

    def attached(self, node: str) -> Iterator[Attached]:
        return iter(self._attached.get(node, {}).values())

    def waypoints(self, node: str) -> tuple[RunningWaypoint, ...]:
        return self._waypoints.get(node, ())

    def says(self, node: str, workloads: Iterable[Attached], waypoints: Iterable[RunningWaypoint]) -> bool:
        """Whether the node's last word was the same."""
        held = self._attached.get(node)
        return held == {each.uid: each for each in workloads} and self.waypoints(node) == tuple(waypoints)

    def report(
        self, node: str, workloads: Iterable[Attached], waypoints: Iterable[RunningWaypoint] = ()
    ) -> None:
        """Takes the whole of what a node says."""
        self._attached[node] = {each.uid: each for each in workloads}
        self._waypoints[node] = tuple(waypoints)

    def forget_registered(self, nodes: Iterable[str]) -> None:
        """Takes back what nodes said of workloads that they registered."""
        for node in nodes:
            kept = self._attached.get(node, {})
            self._attached[node] = {uid: each for uid, each in kept.items() if each.registration is None}

    def captured(self, node: str) -> set[tuple[str, str]]:
        """(namespace, name) of what the node has captured."""
        return {(each.namespace, each.name) for each in self.attached(node) if each.is_captured}

    def decisions(self, node: str, registry: Registry) -> Iterator[tuple[Attached, Decision]]:
        return ((each, decide(node, each, registry)) for each in self.attached(node))

    def orders(self, node: str, registry: Registry) -> pb.NodeOrders:
        orders = pb.NodeOrders()
        for attached, decision in sorted(self.decisions(node, registry), key=lambda pair: pair[0].uid):
            reason = "; ".join((decision.reason, *decision.problems))
            orders.orders.append(pb.Order(uid=attached.uid, capture=decision.capture, reason=reason))
        orders.waypoints.extend(waypoint_orders(node, registry))
        return orders

    # ---- on disk ----

    def snapshot(self) -> dict[str, object]:
        return {
            "version": 1,
            "nodes": {
                node: [
                    {
                        "uid": each.uid,
                        "namespace": each.namespace,
                        "name": each.name,
                        "service_account": each.service_account,
                        "addresses": list(each.addresses),
                        "is_captured": each.is_captured,
                        "problem": each.problem,
                        "registration": _snapshot_registration(each.registration),
                    }
                    for each in workloads.values()
                ]
                for node, workloads in sorted(self._attached.items())
            },
            "waypoints": {
                node: [asdict(each) for each in waypoints]
                for node, waypoints in sorted(self._waypoints.items())
            },
        }

    @classmethod
    def restore(cls, data: object) -> NodeBook:
        """From a snapshot; None gives an empty book. Raises StateDamaged."""
        book = cls()
        if data is None:
            return book
        try:
            assert isinstance(data, dict)
            running = data.get("waypoints", {})
            for node, workloads in data["nodes"].items():
                waypoints = [_restored_waypoint(each) for each in running.get(node, ())]
                book.report(node, [_restored(each) for each in workloads], waypoints)
        except (KeyError, TypeError, AttributeError, AssertionError) as error:
            raise StateDamaged(
                "the file of captured workloads is not of this program",
                next_step="restore it, or remove it: nodes report again when they connect",
            ) from error
        return book


def _restored(data: Mapping[str, object]) -> Attached:
    addresses, captured = data["addresses"], data["is_captured"]
    assert isinstance(addresses, list)
    assert isinstance(captured, bool)
    texts = [data[key] for key in ("uid", "namespace", "name", "service_account", "problem")]
    uid, namespace, name, account, problem = (text for text in texts if isinstance(text, str))
    said = data.get("registration")
    registration = _restored_registration(said) if isinstance(said, dict) else None
    found = tuple(str(each) for each in addresses)
    return Attached(uid, namespace, name, account, found, captured, problem, registration)


def _snapshot_registration(registration: Registration | None) -> object:
    return asdict(registration) if registration is not None else None


def _restored_registration(data: Mapping[str, object]) -> Registration:
    labels, addresses, network, unhealthy = (
        data[key] for key in ("labels", "addresses", "network", "unhealthy")
    )
    assert isinstance(labels, dict)
    assert isinstance(addresses, list)
    found = {str(key): str(value) for key, value in labels.items()}
    return Registration(found, tuple(str(each) for each in addresses), str(network), str(unhealthy))


def _restored_waypoint(data: Mapping[str, object]) -> RunningWaypoint:
    pid, port = data["pid"], data["metrics_port"]
    assert isinstance(pid, int)
    assert isinstance(port, int)
    texts = [data[key] for key in ("namespace", "workload", "state", "problem")]
    namespace, workload, state, problem = (text for text in texts if isinstance(text, str))
    return RunningWaypoint(namespace, workload, state, problem, pid, port)


def read_report(report: pb.NodeReport) -> list[Attached]:
    """Raises ReportRejected."""
    if len(report.workloads) > MAX_WORKLOADS:
        raise ReportRejected(f"{len(report.workloads)} workloads in a report; at most {MAX_WORKLOADS}")
    found: dict[str, Attached] = {}
    for each in report.workloads:
        attached = _read_workload(each)
        if attached.uid in found:
            raise ReportRejected(f"the uid {attached.uid} is there twice")
        found[attached.uid] = attached
    return list(found.values())


def _read_workload(workload: pb.AttachedWorkload) -> Attached:
    if not workload.uid or len(workload.uid) > MAX_TEXT:
        raise ReportRejected(f"a workload has no uid, or one of more than {MAX_TEXT} characters")
    account = workload.service_account or "default"
    if not is_dns_label(workload.namespace) or not is_dns_name(workload.name) or not is_dns_name(account):
        raise ReportRejected(f"workload {workload.uid}: namespace, name or service account is no name")
    if len(workload.addresses) > MAX_ADDRESSES:
        raise ReportRejected(f"workload {workload.uid} has more than {MAX_ADDRESSES} addresses")
    return Attached(
        workload.uid,
        workload.namespace,
        workload.name,
        account,
        tuple(address for text in workload.addresses if (address := parse_ip(text)) is not None),
        workload.is_captured,
        workload.problem[:MAX_TEXT],
        _read_registration(workload) if workload.HasField("registration") else None,
    )


def _read_registration(workload: pb.AttachedWorkload) -> Registration:
    said = workload.registration
    labels, name = dict(said.labels), f"the registration of workload {workload.uid}"
    if len(labels) > MAX_LABELS or not are_labels(labels):
        raise ReportRejected(f"{name}: labels are no labels, or more than {MAX_LABELS}")
    if len(said.addresses) > MAX_ADDRESSES:
        raise ReportRejected(f"{name} has more than {MAX_ADDRESSES} addresses")
    addresses = tuple(dict.fromkeys(parse_ip(text) or "" for text in said.addresses))
    if "" in addresses:
        raise ReportRejected(f"{name}: an address is none")
    if said.network and not is_dns_name(said.network.lower()):
        raise ReportRejected(f"{name}: network {said.network[:100]!r} is no name")
    return Registration(labels, addresses, said.network, said.unhealthy[:MAX_TEXT])
