"""`mycelia waypoint`: files written and removed, refusals, and a real control plane that is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.control_plane import check_directory
from config.settings import MeshSettings
from mesh import cli

PLACE = ["--node", "n1", "--address", "10.0.0.5", "--address", "fd00::5"]
FILE = "mycelia-waypoint-shop-waypoint.yaml"
NAMESPACE = (
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n"
)


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "shop.yaml").write_text(NAMESPACE)
    return folder


def apply(manifests: Path, *more: str) -> int:
    return cli.main(["waypoint", "apply", "-n", "shop", "--manifests", str(manifests), *PLACE, *more])


def test_what_is_generated_is_valid_and_what_is_applied(
    manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(manifests, "--for", "all", "--node", "n2", "--address", "10.0.0.6") == 0
    assert "waypoint shop/waypoint applied" in capsys.readouterr().out
    arguments = ["waypoint", "generate", "-n", "shop", *PLACE, "--for", "all"]
    assert cli.main([*arguments, "--node", "n2", "--address", "10.0.0.6"]) == 0
    written = (manifests / FILE).read_text()
    assert capsys.readouterr().out == written.partition("\n")[2]
    assert "mycelia.io/addresses: fd00::5" in written
    assert "serviceAccount: waypoint" in written
    assert [str(each) for each in check_directory(manifests, MeshSettings())] == []


def test_apply_may_be_repeated_and_delete_leaves_nothing(
    manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(manifests) == 0
    first = (manifests / FILE).stat().st_mtime_ns
    assert apply(manifests) == 0
    assert "unchanged" in capsys.readouterr().out
    assert (manifests / FILE).stat().st_mtime_ns == first
    delete = ["waypoint", "delete", "-n", "shop", "--manifests", str(manifests)]
    assert cli.main(delete) == 0
    assert [each.name for each in manifests.iterdir()] == ["shop.yaml"]
    assert cli.main(delete) == cli.EXIT_CANNOT
    assert "MYC-6012" in capsys.readouterr().err


def test_a_namespace_of_another_file_is_not_touched_but_said(
    manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(manifests, "--enroll-namespace") == 1
    assert "shop.yaml declares it; add istio.io/use-waypoint: waypoint" in capsys.readouterr().err
    assert (manifests / "shop.yaml").read_text() == NAMESPACE
    enrolled = NAMESPACE.replace("ambient", "ambient, istio.io/use-waypoint: waypoint")
    (manifests / "shop.yaml").write_text(enrolled)
    assert apply(manifests, "--enroll-namespace") == 0


def test_a_namespace_that_nobody_declares_is_enrolled_in_the_own_file(manifests: Path) -> None:
    (manifests / "shop.yaml").unlink()
    assert apply(manifests, "--enroll-namespace") == 0
    assert "istio.io/use-waypoint: waypoint" in (manifests / FILE).read_text()


def test_files_of_others_are_neither_overwritten_nor_removed(
    manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifests / FILE).write_text("# by hand\n")
    assert apply(manifests) == cli.EXIT_CANNOT
    delete = ["waypoint", "delete", "-n", "shop", "--manifests", str(manifests)]
    assert cli.main(delete) == cli.EXIT_CANNOT
    assert (manifests / FILE).read_text() == "# by hand\n"
    (manifests / FILE).unlink()
    assert apply(manifests) == 0
    (manifests / FILE).rename(manifests / "mine.yaml")
    assert apply(manifests) == cli.EXIT_CANNOT
    assert "Gateway waypoint is in mine.yaml already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--node", "n1"], "--node n1 has no --address"),
        (["--node", "n1", "--address", "here"], "--address 'here' is not an IP address"),
        (["--node", "N 1", "--address", "10.0.0.1"], "is no name of a node"),
        (["--name", "A_b"], "default/A_b is no name"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["waypoint", "generate", *arguments]) == cli.EXIT_CANNOT
    assert text in capsys.readouterr().err


def test_an_address_needs_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["waypoint", "generate", "--address", "10.0.0.1"])
    assert "--address belongs behind a --node" in capsys.readouterr().err


def test_apply_without_a_place_is_refused(manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["waypoint", "apply", "--manifests", str(manifests)]) == cli.EXIT_CANNOT
    assert "needs a place to run" in capsys.readouterr().err


@pytest.fixture
def control_plane(manifests: Path, tmp_path: Path) -> Iterator[str]:
    state = tmp_path / "state"
    arguments = ["--manifests", str(manifests), "--state-dir", str(state), "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "config", *arguments, "--status-listen", "127.0.0.1:0"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not (state / "listening.json").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            ((host, port),) = json.loads((state / "listening.json").read_text())["status"]
            yield f"{host}:{port}"
        finally:
            process.kill()


def test_list_and_status_ask_the_control_plane(
    manifests: Path, control_plane: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--control-plane", control_plane]
    assert cli.main(["waypoint", "status", "-n", "shop", *asked]) == 1
    assert "there is no waypoint shop/waypoint" in capsys.readouterr().out
    # No agent has a say on n1, so its manifest alone counts.
    assert apply(manifests, "--wait", "--timeout", "20", *asked) == 0
    assert "Programmed=True Programmed: 1 of 1 workloads are ready" in capsys.readouterr().out
    assert cli.main(["waypoint", "list", *asked]) == 0
    out = capsys.readouterr().out
    assert "shop/waypoint" in out
    assert "1/1" in out
    assert cli.main(["waypoint", "list", "-n", "other", *asked]) == 0
    assert "0 waypoints" in capsys.readouterr().out


def test_no_control_plane_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["waypoint", "list", "--control-plane", "127.0.0.1:1"]) == cli.EXIT_CANNOT
    assert "MYC-6007" in capsys.readouterr().err
