"""`mycelia why` about requests, on the demo's manifests: what its waypoint shows in traffic."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh import cli
from mesh.why import Answer, explain, load
from mesh.why_request import Asked

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "demo"
LABELS = "  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}\n"
ONLY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: store}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {paths: [/read/*]}}]
  - when: [{key: "request.auth.claims[role]", values: [buyer]}]
"""
STRICT_ABOUT_WAYPOINTS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-waypoint, namespace: shop}
spec:
  selector: {matchLabels: {app: store}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/waypoint]}}]}]
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    folder = tmp_path / "mesh"
    shutil.copytree(EXAMPLES / "mesh", folder)
    with (folder / "namespace-shop.yaml").open("a") as file:
        file.write(LABELS)
    shutil.copy(EXAMPLES / "later" / "waypoint.yaml", folder)
    return folder


def add(manifests: Path, *names: str) -> None:
    for name in names:
        shutil.copy(EXAMPLES / "later" / f"{name}.yaml", manifests)


def ask(manifests: Path, path: str = "/", destination: str = "shop/store:80", **more: object) -> Answer:
    return explain(load(manifests, ""), "shop/client", destination, "", Asked(path, **more))  # type: ignore[arg-type]


def test_a_request_is_followed_to_the_application(manifests: Path) -> None:
    answer = ask(manifests)
    assert answer.is_allowed
    assert answer.verdict == "sent on by the waypoint; allowed, carried over mutual TLS"
    assert any("ns/shop/sa/waypoint wants 10.77.2.1" in line for line in answer.lines)


def test_a_denial_names_policy_rule_and_clause(manifests: Path) -> None:
    add(manifests, "store-deny")
    assert ask(manifests).is_allowed
    answer = ask(manifests, method="DELETE")
    assert answer.is_allowed is False
    denied = "denied by the waypoint with 403: AuthorizationPolicy/shop/nobody-deletes rules[0] to[0]"
    assert answer.verdict == denied


def test_what_allows_is_named_and_what_does_not(manifests: Path) -> None:
    (manifests / "readers.yaml").write_text(ONLY_CLIENT)
    answer = ask(manifests, "/x/../read/1")
    assert answer.is_allowed
    assert "waypoint: the path is judged and sent as /read/1" in answer.lines
    assert any(
        "allowed by AuthorizationPolicy/shop/readers rules[0] from[0] to[0]" in each for each in answer.lines
    )
    refused = ask(manifests, "/write")
    assert refused.is_allowed is False
    assert "no ALLOW rule holds: AuthorizationPolicy/shop/readers rules[0] no to" in refused.verdict
    assert ask(manifests, "/write", claims={"role": "buyer"}).is_allowed


def test_routes_are_walked_through(manifests: Path) -> None:
    add(manifests, "store-canary")
    lines = ask(manifests).lines
    assert "waypoint: HTTPRoute/shop/store/0: matches" in lines
    assert any("weight 10: shop/store-v2" in line for line in lines)


def test_what_decides_beside_is_named(manifests: Path) -> None:
    add(manifests, "store-limit", "store-filter", "store-tokens")
    answer = ask(manifests)
    assert answer.is_allowed
    assert answer.verdict.startswith("sent on, if limits and filters let it pass")
    for name in (
        "RateLimitPolicy/shop/calm",
        "FilterPolicy/shop/greeting",
        "https://issuer.demo: none is given",
    ):
        assert any(name in line for line in answer.lines)


def test_the_last_proxy_has_its_say_about_the_waypoint(manifests: Path) -> None:
    (manifests / "strict.yaml").write_text(STRICT_ABOUT_WAYPOINTS)
    answer = ask(manifests)
    assert answer.is_allowed is False
    assert "shop/no-waypoint" in answer.verdict


def test_what_cannot_be_served_is_answered(manifests: Path) -> None:
    answer = ask(manifests, "/%00")
    assert answer.is_allowed is False
    assert "refused by the waypoint with 400" in answer.verdict
    (manifests / "store.yaml").unlink()
    (manifests / "empty.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: store, namespace: shop}\n"
        "spec: {clusterIP: 10.78.0.20, selector: {app: nobody}, ports: [{name: http, port: 80}]}\n"
    )
    answer = ask(manifests)
    assert answer.is_allowed is False
    assert "answered by the waypoint with 503" in answer.verdict


def test_without_a_waypoint_nobody_looks(manifests: Path) -> None:
    answer = ask(manifests, destination="10.77.2.10:80")
    assert answer.is_allowed
    assert any("nobody looks at requests" in line for line in answer.lines)


def test_the_command(manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(manifests, "store-deny")
    words = ["why", "shop/client", "shop/store:80", "--manifests", str(manifests)]
    assert cli.main([*words, "--path", "/", "--header", "x-a: 1", "--claim", "role=buyer,seller"]) == 0
    assert cli.main([*words, "--path", "/", "--method", "DELETE"]) == 1
    assert "nobody-deletes" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert "add --path" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--method", "GET"], ["--path", "x"], ["--path", "/", "--header", "novalue"]]
)
def test_a_request_that_is_none(
    manifests: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["why", "shop/client", "shop/store:80", "--manifests", str(manifests), *words]) not in (
        0,
        1,
    )
    assert "MYC-6009" in capsys.readouterr().err
