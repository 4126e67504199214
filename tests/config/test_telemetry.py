"""Telemetry: validation, which waypoints hear of it, and what is reported."""

from __future__ import annotations

import json

import pytest

from config.compile.resource import TELEMETRY
from proto.mycelia import telemetry_pb2 as pb
from telemetry import access_defaults
from tests.config.support import Mesh, errors_of, istio, replica, service, waypoint
from tests.kit.certificates import shared_root

ENVOY = "accessLogging: [{providers: [{name: envoy}]}]"
OWN = "tagOverrides: {tenant: {value: \"'a'\"}}"
TO_WEB = "targetRefs: [{kind: Service, name: web}]"
WEB = service("web", "ports: [{name: http, port: 80}]", labels="istio.io/use-waypoint: wp")


def telemetry(spec: str, name: str = "logs", *, space: str = "shop", metadata: str = "") -> str:
    group = "telemetry.istio.io"
    return istio("Telemetry", name, f"{{{spec}}}", space=space, group=group, metadata=metadata)


def sent(mesh: Mesh) -> dict[str, pb.Telemetry]:
    return {
        name: pb.Telemetry.FromString(each.payload)
        for name, each in mesh.registry.resources[TELEMETRY].items()
    }


def meshed(*texts: str) -> Mesh:
    return Mesh(waypoint(), replica(), WEB, *texts)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("accessLogging: [{filter: {expression: 'response.kode == 1'}}]", "response.kode"),
        ("accessLogging: [{filter: {expression: 'response.code'}}]", "not a condition"),
        ("accessLogging: [{filter: {}}]", "expression"),
        ("accessLogging: [{match: {mode: BOTH}}]", "mode"),
        ("accessLogging: [{providers: [{}]}]", "name"),
        ("accessLogging: [{sampling: 1}]", "sampling"),
        ("tracing: [{randomSamplingPercentage: 101}]", "randomSamplingPercentage"),
        ("tracing: [{customTags: {a: {}}}]", "exactly one of literal"),
        ("tracing: [{customTags: {a: {formatter: {value: x}}}}]", "formatter"),
        ("tracing: [{customTags: {a: {header: {name: 'a b'}}}}]", "name of a header"),
        ("tracing: [{disableContextPropagation: true}]", "disableContextPropagation"),
        ("metrics: [{reportingInterval: often}]", "reportingInterval"),
        ("metrics: [{overrides: [{match: {metric: TCP_RETRIES}}]}]", "REQUEST_COUNT"),
        (f"metrics: [{{overrides: [{{match: {{metric: TCP_SENT_BYTES}}, {OWN}}}]}}]", 'no label "tenant"'),
        (f"metrics: [{{overrides: [{{match: {{metric: GRPC_REQUEST_MESSAGES}}, {OWN}}}]}}]", "no label"),
        ("metrics: [{overrides: [{match: {customMetric: a}}]}]", "customMetric"),
        ("metrics: [{overrides: [{tagOverrides: {a: {value: 'response.kode'}}}]}]", "response.kode"),
        ("metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: 'b'}}}]}]", "REMOVE has none"),
        ("metrics: [{overrides: [{tagOverrides: {a: {}}}]}]", "needs a value"),
        ("metrics: [{overrides: [{tagOverrides: {reporter: {operation: REMOVE}}}]}]", "reporter"),
        ("metrics: [{overrides: [{tagOverrides: {'a-b': {operation: REMOVE}}}]}]", "a-b"),
        (f"selector: {{matchLabels: {{a: b}}}}, {TO_WEB}", "exclude each other"),
        ("targetRefs: [{kind: Pod, name: web}]", "targetRef"),
    ],
)
def test_what_is_wrong_is_said(spec: str, complaint: str) -> None:
    errors = errors_of(telemetry(spec))
    assert errors
    assert complaint in " ".join(errors)


def test_the_older_version_of_the_kind_is_read_too() -> None:
    assert not errors_of(telemetry(ENVOY).replace("io/v1\n", "io/v1alpha1\n"))


