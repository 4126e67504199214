"""What MeshConfig says about logs, traces and metrics before any Telemetry object does (config-api 15)."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import observing
from config.extension_providers import FileAccessLog, ProviderService, SpanCollector, SpanWire
from config.kinds.schema import Model, NonEmpty, complain, fields, is_dns_name, refuse
from config.kinds.telemetry import MAX_TAGS, CustomTag
from telemetry import access_defaults
from telemetry.access_format import FormatRejected, parse_format, parse_labels

ENVOY: Final = "envoy"
_ZIPKIN_PATH: Final = "/api/v2/spans"
Names = Annotated[list[NonEmpty], Field(max_length=8)]


def _place(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not is_dns_name(host.lower()) or not port.isdecimal() or not 1 <= int(port) <= 65535:
        refuse("HOST:PORT of a collector")
    return text


class DefaultProvidersSpec(Model):
    tracing: Names = Field(default_factory=list)
    metrics: Names | None = None
    access_logging: Names = Field(default_factory=list, alias="accessLogging")


class ZipkinTracingSpec(Model):
    address: Annotated[NonEmpty, AfterValidator(_place)]

    def to_config(self) -> SpanCollector:
        host, _, port = self.address.rpartition(":")
        return SpanCollector(ProviderService(host.lower(), int(port)), SpanWire.ZIPKIN, _ZIPKIN_PATH)


class ProxyTracingSpec(Model):
    unread: ClassVar[frozenset[str]] = fields(
        "lightstep datadog stackdriver openCensusAgent maxPathTagLength tlsSettings"
    )

    percent: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, alias="sampling")
    tags: Annotated[dict[str, CustomTag], Field(max_length=MAX_TAGS)] = Field(
        default_factory=dict, alias="customTags"
    )
    has_istio_tags: bool | None = Field(default=None, alias="enableIstioTags")
    zipkin: ZipkinTracingSpec | None = None


class ProxyConfigSpec(Model):
    """Of the mesh's proxies; only `tracing` is about waypoints here."""

    unread: ClassVar[frozenset[str]] = fields(
        "availabilityZone binaryPath caCertificatesPem concurrency configPath controlPlaneAuthPolicy "
        "customConfigFile discoveryAddress discoveryRefreshDelay drainDuration envoyAccessLogService "
        "envoyMetricsService envoyMetricsServiceAddress extraStatTags fileFlushInterval fileFlushMinSizeKb "
        "gatewayTopology holdApplicationUntilProxyStarts image interceptionMode meshId "
        "parentShutdownDuration privateKeyProvider proxyAdminPort proxyBootstrapTemplatePath proxyHeaders "
        "proxyMetadata proxyStatsMatcher readinessProbe runtimeValues sds serviceCluster statNameLength "
        "statsdUdpAddress statusPort terminationDrainDuration tracingServiceName zipkinAddress"
    )

    tracing: ProxyTracingSpec = Field(default_factory=ProxyTracingSpec)


class ObservingSpec(Model):
    """The fields of MeshConfig."""

    file: Literal["", "/dev/stdout"] = Field(default="", alias="accessLogFile")
    format: str = Field(default="", alias="accessLogFormat")
    encoding: Literal["TEXT", "JSON"] | None = Field(default=None, alias="accessLogEncoding")
    defaults: DefaultProvidersSpec = Field(default_factory=DefaultProvidersSpec, alias="defaultProviders")
    is_traced: bool = Field(default=False, alias="enableTracing")
    proxy: ProxyConfigSpec = Field(default_factory=ProxyConfigSpec, alias="defaultConfig")

    @model_validator(mode="after")
    def _check_format(self) -> ObservingSpec:
        self.log_format()
        return self

    def log_format(self) -> FileAccessLog | None:
        """Of the provider `envoy`; None: nobody says."""
        try:
            if self.encoding == "JSON":
                labels = _labels(self.format) if self.format else access_defaults.LABELS
                parse_labels(labels)
                return FileAccessLog(labels=tuple(labels.items()))
            parse_format(self.format)
        except FormatRejected as error:
            complain(f"accessLogFormat: {error.text}")
        if self.format or self.encoding is not None:
            return FileAccessLog(self.format or access_defaults.TEXT)
        return None

    def observing(self) -> observing.MeshObserving:
        tracing, names = self.proxy.tracing, self.defaults
        is_zipkin = self.is_traced and not names.tracing and tracing.zipkin is not None
        return observing.MeshObserving(
            logs=tuple(names.access_logging) or ((ENVOY,) if self.file else ()),
            log_format=self.log_format(),
            tracing=tuple(names.tracing),
            metrics=None if names.metrics is None else tuple(names.metrics),
            step=observing.TracingStep(
                percent=tracing.percent,
                tags=tuple(tag.to_object(name) for name, tag in sorted(tracing.tags.items())),
                has_istio_tags=tracing.has_istio_tags,
            ),
            collector=tracing.zipkin.to_config() if is_zipkin and tracing.zipkin is not None else None,
        )

    @property
    def traces_nowhere(self) -> bool:
        return self.is_traced and not self.defaults.tracing and self.proxy.tracing.zipkin is None


def _labels(text: str) -> dict[str, str]:
    """With JSON the format is an object of texts."""
    try:
        found = json.loads(text)
    except ValueError as error:
        complain(f"accessLogFormat: with accessLogEncoding JSON it is an object; {error}")
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        complain("accessLogFormat: with accessLogEncoding JSON it is one object whose values are texts")
    return dict(found)
