"""What the Telemetry kind chooses: which requests are logged, and where (config-api 14). Pure.

Levels are merged from the mesh over the namespace to the target; what a level names replaces the providers of
those before it. It is no protection: an object that cannot be read keeps its last good version, or counts for
nothing, and nothing is ever refused for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from proto.mycelia import telemetry_pb2 as pb
from telemetry.access_format import Format, LabelFormat, parse_format, parse_labels
from telemetry.cel import Expression, parse_condition
from telemetry.otlp_logs import RecordFormat
from transport.errors import MeshError
from waypoint.state.errors import RoutesRejected
from waypoint.state.metric_overrides import MetricPlan, Override, merge_overrides, parse_overrides
from waypoint.state.place import Place
from waypoint.state.policies import Attached, check_name
from waypoint.state.tracing import Tracing, TracingStep, merge_tracing, parse_steps

TELEMETRY_TYPE: Final = "type.googleapis.com/mycelia.waypoint.Telemetry"
DEFAULT_LOG: Final = "envoy"  # the provider that always is: standard output
_MAX_KEPT: Final = 16_384
LogFormat = Format | LabelFormat | RecordFormat


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of accessLogging. Without providers it is about those named before."""

    providers: tuple[str, ...]
    is_disabled: bool
    filter: Expression | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """One Telemetry object."""

    key: str
    namespace: str
    attached: Attached
    level: int
    order: int
    steps: tuple[Step, ...]
    tracing: tuple[TracingStep, ...] = ()
    providers: tuple[pb.Telemetry.SpanProvider, ...] = ()
    formats: tuple[tuple[str, LogFormat], ...] = ()
    log_providers: tuple[pb.Telemetry.LogProvider, ...] = ()  # that are collectors
    overrides: tuple[Override, ...] = ()

    @property
    def age(self) -> tuple[int, str]:
        return self.order, self.key


# Provider -> what a request must be to be logged there; None: any.
Logs = Mapping[str, Expression | None]


def parse_telemetry(name: str, content: bytes, environment: Mapping[str, str]) -> Chosen:
    """`environment` is the waypoint's, for tags. Raises `MeshError`."""
    message = pb.Telemetry()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected("it is no Telemetry") from error
    key = f"{message.namespace}/{message.name}"
    check_name(name, key)
    steps = tuple(
        Step(tuple(each.providers), each.disabled, parse_condition(each.filter) if each.filter else None)
        for each in message.logging
    )
    attached = Attached.of(message.attachment)
    return Chosen(
        key,
        message.namespace,
        attached,
        message.level,
        message.order,
        steps,
        parse_steps(message, environment),
        tuple(message.span_providers),
        tuple((each.name, _format(each)) for each in message.log_providers if each.text or each.labels),
        tuple(each for each in message.log_providers if each.host),
        parse_overrides(message),
    )


def _format(provider: pb.Telemetry.LogProvider) -> LogFormat:
    labels = {label.name: label.value for label in provider.labels}
    if provider.host:
        return RecordFormat(parse_format(provider.text), parse_labels(labels))
    if labels:
        return parse_labels(labels)
    return parse_format(provider.text)


def merge_logs(levels: Iterable[Chosen], *, is_on: bool) -> dict[str, Expression | None]:
    """`levels` in the order of their weight; `is_on`: the default log is on before anybody says anything."""
    logs: dict[str, Expression | None] = {DEFAULT_LOG: None} if is_on else {}
    named: tuple[str, ...] = tuple(logs)
    for chosen in levels:
        given = tuple(name for step in chosen.steps for name in step.providers)
        if given:
            logs = {name: filter_ for name, filter_ in logs.items() if name in given}
        before = named
        for step in chosen.steps:
            before = step.providers or before
            for name in before:
                if step.is_disabled:
                    logs.pop(name, None)
                else:
                    logs[name] = step.filter
        named = given or named
    return logs


