"""MeshConfig's logs and traces: what waypoints hear before any Telemetry object says something."""

from __future__ import annotations

import textwrap

import pytest
from google.protobuf.duration_pb2 import Duration

from config.compile.resource import MESH_SETTINGS, TELEMETRY
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia import waypoint_pb2 as pb2
from telemetry import access_defaults
from tests.config.support import waypoint
from tests.config.test_telemetry import ENVOY, meshed, sent, telemetry

ZIPKIN = "extensionProviders: [{name: zip, zipkin: {service: zip.obs, port: 9411}}]"
DEFAULTS = "istio-system/MeshConfig"


def config(mesh: str, space: str = "istio-system") -> str:
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {space}}}\ndata:\n"
    return head + "  mesh: |-\n" + textwrap.indent(textwrap.dedent(mesh), "    ")


def defaults(mesh: str) -> pb.Telemetry:
    return sent(meshed(config(mesh)))[DEFAULTS]


def test_nothing_is_said_where_mesh_config_says_nothing_or_is_not_the_mesh_s() -> None:
    assert sent(meshed(config(ZIPKIN))) == {}
    assert sent(meshed(config("accessLogFile: /dev/stdout", space="shop"))) == {}


@pytest.mark.parametrize(
    ("mesh", "named", "text", "labels"),
    [
        ("accessLogFile: /dev/stdout", ["envoy"], None, None),
        ("{accessLogFile: /dev/stdout, accessLogFormat: '%PROTOCOL%'}", ["envoy"], "%PROTOCOL%", {}),
        ("accessLogEncoding: TEXT", [], access_defaults.TEXT, {}),
        ("accessLogEncoding: JSON", [], "", access_defaults.LABELS),
        (
            '{accessLogEncoding: JSON, accessLogFormat: \'{"a": "%PROTOCOL%"}\'}',
            [],
            "",
            {"a": "%PROTOCOL%"},
        ),
    ],
)
def test_the_access_log(mesh: str, named: list[str], text: str | None, labels: dict[str, str] | None) -> None:
    found = defaults(mesh)
    assert found.level == pb.Telemetry.DEFAULTS
    assert [list(step.providers) for step in found.logging] == ([named] if named else [])
    formats = {
        each.name: (each.text, {label.name: label.value for label in each.labels})
        for each in found.log_providers
    }
    assert formats == ({} if text is None else {"envoy": (text, labels)})


def test_default_providers_stand_for_the_file() -> None:
    log = "extensionProviders: [{name: short, envoyFileAccessLog: {logFormat: {text: '%PROTOCOL%'}}}]"
    mesh = f"{log}\naccessLogFile: /dev/stdout\ndefaultProviders: {{accessLogging: [short]}}"
    found = defaults(mesh)
    assert [list(step.providers) for step in found.logging] == [["short"]]
    assert [(each.name, each.text) for each in found.log_providers] == [("short", "%PROTOCOL%")]


def test_default_providers_of_traces_and_how_much_is_sampled() -> None:
    tags = "customTags: {stage: {literal: {value: test}}}"
    proxy = f"defaultConfig: {{tracing: {{sampling: 7, enableIstioTags: false, {tags}}}}}"
    found = defaults(f"{ZIPKIN}\n{proxy}\ndefaultProviders: {{tracing: [zip, other]}}")
    (step,) = found.tracing
    assert (step.provider, step.percent, step.istio_tags) == ("zip", 7.0, False)
    assert not step.HasField("is_silent")
    assert [(tag.name, tag.literal) for tag in step.tags] == [("stage", "test")]
    assert [(each.name, each.host, each.port) for each in found.span_providers] == [("zip", "zip.obs", 9411)]


def test_the_proxies_zipkin_counts_only_where_tracing_is_on() -> None:
    zipkin = "defaultConfig: {tracing: {sampling: 5, zipkin: {address: zipkin.obs:9411}}}"
    found = defaults(f"{zipkin}\nenableTracing: true")
    assert [step.provider for step in found.tracing] == ["defaultConfig.tracing"]
    (collector,) = found.span_providers
    assert (collector.host, collector.port, collector.path) == ("zipkin.obs", 9411, "/api/v2/spans")
    found = defaults(zipkin)
    assert [(step.provider, step.percent) for step in found.tracing] == [("", 5.0)]
    assert not found.span_providers


def test_what_is_not_known_is_reported_and_a_change_is_told() -> None:
    mesh = meshed(config("defaultProviders: {accessLogging: [a], tracing: [b], metrics: [prometheus, c]}"))
    notes = "\n".join(mesh.notes())
    for name in ("accessLogging: a", "tracing: b", "metrics: c"):
        assert name in notes
    mesh.apply(config("accessLogFile: /dev/stdout"))
    assert mesh.notes() == []
    assert len(sent(mesh)[DEFAULTS].logging) == 1
    mesh.apply(waypoint("other", space="else"), telemetry(ENVOY, "meshconfig", space="istio-system"))
    resources = mesh.registry.resources[TELEMETRY]
    assert resources[DEFAULTS].waypoints == ("else/other", "shop/wp")
    assert len(resources) == 2
    mesh.remove("ConfigMap", "istio-system", "istio")
    assert sent(mesh).keys() == {"istio-system/meshconfig"}


def settings(mesh: str) -> pb2.MeshSettings | None:
    resources = meshed(config(mesh)).registry.resources[MESH_SETTINGS]
    return pb2.MeshSettings.FromString(resources["mesh"].payload) if resources else None


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ("pathNormalization: {normalization: BASE}", None),
        ("pathNormalization: {}", None),
        (
            "pathNormalization: {normalization: MERGE_SLASHES}",
            pb2.MeshSettings(path_normalization=pb2.MeshSettings.MERGE_SLASHES),
        ),
        (
            "pathNormalization: {normalization: NONE}",
            pb2.MeshSettings(path_normalization=pb2.MeshSettings.NONE),
        ),
        ("connectTimeout: 3s", pb2.MeshSettings(connect_timeout=Duration(seconds=3))),
        (
            "tcpKeepalive: {time: 30s, probes: 3}",
            pb2.MeshSettings(keepalive=pb2.TcpKeepalive(probes=3, idle=Duration(seconds=30))),
        ),
        (
            "defaultHttpRetryPolicy: {attempts: 0}",
            pb2.MeshSettings(default_retries=pb2.RetryPolicy()),
        ),
        (
            "defaultHttpRetryPolicy: {attempts: 4, retryOn: '5xx,429'}",
            pb2.MeshSettings(
                default_retries=pb2.RetryPolicy(
                    attempts=4, on=["5xx"], statuses=[429], backoff=Duration(nanos=25_000_000)
                )
            ),
        ),
    ],
)
def test_what_holds_for_all_requests(mesh: str, expected: pb2.MeshSettings | None) -> None:
    assert settings(mesh) == expected