def test_levels_and_steps_are_told_to_waypoints() -> None:
    filtered = "accessLogging: [{match: {mode: SERVER}, filter: {expression: 'response.code > 1'}}]"
    mesh = meshed(
        telemetry(ENVOY, "all", space="istio-system"),
        telemetry("accessLogging: [{disabled: true}, {match: {mode: CLIENT}}]", "quiet"),
        telemetry(f"{TO_WEB}, {filtered}", "web"),
    )
    found = sent(mesh)
    assert found["istio-system/all"].level == pb.Telemetry.MESH
    assert list(found["istio-system/all"].logging[0].providers) == ["envoy"]
    assert found["shop/quiet"].level == pb.Telemetry.NAMESPACE
    assert [step.disabled for step in found["shop/quiet"].logging] == [True]
    assert found["shop/web"].level == pb.Telemetry.TARGET
    assert found["shop/web"].logging[0].filter == "response.code > 1"
    assert list(found["shop/web"].attachment.services) == ["shop/web.shop.svc.cluster.local"]
    resources = mesh.registry.resources[TELEMETRY].values()
    assert {each.waypoints for each in resources} == {("shop/wp",)}
    assert mesh.notes() == []


def test_every_waypoint_hears_of_a_general_one_also_those_that_come_later() -> None:
    mesh = meshed(telemetry(ENVOY, space="istio-system"))
    mesh.apply(waypoint("other", space="else"))
    (resource,) = mesh.registry.resources[TELEMETRY].values()
    assert resource.waypoints == ("else/other", "shop/wp")
    mesh.remove("Gateway", "else", "other")
    mesh.remove("Gateway", "shop", "wp")
    assert sent(mesh) == {}


def test_the_oldest_of_a_namespace_counts_and_the_other_one_is_reported() -> None:
    old = "creationTimestamp: '2025-01-01T00:00:00Z'"
    new = "creationTimestamp: '2026-01-01T00:00:00Z'"
    mesh = meshed(telemetry(ENVOY, "b", metadata=old), telemetry(ENVOY, "a", metadata=new))
    assert sent(mesh).keys() == {"shop/b"}
    assert [note for note in mesh.notes() if "Conflicted" in note and "shop/b is older" in note]
    mesh.remove("Telemetry", "shop", "b")
    assert sent(mesh).keys() == {"shop/a"}
    assert mesh.notes() == []


def test_two_for_one_service_are_reported() -> None:
    old = "creationTimestamp: '2025-01-01T00:00:00Z'"
    mesh = meshed(telemetry(f"{TO_WEB}, {ENVOY}", "b", metadata=old), telemetry(f"{TO_WEB}, {ENVOY}", "a"))
    found = sent(mesh)
    assert found["shop/b"].order < found["shop/a"].order
    assert any("Conflicted" in note for note in mesh.notes())


def test_a_provider_that_is_not_known_changes_nothing_and_is_reported() -> None:
    mesh = meshed(telemetry("accessLogging: [{providers: [{name: cloud}]}]"))
    assert not sent(mesh)["shop/logs"].logging
    assert any("cloud" in note for note in mesh.notes())


def test_a_selector_has_no_effect_and_that_is_said() -> None:
    mesh = meshed(telemetry(f"selector: {{matchLabels: {{app: web}}}}, {ENVOY}"))
    assert sent(mesh) == {}
    assert any("NoEffect" in note for note in mesh.notes())


def mesh_config(*providers: str) -> str:
    lines = "".join(f"    - {each}\n" for each in providers)
    head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n"
    return f"{head}data:\n  mesh: |-\n    extensionProviders:\n{lines}"


COLLECTORS = mesh_config(
    "{name: otel, opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317}}",
    "{name: otel-http, opentelemetry: {service: obs/otel.obs.svc.cluster.local, port: 4318, "
    "http: {path: /v1/traces, headers: [{name: X-Key, value: k}]}}}",
    "{name: zip, zipkin: {service: zip, port: 9411, traceContextOption: USE_B3_WITH_W3C_PROPAGATION}}",
)


