"""What waypoints log, trace and count: steps of the Telemetry kind, and MeshConfig's defaults. Values only,
checked by `config.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from config.extension_providers import FileAccessLog, SpanCollector


@dataclass(frozen=True, slots=True)
class LoggingStep:
    """One entry of accessLogging; `filter` is an expression, empty for none."""

    providers: tuple[str, ...] = ()
    is_disabled: bool = False
    filter: str = ""


@dataclass(frozen=True, slots=True)
class SpanTag:
    """Exactly one of literal, environment and header says something."""

    name: str
    literal: str = ""
    environment: str = ""
    header: str = ""
    default: str = ""


@dataclass(frozen=True, slots=True)
class TracingStep:
    """One entry of tracing; None: it says nothing of it."""

    providers: tuple[str, ...] = ()
    percent: float | None = None
    is_silent: bool | None = None
    tags: tuple[SpanTag, ...] = ()
    uses_request_id: bool | None = None
    has_istio_tags: bool | None = None


@dataclass(frozen=True, slots=True)
class MetricOverride:
    """`metric` as written; `labels` name an expression, or None to take the label away."""

    metric: str = "ALL_METRICS"
    is_disabled: bool | None = None
    labels: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class MeshObserving:
    """What holds before any Telemetry object says something. `logs` and `tracing` are names of providers,
    `metrics` None: nobody said. `log_format` is that of the provider `envoy`, None: the waypoint's own.
    `collector` is one without a name (defaultConfig.tracing).
    """

    logs: tuple[str, ...] = ()
    log_format: FileAccessLog | None = None
    tracing: tuple[str, ...] = ()
    metrics: tuple[str, ...] | None = None
    step: TracingStep = TracingStep()
    collector: SpanCollector | None = None
