"""Metrics as the Telemetry kind changes them: which are left out, and their labels (config-api 14). Pure.

Overrides apply in their order, from the mesh to the target. Metrics of requests with the same changes of
labels are counted together; where nobody changes anything, nothing here is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dataplane.state.labels import LABEL_NAMES
from proto.mycelia import telemetry_pb2 as pb
from telemetry.cel import Expression, Facts, parse_label
from waypoint.state.http_labels import HTTP_LABEL_NAMES, MESSAGE_LABEL_NAMES

UNKNOWN: Final = "unknown"
MAX_LABEL_CHARACTERS: Final = 256
# Bits of Telemetry.Override.metrics.
REQUEST_METRICS: Final = (1, 2, 4, 8)
MESSAGE_METRICS: Final = (16, 32)
CONNECTION_METRICS: Final = (64, 128, 256, 512)


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
    """Metrics (bits) that have their labels in common. `edits` are places in the labels and what comes there,
    None for nothing; `extra` are names that Istio has not, whose places come last.
    """

    metrics: int
    edits: tuple[tuple[int, Expression | None], ...] = ()
    extra: tuple[str, ...] = ()

    def labels(self, labels: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
        """Those of Istio's order, changed, then the extra ones."""
        if not self.edits:
            return labels
        changed = [*labels, *("" for _ in self.extra)]
        for index, expression in self.edits:
            if expression is None:
                changed[index] = ""
            else:
                found = expression.value(facts)
                changed[index] = UNKNOWN if found is None else found[:MAX_LABEL_CHARACTERS]
        return tuple(changed)


@dataclass(frozen=True, slots=True)
class MetricPlan:
    """Metrics of requests, of messages within gRPC calls, of connections that are no HTTP. What is in no
    group is not counted. Only requests have extra labels.
    """

    requests: tuple[Group, ...]
    messages: tuple[Group, ...]
    connections: tuple[Group, ...]


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
    changes: dict[int, dict[str, TagChange]] = {
        metric: {} for metric in (*REQUEST_METRICS, *MESSAGE_METRICS, *CONNECTION_METRICS)
    }
    is_changed = False
    for override in overrides:
        is_changed = True
        if override.is_disabled is True:
            disabled |= override.metrics
        elif override.is_disabled is False:
            disabled &= ~override.metrics
        for metric, of_metric in changes.items():
            if override.metrics & metric:
                of_metric.update({change.name: change for change in override.changes})
    if not is_changed:
        return None

    def grouped(metrics: tuple[int, ...], names: tuple[str, ...], *, has_extra: bool) -> tuple[Group, ...]:
        groups: dict[tuple[TagChange, ...], int] = {}
        for metric in metrics:
            if not disabled & metric:
                wanted = tuple(
                    each
                    for each in changes[metric].values()
                    if each.name in names or _is_own(each, has_extra)
                )
                groups[wanted] = groups.get(wanted, 0) | metric
        return tuple(_group(bits, wanted, names) for wanted, bits in groups.items())

    return MetricPlan(
        grouped(REQUEST_METRICS, HTTP_LABEL_NAMES, has_extra=True),
        grouped(MESSAGE_METRICS, MESSAGE_LABEL_NAMES, has_extra=False),
        grouped(CONNECTION_METRICS, LABEL_NAMES, has_extra=False),
    )


def _is_own(change: TagChange, has_extra: bool) -> bool:
    """A label of one's own that is taken away again is no label."""
    return has_extra and change.value is not None


def _group(metrics: int, changes: tuple[TagChange, ...], names: tuple[str, ...]) -> Group:
    extra = tuple(sorted(change.name for change in changes if change.name not in names))
    places = {name: index for index, name in enumerate((*names, *extra))}
    return Group(metrics, tuple((places[change.name], change.value) for change in changes), extra)