def test_tracing_with_its_provider_is_told_to_waypoints() -> None:
    spec = (
        "tracing: [{providers: [{name: otel-http}], randomSamplingPercentage: 12.5, "
        "disableSpanReporting: true, useRequestIdForTraceSampling: false, enableIstioTags: false, "
        "customTags: {a: {literal: {value: x}}, b: {environment: {name: B, defaultValue: y}}, "
        "c: {header: {name: X-C}}}}]"
    )
    mesh = meshed(COLLECTORS, telemetry(spec))
    found = sent(mesh)["shop/logs"]
    (step,) = found.tracing
    assert (step.provider, step.percent, step.is_silent) == ("otel-http", 12.5, True)
    assert (step.uses_request_id, step.istio_tags) == (False, False)
    assert [(tag.name, tag.literal, tag.environment, tag.header, tag.default) for tag in step.tags] == [
        ("a", "x", "", "", ""),
        ("b", "", "B", "", "y"),
        ("c", "", "", "x-c", ""),
    ]
    (provider,) = found.span_providers
    assert provider.wire == pb.Telemetry.SpanProvider.OTLP_HTTP
    assert (provider.host, provider.namespace, provider.port) == ("otel.obs.svc.cluster.local", "obs", 4318)
    assert (provider.path, provider.headers[0].name, provider.headers[0].value) == (
        "/v1/traces",
        "x-key",
        "k",
    )
    assert mesh.notes() == []


def test_what_is_not_said_is_not_set() -> None:
    mesh = meshed(COLLECTORS, telemetry("tracing: [{providers: [{name: zip}]}]"))
    (step,) = sent(mesh)["shop/logs"].tracing
    assert not any(step.HasField(name) for name in ("percent", "is_silent", "uses_request_id", "istio_tags"))
    (provider,) = sent(mesh)["shop/logs"].span_providers
    assert (provider.wire, provider.adds_w3c) == (pb.Telemetry.SpanProvider.ZIPKIN, True)
    assert provider.path == "/api/v2/spans"


def test_a_collector_may_come_and_go() -> None:
    mesh = meshed(telemetry("tracing: [{providers: [{name: otel}], randomSamplingPercentage: 5}]"))
    found = sent(mesh)["shop/logs"]
    assert (found.tracing[0].provider, found.tracing[0].percent) == ("", 5.0)
    assert any("otel" in note and "MeshConfig" in note for note in mesh.notes())
    mesh.apply(COLLECTORS)
    assert sent(mesh)["shop/logs"].span_providers[0].port == 4317
    assert mesh.notes() == []
    mesh.apply(mesh_config("{name: otel, prometheus: {}}"))
    assert not sent(mesh)["shop/logs"].span_providers


@pytest.mark.parametrize(
    ("provider", "complaint"),
    [
        ("{name: a, opentelemetry: {service: a}}", "port"),
        ("{name: a, opentelemetry: {service: a, port: 1, grpc: {}}}", "grpc"),
        ("{name: a, opentelemetry: {service: a, port: 1, http: {path: x}}}", "path"),
        ("{name: a, zipkin: {service: a, port: 1, enable64bitTraceId: true}}", "enable64bitTraceId"),
        ("{name: a, zipkin: {service: a, port: 1, traceContextOption: W3C}}", "USE_B3"),
    ],
)
def test_what_is_wrong_with_a_collector_is_said(provider: str, complaint: str) -> None:
    errors = errors_of(mesh_config(provider))
    assert errors
    assert complaint in " ".join(errors)


def test_logs_in_formats_of_their_own() -> None:
    config = mesh_config(
        '{name: text, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%REQ(X-A)%\\n"}}}',
        "{name: json, envoyFileAccessLog: {logFormat: {labels: {code: '%RESPONSE_CODE%'}}}}",
        "{name: plain, envoyFileAccessLog: {path: /dev/stdout}}",
    )
    spec = "accessLogging: [{providers: [{name: json}, {name: text}, {name: plain}, {name: envoy}]}]"
    mesh = meshed(config, telemetry(spec))
    found = sent(mesh)["shop/logs"]
    assert list(found.logging[0].providers) == ["json", "text", "plain", "envoy"]
    told = {
        each.name: (each.text, [(one.name, one.value) for one in each.labels]) for each in found.log_providers
    }
    assert told == {
        "json": ("", [("code", "%RESPONSE_CODE%")]),
        "plain": ("", []),
        "text": ("%REQ(X-A)%\n", []),
    }
    assert mesh.notes() == []


@pytest.mark.parametrize(
    ("provider", "complaint"),
    [
        ("{name: a, envoyFileAccessLog: {path: /tmp/log}}", "/dev/stdout"),
        ("{name: a, envoyFileAccessLog: {logFormat: {text: '%NOPE%'}}}", "%NOPE%"),
        ("{name: a, envoyFileAccessLog: {logFormat: {labels: {a: '%REQ(%'}}}}", "is no operator"),
        ("{name: a, envoyFileAccessLog: {logFormat: {text: a, labels: {a: b}}}}", "exclude"),
    ],
)
def test_what_is_wrong_with_a_log_is_said(provider: str, complaint: str) -> None:
    errors = errors_of(mesh_config(provider))
    assert errors
    assert complaint in " ".join(errors)


