"""Telemetry to what waypoints log and trace. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from config.compile.resource import TELEMETRY, Resource, make_resource
from config.extension_providers import AccessLog, OtlpAccessLog, SpanCollector, SpanWire
from config.objects import Telemetry
from config.observing import MeshObserving, MetricOverride, SpanTag, TracingStep
from proto.mycelia import attachment_pb2
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.waypoint_pb2 import ClientTls

# What every waypoint has without being told: its standard output.
DEFAULT_LOG: Final = "envoy"
BUILT_IN_LOGS: Final = frozenset({DEFAULT_LOG})
DEFAULT_COLLECTOR: Final = "defaultConfig.tracing"
DEFAULTS_NAME: Final = "MeshConfig"
_Provider = TypeVar("_Provider", pb.Telemetry.SpanProvider, pb.Telemetry.LogProvider)
Collectors = Mapping[str, SpanCollector]
Logs = Mapping[str, AccessLog]
_METRICS: Final = {
    "ALL_METRICS": 1023,
    "REQUEST_COUNT": 1,
    "REQUEST_DURATION": 2,
    "REQUEST_SIZE": 4,
    "RESPONSE_SIZE": 8,
    "GRPC_REQUEST_MESSAGES": 16,
    "GRPC_RESPONSE_MESSAGES": 32,
    "TCP_OPENED_CONNECTIONS": 64,
    "TCP_CLOSED_CONNECTIONS": 128,
    "TCP_SENT_BYTES": 256,
    "TCP_RECEIVED_BYTES": 512,
}
_WIRES: Final = {
    SpanWire.OTLP_GRPC: pb.Telemetry.SpanProvider.OTLP_GRPC,
    SpanWire.OTLP_HTTP: pb.Telemetry.SpanProvider.OTLP_HTTP,
    SpanWire.ZIPKIN: pb.Telemetry.SpanProvider.ZIPKIN,
}


@dataclass(frozen=True, slots=True)
class Providers:
    """Of MeshConfig, as far as Telemetry can name them."""

    collectors: Collectors = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    # By name, of those whose service's DestinationRule says so: the settings, or why nothing may be sent.
    tls: Mapping[str, ClientTls | str] = field(default_factory=dict)

    @property
    def log_names(self) -> frozenset[str]:
        return BUILT_IN_LOGS | self.logs.keys()


def unknown_logs(telemetry: Telemetry, logs: Logs) -> tuple[str, ...]:
    """In the order of the object."""
    named = [name for step in telemetry.logging for name in step.providers]
    return tuple(dict.fromkeys(name for name in named if name not in BUILT_IN_LOGS and name not in logs))


def unknown_collectors(telemetry: Telemetry, collectors: Collectors) -> tuple[str, ...]:
    named = [name for step in telemetry.tracing for name in step.providers[:1]]
    return tuple(dict.fromkeys(name for name in named if name not in collectors))


def compile_telemetry(
    telemetry: Telemetry,
    attachment: attachment_pb2.Attachment,
    waypoints: tuple[str, ...],
    *,
    root_namespace: str,
    providers: Providers,
) -> Resource:
    """Steps of logging whose providers are all unknown are left out: what was chosen before them goes on."""
    meta = telemetry.meta
    level = pb.Telemetry.TARGET
    if telemetry.is_general:
        level = pb.Telemetry.MESH if meta.namespace == root_namespace else pb.Telemetry.NAMESPACE
    message = pb.Telemetry(
        namespace=meta.namespace,
        name=meta.name,
        attachment=attachment,
        level=level,
        order=_order(telemetry),
    )
    for step in telemetry.logging:
        known = [name for name in step.providers if name in providers.log_names]
        if known or not step.providers:
            message.logging.add(providers=known, disabled=step.is_disabled, filter=step.filter)
    message.overrides.extend(_override(each) for each in telemetry.overrides)
    message.tracing.extend(_tracing(step, providers.collectors) for step in telemetry.tracing)
    _add_providers(message, providers)
    return make_resource(TELEMETRY, f"{meta.namespace}/{meta.name}", message, waypoints=waypoints)


def compile_defaults(
    observing: MeshObserving, namespace: str, waypoints: tuple[str, ...], providers: Providers
) -> Resource:
    """What holds before any Telemetry object, as if it were one; its name is none that an object can have."""
    logs, collectors = dict(providers.logs), dict(providers.collectors)
    if observing.log_format is not None:
        logs.setdefault(DEFAULT_LOG, observing.log_format)
    if observing.collector is not None:
        collectors[DEFAULT_COLLECTOR] = observing.collector
    providers = replace(providers, collectors=collectors, logs=logs)
    message = pb.Telemetry(namespace=namespace, name=DEFAULTS_NAME, level=pb.Telemetry.DEFAULTS)
    if known := [name for name in observing.logs if name in providers.log_names]:
        message.logging.add(providers=known)
    named = (DEFAULT_COLLECTOR,) if observing.collector is not None else observing.tracing
    message.tracing.append(_tracing(replace(observing.step, providers=named), collectors))
    _add_providers(message, providers)
    if DEFAULT_LOG in logs and DEFAULT_LOG not in known:
        message.log_providers.append(_log(DEFAULT_LOG, logs[DEFAULT_LOG]))
    return make_resource(TELEMETRY, f"{namespace}/{DEFAULTS_NAME}", message, waypoints=waypoints)


def _add_providers(message: pb.Telemetry, providers: Providers) -> None:
    """Those that its steps name."""
    logs = {name for step in message.logging for name in step.providers if name in providers.logs}
    message.log_providers.extend(
        _secured(_log(name, providers.logs[name]), providers) for name in sorted(logs)
    )
    named = {step.provider for step in message.tracing if step.provider}
    message.span_providers.extend(
        _secured(_provider(name, providers.collectors[name]), providers) for name in sorted(named)
    )


def _secured(made: _Provider, providers: Providers) -> _Provider:
    tls = providers.tls.get(made.name)
    if isinstance(tls, str):
        made.refusal = tls
    elif tls is not None:
        made.tls.CopyFrom(tls)
    return made


def _override(override: MetricOverride) -> pb.Telemetry.Override:
    return pb.Telemetry.Override(
        metrics=_METRICS[override.metric],
        disabled=override.is_disabled,
        tags=[
            pb.Telemetry.LabelChange(name=name, removed=value is None, expression=value or "")
            for name, value in override.labels
        ],
    )


def _log(name: str, log: AccessLog) -> pb.Telemetry.LogProvider:
    labels = [pb.Telemetry.Header(name=key, value=value) for key, value in log.labels]
    made = pb.Telemetry.LogProvider(name=name, text=log.text, labels=labels)
    if isinstance(log, OtlpAccessLog):
        made.host, made.port = log.service.host, log.service.port
        made.namespace, made.log_name = log.service.namespace, log.log_name
    return made


def _tracing(step: TracingStep, collectors: Collectors) -> pb.Telemetry.Tracing:
    """Only the first provider is used (config-api 14)."""
    return pb.Telemetry.Tracing(
        provider=next((name for name in step.providers[:1] if name in collectors), ""),
        percent=step.percent,
        is_silent=step.is_silent,
        tags=[_tag(tag) for tag in step.tags],
        uses_request_id=step.uses_request_id,
        istio_tags=step.has_istio_tags,
    )


def _tag(tag: SpanTag) -> pb.Telemetry.Tag:
    made = pb.Telemetry.Tag(name=tag.name, default=tag.default)
    if tag.literal:
        made.literal = tag.literal
    elif tag.environment:
        made.environment = tag.environment
    else:
        made.header = tag.header
    return made


def _provider(name: str, collector: SpanCollector) -> pb.Telemetry.SpanProvider:
    return pb.Telemetry.SpanProvider(
        name=name,
        wire=_WIRES[collector.wire],
        host=collector.service.host,
        port=collector.service.port,
        namespace=collector.service.namespace,
        path=collector.path,
        headers=[pb.Telemetry.Header(name=key, value=value) for key, value in collector.headers],
        adds_w3c=collector.adds_w3c,
    )


def _order(telemetry: Telemetry) -> int:
    """Seconds since the epoch; files without a creation time count as youngest (Meta.age_key)."""
    created = telemetry.meta.created
    return (1 << 63) if created is None else max(int(created.timestamp()), 0)