@dataclass(slots=True)
class TelemetryBook:
    """All objects that a waypoint was told of. Not thread-safe."""

    place: Place
    environment: Mapping[str, str] = field(default_factory=dict)
    _held: dict[str, Chosen] = field(default_factory=dict)
    _logs: dict[tuple[str, bool], Logs] = field(default_factory=dict)
    # All objects' together: names are those of one MeshConfig.
    _plans: dict[str, MetricPlan | None] = field(default_factory=dict)
    # Of logs that have one of their own; the others' is the waypoint's.
    formats: dict[str, LogFormat] = field(default_factory=dict)
    has_overrides: bool = False
    span_providers: dict[str, pb.Telemetry.SpanProvider] = field(default_factory=dict)
    log_providers: dict[str, pb.Telemetry.LogProvider] = field(default_factory=dict)

    def apply(self, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]) -> dict[str, str]:
        """Apply one batch; returns name -> reason of each resource refused."""
        rejected: dict[str, str] = {}
        for name, content in upserts:
            try:
                self._held[name] = parse_telemetry(name, content, self.environment)
            except MeshError as error:
                rejected[name] = error.text
        for name in removed:
            self._held.pop(name, None)
        self._logs.clear()
        self._plans.clear()
        self.has_overrides = any(chosen.overrides for chosen in self._held.values())
        self.span_providers = {
            each.name: each for _, chosen in sorted(self._held.items()) for each in chosen.providers
        }
        self.log_providers = {
            each.name: each for _, chosen in sorted(self._held.items()) for each in chosen.log_providers
        }
        self.formats = {
            name: format_ for _, chosen in sorted(self._held.items()) for name, format_ in chosen.formats
        }
        return rejected

    @property
    def has_tracing(self) -> bool:
        return bool(self.span_providers)

    def metrics(self, service_key: str) -> MetricPlan | None:
        """How requests to a service are counted; None: as always."""
        if service_key not in self._plans:
            if len(self._plans) >= _MAX_KEPT:
                self._plans.clear()
            levels = self.levels(service_key)
            self._plans[service_key] = merge_overrides(
                override for chosen in levels for override in chosen.overrides
            )
        return self._plans[service_key]

    def tracing(self, service_key: str) -> Tracing | None:
        """How requests to a service are traced; None: they are not."""
        steps = [step for chosen in self.levels(service_key) for step in chosen.tracing]
        return merge_tracing(steps, self.span_providers)

    @property
    def has_objects(self) -> bool:
        return bool(self._held)

    def logs(self, service_key: str, *, is_on: bool) -> Logs:
        """Where requests to a service are logged; with an empty key, those to a workload's own address."""
        if not self._held:
            return _DEFAULT if is_on else _NONE
        found = self._logs.get((service_key, is_on))
        if found is None:
            if len(self._logs) >= _MAX_KEPT:
                self._logs.clear()
            found = self._logs[service_key, is_on] = merge_logs(self.levels(service_key), is_on=is_on)
        return found

    def levels(self, service_key: str) -> list[Chosen]:
        """The objects that count for a service: of each level and place the oldest."""
        place = self.place
        waypoint = f"{place.namespace}/{place.name}"
        namespaces = dict.fromkeys((place.namespace, service_key.partition("/")[0] or place.namespace))
        held = sorted(self._held.values(), key=lambda each: each.age)
        targeted = [each for each in held if each.level == pb.Telemetry.TARGET]
        wide = [each for each in targeted if each.attached.whole_mesh or waypoint in each.attached.waypoints]
        groups = [
            [each for each in held if each.level == pb.Telemetry.DEFAULTS],
            [each for each in held if each.level == pb.Telemetry.MESH],
            *(
                [each for each in held if (each.level, each.namespace) == (pb.Telemetry.NAMESPACE, own)]
                for own in namespaces
            ),
            wide,
            [each for each in targeted if service_key in each.attached.services],
        ]
        return [group[0] for group in groups if group]


_DEFAULT: Final[Logs] = {DEFAULT_LOG: None}
_NONE: Final[Logs] = {}
