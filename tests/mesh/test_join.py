"""A host becomes a node, and stays one: the commands as a person runs them, against a real control plane."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ca.node_token import NodeTokens
from config.access import wall_clock
from node.control_plane import LinkSettings
from node.renewal import Renewal, token_times

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """A running control plane."""

    state: Path
    log: Path
    port: int

    def mycelia(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mesh.cli", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)

    def create(self, *words: str) -> str:
        done = self.mycelia(
            *("token", "create", "--state-dir", str(self.state)),
            *("--address", f"127.0.0.1:{self.port}", *words),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def join(self, token: str, node: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return self.mycelia("join", token, "--node", node, "--directory", str(folder))


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "manifests").mkdir()
    state, log = folder / "state", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "config", "--manifests", str(folder / "manifests")),
                *("--state-dir", str(state), "--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0"),
            ],
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        listening = state / "listening.json"
        deadline = time.monotonic() + LIMIT_S
        while "control_plane_ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = int(listening.read_text().split("127.0.0.1", 1)[1].split("]", 1)[0].strip('", '))
        yield Site(state, log, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)


def test_a_host_joins_with_a_token_and_gets_all_that_a_node_needs(site: Site, tmp_path: Path) -> None:
    done = site.join(site.create("--node", "node-a"), "node-a", tmp_path / "etc")
    assert done.returncode == 0, done.stderr
    token = tmp_path / "etc" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "etc" / "root-cert.pem").read_text() == (site.state / "root-cert.pem").read_text()
    assert f"127.0.0.1:{site.port}" in (tmp_path / "etc" / "node.json").read_text()
    tokens = NodeTokens.load_or_create(site.state / "node-tokens")
    assert tokens.verify(token.read_text().strip(), wall_clock()) == "node-a"


def test_a_token_of_one_use_serves_once(site: Site, tmp_path: Path) -> None:
    token = site.create("--uses", "1")
    assert site.join(token, "node-b", tmp_path / "b").returncode == 0
    done = site.join(token, "node-c", tmp_path / "c")
    assert done.returncode == 2
    assert "does not accept the join token" in done.stderr
    assert not (tmp_path / "c" / "token").exists()
    assert "used 1 times" in site.log.read_text()


def test_a_token_for_another_node_is_refused(site: Site, tmp_path: Path) -> None:
    done = site.join(site.create("--node", "node-a"), "node-z", tmp_path / "etc")
    assert done.returncode == 2
    assert "node-z" in done.stderr


def test_a_token_of_another_mesh_is_refused_before_it_is_shown(site: Site, tmp_path: Path) -> None:
    """The server's certificate does not chain to the root in the token: the credential never leaves."""
    from ca.authority import Authority  # noqa: PLC0415 - only here
    from ca.join_token import JoinToken  # noqa: PLC0415

    other = Authority.load_or_create(tmp_path / "ca", trust_domain="cluster.local", now=wall_clock())
    mine = JoinToken.decode(site.create())
    forged = JoinToken(mine.addresses, other.roots_pem, mine.credential).encode()
    done = site.join(forged, "node-a", tmp_path / "etc")
    assert done.returncode == 2
    assert "certificate" in done.stderr.lower()
    assert site.join(mine.encode(), "node-a", tmp_path / "etc").returncode == 0


def test_a_folder_that_cannot_be_written_costs_no_use(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    token = site.create("--uses", "1")
    done = site.join(token, "node-a", tmp_path / "file" / "etc")
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert site.join(token, "node-a", tmp_path / "etc").returncode == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--ttl", "1 hour"), "30m, 24h or 7d"),
        (("--ttl", "8d"), "at most 7 days"),
        (("--uses", "0"), "0 uses"),
        (("--node", "a/b"), "cannot be a node's name"),
        (("--address", "nowhere:port"), "HOST:PORT"),
    ],
)
def test_wrong_wishes_are_refused_in_one_line(site: Site, words: tuple[str, ...], text: str) -> None:
    done = site.mycelia("token", "create", "--state-dir", str(site.state), "--address", "127.0.0.1", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_loopback_is_no_address_for_other_hosts(site: Site) -> None:
    done = site.mycelia("token", "create", "--state-dir", str(site.state))
    assert done.returncode == 2
    assert "--address" in done.stderr


class Clock:
    """The wall clock of a node, set by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def _renewed(renewal: Renewal, token: Path, before: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewal.run)
            while token.read_text() == before:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_node_renews_its_token_at_half_of_its_life(site: Site, tmp_path: Path) -> None:
    site.join(site.create(), "node-r", tmp_path)
    token, root = tmp_path / "token", tmp_path / "root-cert.pem"
    before = token.read_text()
    times = token_times(before.strip())
    assert times is not None
    renewal = Renewal(LinkSettings("127.0.0.1", site.port, root, token), now=Clock(times.due - 30))
    with trio.move_on_after(0.2):
        await renewal.run()
    assert token.read_text() == before
    renewal = Renewal(LinkSettings("127.0.0.1", site.port, root, token), now=Clock(times.due + 1))
    tokens = NodeTokens.load_or_create(site.state / "node-tokens")
    os.utime(token, (0, 0))
    await trio.sleep(1.0)  # the next token is issued in another second, so it differs
    await _renewed(renewal, token, before)
    assert tokens.verify(token.read_text().strip(), wall_clock()) == "node-r"
    assert token.stat().st_mode & 0o777 == 0o600


async def test_a_revoked_node_cannot_renew_and_the_old_token_stays(site: Site, tmp_path: Path) -> None:
    site.join(site.create(), "node-x", tmp_path)
    done = site.mycelia("token", "revoke", "node-x", "--state-dir", str(site.state))
    assert done.returncode == 0, done.stderr
    token = tmp_path / "token"
    before = token.read_text()
    times = token_times(before.strip())
    assert times is not None
    settings = LinkSettings("127.0.0.1", site.port, tmp_path / "root-cert.pem", token)
    renewal = Renewal(settings, now=Clock(times.expires + 1))
    with trio.move_on_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewal.run)
            while not renewal.problem:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert "mycelia join" in renewal.problem
    assert token.read_text() == before


@pytest.mark.parametrize("text", ["", "a.b", "a.!!.c", "a.e30.c", "not a token"])
def test_what_is_no_token_has_no_times(text: str) -> None:
    assert token_times(text) is None
