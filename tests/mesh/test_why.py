"""`mycelia why` on the demo's manifests: the verdicts that the demo shows in traffic."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh import cli
from mesh.errors import BadArgumentError, UnknownWorkloadError
from mesh.why import explain, load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "demo"
LABEL = "  labels:\n    istio.io/dataplane-mode: ambient\n"


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES / "mesh", tmp_path / "mesh")
    with (tmp_path / "mesh" / "namespace-shop.yaml").open("a") as file:
        file.write(LABEL)
    return tmp_path / "mesh"


@pytest.fixture
def guarded(manifests: Path) -> Path:
    shutil.copytree(EXAMPLES / "later", manifests, dirs_exist_ok=True)
    return manifests


@pytest.mark.parametrize(
    "destination",
    ["shop/web:80", "10.78.0.10:80", "10.77.2.10:80", "[fd77:2::10]:80", "web.shop.svc.cluster.local:80"],
)
def test_allowed_over_mutual_tls_however_it_is_named(manifests: Path, destination: str) -> None:
    answer = explain(load(manifests, ""), "shop/client", destination, "")
    assert answer.is_allowed
    assert "mutual TLS" in answer.verdict
    assert any("expects spiffe://cluster.local/ns/shop/sa/web" in line for line in answer.lines)


def test_a_denial_names_the_policy_and_the_rule(guarded: Path) -> None:
    answer = explain(load(guarded, ""), "10.77.1.10", "shop/cache:6379", "")
    assert answer.is_allowed is False
    assert "shop/deny-client-to-cache" in answer.verdict
    assert any("rule 0 matches" in line for line in answer.lines)


def test_plaintext_is_allowed_until_strict(manifests: Path) -> None:
    answer = explain(load(manifests, ""), "office/outsider", "10.77.2.10:80", "")
    assert answer.is_allowed
    assert "plaintext" in answer.verdict
    shutil.copy(EXAMPLES / "later" / "strict.yaml", manifests)
    answer = explain(load(manifests, ""), "office/outsider", "10.77.2.10:80", "")
    assert answer.is_allowed is False


def test_outside_the_mesh_it_has_no_say(manifests: Path) -> None:
    assert explain(load(manifests, ""), "shop/client", "192.0.2.1:80", "").is_allowed is None
    unlabelled = load(EXAMPLES / "mesh", "")
    assert explain(unlabelled, "shop/client", "10.77.2.10:80", "").is_allowed is None


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("shop/nobody", "shop/web:80", UnknownWorkloadError),
        ("192.0.2.1", "shop/web:80", UnknownWorkloadError),
        ("shop/client", "shop/nothing:80", UnknownWorkloadError),
        ("shop/client", "shop/web", BadArgumentError),
        ("shop/client", "shop/web:0", BadArgumentError),
    ],
)
def test_what_names_nothing_is_said(
    manifests: Path, source: str, destination: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        explain(load(manifests, ""), source, destination, "")


def test_the_exit_code_is_the_verdict(guarded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["why", "shop/client", "shop/web:80", "--manifests", str(guarded)]) == 0
    assert cli.main(["why", "shop/client", "shop/cache:6379", "--manifests", str(guarded)]) == 1
    assert "denied" in capsys.readouterr().out


def test_a_way_around_a_required_waypoint_is_refused_and_named(manifests: Path) -> None:
    file = manifests / "namespace-shop.yaml"
    file.write_text(file.read_text() + '    mycelia.io/waypoint-required: "true"\n')
    answer = explain(load(manifests, ""), "office/outsider", "10.77.2.10:80", "")
    assert answer.is_allowed is False
    assert "shop/waypoint-required-but-none-is-bound-" in answer.verdict
    assert any("only what comes through the waypoint may pass" in line for line in answer.lines)
