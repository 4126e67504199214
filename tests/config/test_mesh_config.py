"""The ConfigMap `istio`: what of MeshConfig is read, and what is said about the rest."""

from __future__ import annotations

import textwrap

import pytest

from config.extension_providers import ForeignProvider, GrpcAuthorizer, HttpAuthorizer, ProviderService
from config.findings import Severity
from config.kinds.catalogue import DocumentReading, read_document
from config.objects import MeshConfig


def read(mesh: str, name: str = "istio") -> DocumentReading:
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\ndata:\n"
    return read_document(head + "  mesh: |-\n" + textwrap.indent(textwrap.dedent(mesh), "    "))


def provider(kind: str, fields: str) -> DocumentReading:
    return read(f"extensionProviders: [{{name: a, {kind}: {{{fields}}}}}]")


def test_providers_are_read_with_istios_defaults() -> None:
    reading = read("""
        extensionProviders:
        - name: h
          envoyExtAuthzHttp: {service: auth/a.example, port: 80, pathPrefix: /c/,
                               includeHeadersInCheck: [X-A]}
        - name: g
          envoyExtAuthzGrpc: {service: A.example, port: 90}
        - {name: p, prometheus: {}}
    """)
    (mesh,) = reading.objects
    assert isinstance(mesh, MeshConfig)
    http, grpc, other = (each.config for each in mesh.providers)
    place = ProviderService("a.example", 80, "auth")
    assert http == HttpAuthorizer(place, path_prefix="/c", request_headers=("x-a",))
    assert grpc == GrpcAuthorizer(ProviderService("a.example", 90))
    assert (grpc.timeout_ms, grpc.error_status, grpc.fails_open) == (600_000, 403, False)
    assert other == ForeignProvider("prometheus")
    assert [each.severity for each in reading.findings] == [Severity.WARNING]


def test_fields_without_effect_are_named() -> None:
    (finding,) = read("outboundTrafficPolicy: {mode: ALLOW_ANY}").findings
    assert (finding.severity, finding.path) == (Severity.WARNING, "data.mesh.outboundTrafficPolicy")
    (finding,) = read("enableTracing: true").findings
    assert (finding.severity, finding.path) == (Severity.WARNING, "data.mesh.enableTracing")


def test_other_config_maps_are_none_of_our_business() -> None:
    reading = read("what: ever", name="other")
    assert not reading.objects
    assert [each.severity for each in reading.findings] == [Severity.IGNORED]


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("extensionProvider: []", "did you mean extensionProviders"),
        ("a: [", "not valid YAML"),
        ("extensionProviders: [{name: a}]", "exactly one kind"),
        ("extensionProviders: [{name: a, prometheus: {}, datadog: {}}]", "exactly one kind"),
        ("extensionProviders: [{name: a, datadog: {}}, {name: a, datadog: {}}]", "twice"),
        ("accessLogFile: /var/log/a", "/dev/stdout"),
        ("accessLogFormat: '%WHAT%'", "%WHAT%"),
        ("accessLogEncoding: XML", "TEXT, JSON"),
        ("{accessLogEncoding: JSON, accessLogFormat: '%PROTOCOL%'}", "an object"),
        ('{accessLogEncoding: JSON, accessLogFormat: \'{"a": {"b": "c"}}\'}', "whose values are texts"),
        ('{accessLogEncoding: JSON, accessLogFormat: \'{"a": "%WHAT%"}\'}', "%WHAT%"),
        ("defaultProviders: {profiling: [a]}", "no such field"),
        ("defaultConfig: {tracing: {sampling: 101}}", "100.0 or less"),
        ("defaultConfig: {tracing: {zipkin: {address: zipkin}}}", "HOST:PORT"),
        ("pathNormalization: {normalization: SOME}", "allowed: DEFAULT, NONE, BASE, MERGE_SLASHES, DECODE"),
        ("defaultHttpRetryPolicy: {attempts: 1, retryOn: sometimes}", "sometimes"),
        ("connectTimeout: 10", "10s"),
    ],
)
def test_what_cannot_be_meant_is_refused(mesh: str, said: str) -> None:
    reading = read(mesh)
    assert not reading.objects
    assert any(said in each.text for each in reading.findings), reading.findings


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("port: 80", "required"),
        ("service: a.example", "required"),
        ("service: a_b, port: 80", "NAMESPACE/HOST"),
        ("service: a.example, port: 80, timeout: 2h", "at most 1h"),
        ("service: a.example, port: 80, statusOnError: '200'", '"400" to "599"'),
        ("service: a.example, port: 80, pathPrefix: check", "begins with /"),
        ("service: a.example, port: 80, headersToUpstreamOnAllow: ['a*b']", "the name of a header"),
        (
            "service: a.example, port: 80, includeAdditionalHeadersInCheck: {host: a}",
            "no header that can be added",
        ),
        ("service: a.example, port: 80, includeRequestBodyInCheck: {maxRequestBytes: 0}", "1 or more"),
        (
            "service: a.b, port: 80, includeRequestBodyInCheck: {packAsBytes: true, maxRequestBytes: 1}",
            "Grpc",
        ),
        ("service: a.example, port: 80, failOpen: null", "without a value"),
    ],
)
def test_a_provider_is_read_strictly(fields: str, said: str) -> None:
    reading = provider("envoyExtAuthzHttp", fields)
    assert not reading.objects
    assert any(said in each.text for each in reading.findings), reading.findings
