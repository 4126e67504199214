"""Every kind's good and bad manifests, kept as files: what is accepted, and the words of each refusal.

A bad file begins with `# expect:` lines: parts of the texts of exactly the errors it has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from config.findings import Severity
from config.kinds.catalogue import supported_kinds
from config.source.manifest_set import read_file
from tests.config.support import namespace, read, warnings_of

MANIFESTS = Path(__file__).parent / "manifests"


def names(folder: str) -> list[str]:
    return sorted(path.name for path in (MANIFESTS / folder).iterdir())


@pytest.mark.parametrize("name", names("good"))
def test_good_manifests_are_accepted_in_silence(name: str) -> None:
    text = (MANIFESTS / "good" / name).read_text()
    reading = read_file(name, text, None)
    assert [str(problem) for problem in reading.problems] == []
    assert reading.good


@pytest.mark.parametrize("name", names("bad"))
def test_bad_manifests_are_refused_in_the_words_expected(name: str) -> None:
    text = (MANIFESTS / "bad" / name).read_text()
    expected = [
        line.removeprefix("# expect: ") for line in text.splitlines() if line.startswith("# expect: ")
    ]
    reading = read_file(name, text, None)
    errors = [str(problem) for problem in reading.problems if problem.severity is Severity.ERROR]
    assert all(error.startswith(f"error: {name}, document ") for error in errors)
    missing = [part for part in expected if not any(part in error for error in errors)]
    surplus = [error for error in errors if not any(part in error for part in expected)]
    assert (missing, surplus) == ([], [])
    assert len(errors) == len(expected)


def test_every_supported_kind_has_a_good_manifest() -> None:
    seen: set[str] = set()
    for name in names("good"):
        reading = read_file(name, (MANIFESTS / "good" / name).read_text(), None)
        seen |= {ref.kind for ref in reading.good}
    assert seen == {kind for kind, _ in supported_kinds()}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}",
            "kind Deployment (apps) is not supported",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}",
            "only the ConfigMap named istio is read; this one is ignored",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: x}",
            "no meaning in an ambient mesh",
        ),
    ],
)
def test_foreign_kinds_are_told_by_name_and_are_no_errors(text: str, part: str) -> None:
    (problem,) = read(text).problems
    assert problem.severity is Severity.IGNORED
    assert part in str(problem)
    assert "default/x" in str(problem)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            namespace("a", "istio.io/dataplane-mode: Ambient"),
            (
                'metadata.labels[istio.io/dataplane-mode]: found text "Ambient", which captures nothing; '
                "allowed: ambient, none"
            ),
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 53, protocol: UDP}]}",
            "spec.ports[0]: UDP is not carried by the mesh",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {trafficDistribution: PreferFar}",
            'found text "PreferFar", which counts as no preference',
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: ExternalName}",
            "has no part in the mesh",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}", "a Pod without an address"),
        (
            (
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n"
                "spec: {rules: [{from: [{source: {principals: ['spiffe://a/ns/b/sa/c', 'a*b']}}]}]}"
            ),
            "principals are written without spiffe://",
        ),
        (
            (
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n"
                "spec: {mtls: {mode: DISABLE}}"
            ),
            "DISABLE acts like PERMISSIVE",
        ),
        (
            (
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\n"
                "spec: {hosts: [a.b], exportTo: ['.']}"
            ),
            "spec.exportTo: has no effect in an ambient mesh",
        ),
        (
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a}\n"
                "spec: {gatewayClassName: nginx}"
            ),
            'class "nginx" is not run by this mesh; supported: istio-waypoint',
        ),
    ],
)
def test_doubtful_values_are_warned_of(text: str, part: str) -> None:
    assert any(part in warning for warning in warnings_of(text))


def test_a_long_list_of_errors_is_cut() -> None:
    ports = ", ".join("{port: x}" for _ in range(100))
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{ports}]}}"
    assert len(read(text).problems) == 20
