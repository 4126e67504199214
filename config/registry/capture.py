"""Which of a node's workloads are to be captured, and why (config-api 1.1, 1.3). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from config import keys
from config.registry.registry import Registry
from config.registry.workload_source import WorkloadSource

AMBIENT: Final = "ambient"


@dataclass(frozen=True, slots=True)
class Registration:
    """What a node says of a workload that no manifest describes. Without addresses: those it found."""

    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    network: str = ""
    unhealthy: str = ""  # why nothing should be sent to it


@dataclass(frozen=True, slots=True)
class Attached:
    """A workload as its node agent knows it."""

    uid: str
    namespace: str
    name: str
    service_account: str
    addresses: tuple[str, ...] = ()
    is_captured: bool = False
    problem: str = ""
    registration: Registration | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`problems` are contradictions between manifest and node; they do not change the decision, because
    letting a workload out of the mesh would turn its traffic into plaintext.
    """

    capture: bool
    reason: str
    problems: tuple[str, ...] = ()


def decide(node: str, attached: Attached, registry: Registry) -> Decision:
    sources = registry.index.sources_at(attached.namespace, attached.name)
    place = f"{attached.namespace}/{attached.name}"
    if not sources:
        return Decision(False, f"unknown workload: no Pod or WorkloadEntry {place} with an address")
    source = next((each for each in sources if each.node == node), sources[0])
    if source.node != node:
        where = f"node {source.node}" if source.node else "no node"
        return Decision(False, f"{source.owner} is on {where} by its manifest, not on {node}")
    if source.is_host_network:
        return Decision(False, f"{source.owner} uses the host's network, which is never captured")
    capture, reason = by_labels(source, registry)
    return Decision(capture, reason, tuple(_contradictions(attached, source)))


def by_labels(source: WorkloadSource, registry: Registry) -> tuple[bool, str]:
    """Whether a workload is to be captured, and which label says so."""
    if registry.index.is_waypoint(source):
        return False, f"{source.owner} is a waypoint's workload, whose own traffic is never captured"
    own = source.labels.get(keys.DATAPLANE_MODE)
    if own is not None:
        return own == AMBIENT, f"label {keys.DATAPLANE_MODE}={own} of {source.owner}"
    namespace = registry.index.namespace(source.namespace)
    mode = namespace.meta.labels.get(keys.DATAPLANE_MODE) if namespace is not None else None
    if mode is None:
        return False, f"no label {keys.DATAPLANE_MODE} on {source.owner} or its namespace"
    return mode == AMBIENT, f"label {keys.DATAPLANE_MODE}={mode} of Namespace {source.namespace}"


def _contradictions(attached: Attached, source: WorkloadSource) -> Iterable[str]:
    account = attached.service_account or "default"
    if account != source.service_account:
        yield (
            f"attached with service account {account}, but the manifest says {source.service_account}: "
            "the node proxy will refuse its traffic"
        )
    missing = sorted(set(source.addresses) - set(attached.addresses))
    if attached.addresses and missing:
        yield f"the manifest's address {', '.join(missing)} is not in its network namespace"
