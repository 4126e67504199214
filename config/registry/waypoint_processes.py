"""Waypoints that node agents run: which, and what their nodes say of them. Pure.

A node agent runs a waypoint's workload if that is a WorkloadEntry placed on its node, unless the entry says
`mycelia.io/run-waypoint: "false"`. Of such a workload the node has the last word: it is ready when its
manifest does not deny it and its node says so. A node that never said anything has no agent: there the
manifest alone counts, as it does for workloads that somebody else runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from config import keys
from config.kinds.gateway import WAYPOINT_CLASS
from config.objects import Gateway, Ref
from config.registry.workload_source import Joining, WorkloadSource

Place = tuple[str, str]  # (namespace, workload name)


@dataclass(frozen=True, slots=True)
class WaypointWord:
    """What a node says of one waypoint process. `text` is for the operator: `ready`, `failed: ...`."""

    is_ready: bool
    text: str


NOT_STARTED = WaypointWord(False, "not started yet")


class WaypointWords:
    """By node; a word stands until the node says another, like all that nodes say (config/nodes/book.py)."""

    def __init__(self) -> None:
        self._said: dict[str, Mapping[Place, WaypointWord]] = {}

    def said(self, node: str, words: Mapping[Place, WaypointWord]) -> set[Place]:
        """Takes all that a node says; gives the places of which it says something else now."""
        before = self._said.get(node)
        self._said[node] = dict(words)
        if before is None:
            return {*words, ALL}
        return {place for place in {*before, *words} if before.get(place) != words.get(place)}

    def of(self, source: WorkloadSource, gateway: Gateway | None) -> WaypointWord | None:
        """None where the node has no say in it."""
        if source.node not in self._said or not is_run_by_agent(source, gateway):
            return None
        return self._said[source.node].get((source.namespace, source.name), NOT_STARTED)


# Stands for every workload of the node: its first word changes what silence means.
ALL: Place = ("", "")


def gateway_of(source: WorkloadSource) -> Ref | None:
    """The Gateway that a workload is a replica of."""
    name = source.labels.get(keys.GATEWAY_NAME, "")
    return Ref("Gateway", source.namespace, name) if name and source.joins_by_labels else None


def is_run_by_agent(source: WorkloadSource, gateway: Gateway | None) -> bool:
    return (
        gateway is not None
        and gateway.class_name == WAYPOINT_CLASS
        and gateway.meta.ref == gateway_of(source)
        and source.joining is Joining.BY_ENTRY_LABELS
        and bool(source.node)
        and source.is_run_here
    )


def troubles(words: Iterable[tuple[WorkloadSource, WaypointWord | None]]) -> list[str]:
    """For the operator: what each says that is not ready."""
    return [
        f"{source.name} on {source.node}: {word.text}"
        for source, word in words
        if word is not None and not word.is_ready
    ]
