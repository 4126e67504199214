"""The `mycelia` command: one clear line and a non-zero exit, never a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh import cli
from mesh.demo import keep, programs
from mesh.errors import BadArgumentError
from mesh.node_command import parse_workload

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "demo"


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_the_demo_manifests_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "validate", str(EXAMPLES / "mesh")]) == 0
    assert "10 WorkloadEntry" in capsys.readouterr().out


def test_a_wrong_manifest_names_file_field_and_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (EXAMPLES / "mesh" / "web.yaml").read_text().replace("targetPort: 80", "targetPort: http/2")
    (tmp_path / "web.yaml").write_text(manifest)
    assert cli.main(["config", "validate", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "web.yaml" in told
    assert "targetPort" in told
    assert "allowed" in told


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "validate", str(tmp_path / "none")]) == cli.EXIT_CANNOT
    assert "MYC-3001" in one_line(capsys.readouterr().err)


def test_an_agent_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "list", "--agent", str(tmp_path / "none.sock")]) == cli.EXIT_CANNOT
    assert "MYC-5015" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", [["demo", "stop"], ["demo", "exec", "web", "--", "true"]])
def test_without_a_demo_the_way_to_one_is_shown(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == cli.EXIT_CANNOT
    assert "mycelia demo --keep" in one_line(capsys.readouterr().err)


def test_missing_programs_come_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def which(name: str, path: str | None = None) -> str | None:
        return None if name in ("nginx", "redis-cli") else f"{path}/{name}"

    monkeypatch.setattr(shutil, "which", which)
    assert cli.main(["demo"]) == cli.EXIT_CANNOT
    told = one_line(capsys.readouterr().err)
    assert "nginx, redis-cli" in told
    assert "apt-get install -y nginx-light redis-tools" in told


def test_a_record_of_a_demo_that_is_gone_is_removed(runtime_folder: Path) -> None:
    keep.write_record(2**22 + 1, {"web": "lab-web"})
    assert keep.find_record() is None
    assert list(runtime_folder.iterdir()) == []


def test_a_record_that_is_damaged_is_removed(runtime_folder: Path) -> None:
    keep.record_path().write_text("{")
    assert keep.find_record() is None
    assert list(runtime_folder.iterdir()) == []


def test_every_program_of_the_demo_has_a_package() -> None:
    assert {"nginx", "curl", "redis-server", "redis-cli", "tcpdump", "nft", "ip"} <= programs.PACKAGES.keys()


def test_nonsense_arguments_end_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["node", "attach", "shop/web"])
    assert ended.value.code == cli.EXIT_CANNOT
    assert "usage" in capsys.readouterr().err


def test_a_workload_needs_namespace_and_name(tmp_path: Path) -> None:
    assert parse_workload("shop/web") == ("shop", "web")
    for text in ("web", "/web", "shop/", "a/b/c"):
        with pytest.raises(BadArgumentError, match="NAMESPACE/NAME"):
            parse_workload(text)