def test_overrides_of_metrics_are_told_to_waypoints() -> None:
    overrides = (
        "{match: {metric: REQUEST_SIZE, mode: SERVER}, disabled: true}, "
        "{match: {mode: CLIENT}, disabled: true}, "
        "{match: {metric: TCP_SENT_BYTES}, disabled: true}, "
        "{match: {metric: GRPC_RESPONSE_MESSAGES}, tagOverrides: {source_app: {operation: REMOVE}}}, "
        "{tagOverrides: {source_app: {operation: REMOVE}, tenant: {value: \"request.headers['x-tenant']\"}}}"
    )
    mesh = meshed(telemetry(f"metrics: [{{reportingInterval: 10s, overrides: [{overrides}]}}]"))
    first, sent_bytes, messages, second = sent(mesh)["shop/logs"].overrides
    assert (sent_bytes.metrics, messages.metrics) == (256, 32)
    assert (first.metrics, first.disabled) == (4, True)
    assert (second.metrics, second.HasField("disabled")) == (1023, False)
    assert [(tag.name, tag.removed, tag.expression) for tag in second.tags] == [
        ("source_app", True, ""),
        ("tenant", False, "request.headers['x-tenant']"),
    ]
    assert mesh.notes() == []
    mesh.apply(telemetry(f"metrics: [{{providers: [{{name: cloud}}], overrides: [{overrides}]}}]"))
    assert not sent(mesh)["shop/logs"].overrides
    assert any("cloud" in note for note in mesh.notes())


def test_a_collector_of_logs_is_told_with_its_place_and_format() -> None:
    log = "{service: obs/otel.example, port: 4317, logFormat: {labels: {code: '%RESPONSE_CODE%'}}}"
    providers = f"extensionProviders: [{{name: otel, envoyOtelAls: {log}}}]"
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n"
    mesh = meshed(
        config + f'  mesh: "{providers}"\n', telemetry("accessLogging: [{providers: [{name: otel}]}]")
    )
    (provider,) = sent(mesh)["shop/logs"].log_providers
    assert (provider.host, provider.port, provider.namespace) == ("otel.example", 4317, "obs")
    assert (provider.log_name, provider.text) == ("otel_envoy_accesslog", access_defaults.TEXT)
    assert [(label.name, label.value) for label in provider.labels] == [("code", "%RESPONSE_CODE%")]
    assert mesh.notes() == []


def test_collectors_are_spoken_to_as_destination_rules_say() -> None:
    providers = (
        "extensionProviders: [{name: a, opentelemetry: {service: obs/otel.example, port: 4317}}, "
        "{name: b, envoyOtelAls: {service: obs/otel.example, port: 4318}}]"
    )
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n"
    both = "tracing: [{providers: [{name: a}]}], accessLogging: [{providers: [{name: b}]}]"
    mesh = meshed(config + f'  mesh: "{providers}"\n', telemetry(both))

    def told() -> tuple[pb.Telemetry.SpanProvider, pb.Telemetry.LogProvider]:
        found = sent(mesh)["shop/logs"]
        return found.span_providers[0], found.log_providers[0]

    assert not any(each.HasField("tls") or each.refusal for each in told())
    ports = "portLevelSettings: [{port: {number: 4318}, tls: {mode: DISABLE}}]"
    spec = f"{{host: otel.example, trafficPolicy: {{tls: {{mode: SIMPLE, credentialName: ca}}, {ports}}}}}"
    mesh.apply(istio("DestinationRule", "otel", spec, space="obs"))
    assert told()[0].refusal == "there is no Secret obs/ca"
    assert not told()[1].HasField("tls")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "namespace": "obs"}}
    mesh.apply(json.dumps({**secret, "stringData": {"ca.crt": shared_root().pem}}))
    assert told()[0].refusal == ""
    tls = told()[0].tls
    assert (tls.server_name, list(tls.names), tls.roots_pem) == (
        "otel.example",
        ["otel.example"],
        shared_root().pem,
    )
    mesh.remove("DestinationRule", "obs", "otel")
    assert not any(each.HasField("tls") or each.refusal for each in told())
