"""Installing into a staging folder with the programs of systemd; units verified, their commands run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from mesh import cli
from mesh.errors import HostChangeError
from mesh.install import units
from mesh.install.changes import Directory, File, Host, User, require_root

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 30.0

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or os.geteuid() != 0,
    reason="needs root and the programs of systemd",
)


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Path:
    """A folder with what `useradd --prefix` and `systemctl --root` look at."""
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("passwd", "shadow", "group", "gshadow"):
        (etc / name).write_text("")
    (etc / "login.defs").write_text("SYS_UID_MIN 100\nSYS_UID_MAX 999\nSYS_GID_MIN 100\nSYS_GID_MAX 999\n")
    return tmp_path


def mycelia(*words: str) -> int:
    return cli.main(words)


def files(host: Path) -> set[str]:
    return {str(path.relative_to(host)) for path in host.rglob("*") if path.is_file() or path.is_symlink()}


def test_a_control_plane_is_installed_once(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mycelia("install", "control-plane", "--root", str(host)) == 0
    said = capsys.readouterr().out
    assert "system user mycelia" in said
    assert "etc/systemd/system/mycelia-control-plane.service" in files(host)
    assert "etc/systemd/system/multi-user.target.wants/mycelia-control-plane.service" in files(host)
    assert (host / "etc/mycelia/manifests").is_dir()
    before = {path: (host / path).lstat().st_mtime_ns for path in files(host)}
    assert mycelia("install", "control-plane", "--root", str(host)) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert before == {path: (host / path).lstat().st_mtime_ns for path in files(host)}


def test_a_dry_run_says_all_and_does_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(host)
    assert mycelia("install", "control-plane", "--dry-run", "--root", str(host)) == 0
    dry = capsys.readouterr().out
    assert files(host) == before
    assert mycelia("install", "control-plane", "--root", str(host)) == 0
    assert dry.replace("would make", "making") == capsys.readouterr().out


def test_another_choice_changes_only_what_differs(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mycelia("install", "control-plane", "--root", str(host))
    capsys.readouterr()
    assert mycelia("install", "control-plane", "--listen", "10.0.0.1:15012", "--root", str(host)) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in said] == ["file", "service"]
    unit = (host / "etc/systemd/system/mycelia-control-plane.service").read_text()
    assert "--listen 10.0.0.1:15012" in unit


def test_uninstalling_leaves_nothing_and_keeps_keys_unless_told(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(host)
    mycelia("install", "control-plane", "--root", str(host))
    state = host / "var/lib/mycelia/control-plane"
    state.mkdir()
    (state / "root.pem").write_text("key")
    assert mycelia("uninstall", "control-plane", "--root", str(host)) == 0
    assert (state / "root.pem").exists()
    said = capsys.readouterr().out
    assert "kept: directory /var/lib/mycelia/control-plane" in said
    assert "nothing else is left" in said
    assert mycelia("uninstall", "control-plane", "--purge", "--root", str(host)) == 0
    leftover = {name for name in files(host) - before if not name.endswith("-")}  # useradd's own copies
    assert leftover == set()


def test_a_node_needs_a_membership(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mycelia("install", "node", "--root", str(host)) == 2
    assert "--join TOKEN" in capsys.readouterr().err


def test_a_node_runs_agent_and_ztunnel_with_its_membership(host: Path) -> None:
    (host / "etc/mycelia").mkdir()
    (host / "etc/mycelia/node.json").write_text('{"node": "web-1", "control_plane": "10.0.0.1:15012"}')
    assert mycelia("install", "node", "--root", str(host)) == 0
    environment = (host / "etc/mycelia/node.env").read_text()
    assert "NODE_NAME=web-1\n" in environment
    assert "XDS_ADDRESS=10.0.0.1:15012\n" in environment
    wants = host / "etc/systemd/system/multi-user.target.wants"
    assert {path.name for path in wants.iterdir()} == {units.NODE, units.ZTUNNEL}
    assert mycelia("uninstall", "node", "--purge", "--root", str(host)) == 0
    assert not any("mycelia" in name for name in files(host))


@pytest.mark.parametrize(
    "text",
    [
        units.control_plane_unit(sys.executable, units.ControlPlaneChoice((":15012",), ("mesh.example",))),
        units.node_unit(sys.executable),
        units.ztunnel_unit(sys.executable),
    ],
    ids=["control-plane", "node", "ztunnel"],
)
def test_systemd_accepts_the_unit(text: str, tmp_path: Path) -> None:
    for name in (units.NODE, units.ZTUNNEL):  # what the others are ordered after
        (tmp_path / name).write_text(units.node_unit(sys.executable))
    path = tmp_path / "mycelia-test.service"
    path.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in done.stderr.splitlines() if "mycelia" in line]
    assert ours == []


def test_the_control_plane_starts_as_its_unit_says_and_reports_ready(tmp_path: Path) -> None:
    """The command line of the unit, with the folders of a test, and a socket in the place of systemd."""
    unit = units.control_plane_unit(sys.executable, units.ControlPlaneChoice(("127.0.0.1:0",)))
    (command,) = [
        line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart=")
    ]
    words = [
        word.replace("/etc/mycelia", str(tmp_path / "etc")).replace(
            "/var/lib/mycelia", str(tmp_path / "state")
        )
        for word in shlex.split(command)
    ]
    (tmp_path / "etc" / "manifests").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        process = subprocess.Popen(
            [*words, "--status-listen", "127.0.0.1:0"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )
        try:
            heard = {manager.recv(4096) for _ in range(4)}
            assert {b"READY=1", b"WATCHDOG=1"} <= heard
            process.send_signal(signal.SIGTERM)
            while b"STOPPING=1" not in heard:
                heard.add(manager.recv(4096))
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()


def test_changes_can_be_made_and_undone_again(host: Path) -> None:
    place = Host(host)
    for change in (
        User("someone"),
        Directory(PurePosixPath("/var/x"), 0o750),
        File(PurePosixPath("/var/x/y"), "text", 0o600),
    ):
        assert change.is_gone(place)
        change.make(place)
        assert change.is_made(place)
        assert not change.is_gone(place)
    Directory(PurePosixPath("/var/x")).undo(place)
    User("someone").undo(place)
    assert User("someone").is_gone(place)


def test_a_program_that_fails_is_quoted(host: Path) -> None:
    with pytest.raises(HostChangeError, match="ended with"):
        User("no:name").make(Host(host))


def test_a_host_without_systemd_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(HostChangeError, match="not started by systemd"):
        require_root(Host(), booted=tmp_path / "none")
    require_root(Host(), booted=tmp_path)
