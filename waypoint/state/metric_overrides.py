"""Metrics as the Telemetry kind changes them: which are left out, and their labels (config-api 14). Pure.

Overrides apply in their order, from the mesh to the target. Metrics of requests with the same changes of
labels are counted together; where nobody changes anything, nothing here is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proto.mycelia import telemetry_pb2 as pb
from telemetry.cel import Expression, Facts, parse_label
from waypoint.state.http_labels import HTTP_LABEL_NAMES

UNKNOWN: Final = "unknown"
MAX_LABEL_CHARACTERS: Final = 256
# Bits of Telemetry.Override.metrics: the four of requests, then those that can only be left out.
REQUEST_METRICS: Final = (1, 2, 4, 8)
MESSAGES: Final = 16
TCP: Final = 32
_INDEX: Final = {name: index for index, name in enumerate(HTTP_LABEL_NAMES)}


@dataclass(frozen=True, slots=True)
class TagChange:
    """`value` None: the label is taken away."""

    name: str
    value: Expression | None


@dataclass(frozen=True, slots=True)
class Override:
    metrics: int
    is_disabled: bool | None
    changes: tuple[TagChange, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics (bits) of requests that have their labels in common. `extra` are names that Istio has not."""

    metrics: int
    changes: tuple[TagChange, ...] = ()
    extra: tuple[str, ...] = ()

    def labels(self, labels: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
        """Those of Istio's order, changed, then the extra ones."""
        changed = [*labels, *("" for _ in self.extra)]
        for change in self.changes:
            index = _INDEX.get(change.name)
            if index is None:
                index = len(labels) + self.extra.index(change.name)
            if change.value is None:
                changed[index] = ""
            else:
                found = change.value.value(facts)
                changed[index] = UNKNOWN if found is None else found[:MAX_LABEL_CHARACTERS]
        return tuple(changed)


@dataclass(frozen=True, slots=True)
class MetricPlan:
    groups: tuple[Group, ...]
    counts_messages: bool
    counts_tcp: bool


def parse_overrides(message: pb.Telemetry) -> tuple[Override, ...]:
    """Raises ExpressionRejected."""
    return tuple(
        Override(
            each.metrics,
            each.disabled if each.HasField("disabled") else None,
            tuple(
                TagChange(tag.name, None if tag.removed else parse_label(tag.expression)) for tag in each.tags
            ),
        )
        for each in message.overrides
    )


def merge_overrides(overrides: Iterable[Override]) -> MetricPlan | None:
    """None: everything is as always."""
    disabled = 0
    changes: dict[int, dict[str, TagChange]] = {metric: {} for metric in REQUEST_METRICS}
    is_changed = False
    for override in overrides:
        is_changed = True
        if override.is_disabled is True:
            disabled |= override.metrics
        elif override.is_disabled is False:
            disabled &= ~override.metrics
        for metric in REQUEST_METRICS:
            if override.metrics & metric:
                changes[metric].update({change.name: change for change in override.changes})
    if not is_changed:
        return None
    groups: dict[tuple[TagChange, ...], int] = {}
    for metric, of_metric in changes.items():
        if not disabled & metric:
            key = tuple(of_metric.values())
            groups[key] = groups.get(key, 0) | metric
    return MetricPlan(
        tuple(_group(metrics, key) for key, metrics in groups.items()),
        counts_messages=not disabled & MESSAGES,
        counts_tcp=not disabled & TCP,
    )


def _group(metrics: int, changes: tuple[TagChange, ...]) -> Group:
    """A label of one's own that is taken away again is no label."""
    kept = tuple(change for change in changes if change.name in _INDEX or change.value is not None)
    extra = tuple(sorted(change.name for change in kept if change.name not in _INDEX))
    return Group(metrics, kept, extra)
