"""`python -m node` as a real process: with a scripted control plane and ztunnel, killed, and misused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.lab.network import Lab, Node, Workload
from node.api_client import AgentClient, RequestFailedError
from node.errors import AgentUnreachableError
from tests.kit.scripted_control_plane import ScriptedControlPlane, serving
from tests.kit.scripted_ztunnel import HELLO, ScriptedZtunnel, closing

pytestmark = pytest.mark.namespaces

ROOT = Path(__file__).resolve().parents[2]
WEB = "default/web"


@dataclass
class AgentProcess:
    lab: Lab
    node: Node
    directory: Path
    plane: ScriptedControlPlane
    process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> Path:
        return self.directory / "api.sock"

    @property
    def zds(self) -> Path:
        return self.directory / "zds.sock"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def arguments(self) -> list[str]:
        return [
            *(sys.executable, "-m", "node", "--node", "alpha"),
            *("--state-dir", str(self.directory / "state")),
            *("--control-plane", f"10.77.255.1:{self.plane.port}"),
            *("--root-cert", str(self.directory / "root.pem")),
            *("--token-file", str(self.directory / "token")),
            *("--zds-socket", str(self.zds), "--api-socket", str(self.api)),
            *("--release-grace", "0.05", "--check-interval", "0.5"),
        ]

    async def start(self) -> AgentClient:
        self.process = self.lab.popen(self.node, self.arguments(), log=self.directory / "log", cwd=ROOT)
        with trio.fail_after(20):
            while True:
                try:
                    return AgentClient(self.api)
                except AgentUnreachableError:
                    assert self.process.poll() is None, self.log
                    await trio.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@asynccontextmanager
async def staged(lab: Lab, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    node = lab.nodes[0]
    with lab.entered(lab.management):
        sock = trio.socket.socket()
    await sock.bind(("10.77.255.1", 0))
    sock.listen(16)
    (tmp_path / "token").write_text("the-token\n")
    async with serving(trio.SocketListener(sock), "10.77.255.1", tmp_path / "root.pem") as plane:
        yield AgentProcess(lab, node, tmp_path, plane)


@pytest.fixture
def web(lab: Lab) -> Workload:
    return lab.add_workload("web", lab.add_node("alpha"))


def rules_of(lab: Lab, workload: Workload) -> str:
    return lab.run(workload, ["nft", "list", "ruleset"]).stdout


async def test_from_attach_to_capture_to_release(lab: Lab, web: Workload, tmp_path: Path) -> None:
    async with staged(lab, tmp_path) as stage, trio.open_nursery() as nursery:
        with await stage.start() as client:
            ztunnel = await ScriptedZtunnel.connect(stage.zds)
            await nursery.start(ztunnel.serve)
            with closing(ztunnel):
                assert client.attach("default", "web", "site", ("name", web.namespace)) == WEB
                told = await stage.plane.until_reported(web.ipv4, web.ipv6)
                assert (told.namespace, told.name, told.service_account) == ("default", "web", "site")
                assert not told.is_captured
                await stage.plane.set_orders(web=True)
                await stage.plane.until_captured(WEB)
                assert "redirect to :15001" in rules_of(lab, web)
                (listed,) = await trio.to_thread.run_sync(client.list)
                assert (listed.state, listed.reason) == ("captured", "told by the test")
                status = await trio.to_thread.run_sync(client.status)
                assert (status["control_plane"], status["ztunnels"]) == ("connected", 1)
                assert stage.plane.tokens == ["Bearer the-token"]
                await stage.plane.set_orders(web=False)
                await stage.plane.until_captured()
                await ztunnel.until_served()
                await trio.to_thread.run_sync(lambda: client.wait(WEB, is_captured=False))
                assert rules_of(lab, web) == ""
                nursery.cancel_scope.cancel()


async def test_killed_while_the_ztunnel_has_not_answered(lab: Lab, web: Workload, tmp_path: Path) -> None:
    async with staged(lab, tmp_path) as stage, trio.open_nursery() as nursery:
        ztunnel = await connected(stage)
        with closing(ztunnel), AgentClient(stage.api) as client:
            await ztunnel.answer(HELLO)
            await ztunnel.receive()
            await ztunnel.answer()
            await stage.plane.set_orders(web=True)
            client.attach("default", "web", "site", ("path", str(web.path)))
            assert await ztunnel.receive()
            stage.kill()
        assert "redirect to :15001" in rules_of(lab, web), "fails closed"
        with await stage.start():
            ztunnel = await ScriptedZtunnel.connect(stage.zds)
            with closing(ztunnel):
                await nursery.start(ztunnel.serve)
                await stage.plane.until_captured(WEB)
                assert ztunnel.served == {WEB}
                nursery.cancel_scope.cancel()


async def connected(stage: AgentProcess) -> ScriptedZtunnel:
    (await stage.start()).close()
    return await ScriptedZtunnel.connect(stage.zds)


async def test_goes_on_without_the_control_plane_also_after_a_kill(
    lab: Lab, web: Workload, tmp_path: Path
) -> None:
    async with staged(lab, tmp_path) as stage, trio.open_nursery() as nursery:
        ztunnel = await connected(stage)
        with closing(ztunnel), AgentClient(stage.api) as client:
            await nursery.start(ztunnel.serve)
            await stage.plane.set_orders(web=True)
            client.attach("default", "web", "site", ("path", str(web.path)))
            await stage.plane.until_captured(WEB)
        lab.set_management_link(stage.node, is_up=False)
        stage.kill()
        lab.run(web, ["nft", "flush", "ruleset"])
        ztunnel = await connected(stage)
        with closing(ztunnel), AgentClient(stage.api) as client:
            await nursery.start(ztunnel.serve)
            assert ztunnel.log == ["add default/web", "snapshot"]
            await trio.to_thread.run_sync(lambda: client.wait(WEB))
            assert "redirect to :15001" in rules_of(lab, web)
            nursery.cancel_scope.cancel()


async def test_a_control_plane_that_returns_is_told_at_once(lab: Lab, web: Workload, tmp_path: Path) -> None:
    async with staged(lab, tmp_path) as stage:
        with await stage.start() as client:
            client.attach("default", "web", "site", ("path", str(web.path)))
            await stage.plane.until_reported(web.ipv4, web.ipv6)
            seen = len(stage.plane.reports)
            stage.plane.hang_up()
            with trio.fail_after(20):
                while len(stage.plane.reports) == seen:
                    await stage.plane.changed.wait()
            assert stage.plane.reports[-1].workloads[0].uid == WEB


async def test_sigterm_leaves_rules_and_no_sockets(lab: Lab, web: Workload, tmp_path: Path) -> None:
    async with staged(lab, tmp_path) as stage, trio.open_nursery() as nursery:
        ztunnel = await connected(stage)
        with closing(ztunnel), AgentClient(stage.api) as client:
            await nursery.start(ztunnel.serve)
            await stage.plane.set_orders(web=True)
            client.attach("default", "web", "site", ("path", str(web.path)))
            await stage.plane.until_captured(WEB)
            assert stage.process is not None
            stage.process.terminate()
            assert await trio.to_thread.run_sync(stage.process.wait) == 0
            nursery.cancel_scope.cancel()
    assert "redirect to :15001" in rules_of(lab, web)
    assert not stage.api.exists()
    assert not stage.zds.exists()
    assert "Traceback" not in stage.log


class TestLocalApi:
    async def test_bad_requests_get_an_answer(self, lab: Lab, web: Workload, tmp_path: Path) -> None:
        async with staged(lab, tmp_path) as stage:
            with await stage.start():
                for line, reason in {
                    b"rubbish": "not JSON",
                    b"[]": "JSON object",
                    b"{}": "none of attach",
                    b'{"op": "attach"}': "`netns` must be",
                    b'{"op": "attach", "netns": {"kind": "pid", "value": 3}, '
                    b'"namespace": "a", "name": "a", "service_account": "a"}': "`value` must be a text",
                    b'{"op": "wait", "uid": "x", "timeout_s": 1e9}': "`timeout_s` must be",
                    b'{"op": "detach", "uid": "nobody"}': "no workload is attached",
                    b"[" * 10_000: "not JSON",
                }.items():
                    answer = talk(stage.api, line + b"\n")
                    assert answer["ok"] is False
                    assert reason in answer["error"]["text"]
                assert "too long" in talk(stage.api, b"x" * 20_000)["error"]["text"]

    async def test_many_idle_connections_do_not_stop_the_agent(
        self, lab: Lab, web: Workload, tmp_path: Path
    ) -> None:
        async with staged(lab, tmp_path) as stage:
            with await stage.start() as client:
                idle = [AgentClient(stage.api) for _ in range(30)]
                assert client.list() == []
                for each in idle:
                    each.close()

    async def test_errors_carry_the_agents_reason(self, lab: Lab, web: Workload, tmp_path: Path) -> None:
        async with staged(lab, tmp_path) as stage:
            with await stage.start() as client:
                with pytest.raises(RequestFailedError, match="MYC-1030") as caught:
                    client.attach("default", "web", "site", ("name", "nobody"))
                assert caught.value.remote_code == "MYC-1030"
                with pytest.raises(RequestFailedError, match="node's own"):
                    client.attach("default", "web", "site", ("path", str(stage.node.path)))

    def test_no_agent(self, tmp_path: Path) -> None:
        with pytest.raises(AgentUnreachableError, match="is it running"):
            AgentClient(tmp_path / "nobody.sock")


def talk(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(line)
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline())
        return answer


class TestMisuse:
    """One clear message, a non-zero exit, no traceback."""

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "node", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            timeout=30,
        )
        assert result.returncode not in {0, None}
        assert "Traceback" not in result.stderr
        return result.stderr

    def complete(self, tmp_path: Path, **overrides: str) -> list[str]:
        settings = {
            "--node": "alpha",
            "--state-dir": str(tmp_path / "state"),
            "--control-plane": "127.0.0.1:1",
            "--root-cert": str(tmp_path / "root.pem"),
            "--token-file": str(tmp_path / "token"),
            "--zds-socket": str(tmp_path / "zds.sock"),
            "--api-socket": str(tmp_path / "api.sock"),
        }
        settings |= {f"--{name.replace('_', '-')}": value for name, value in overrides.items()}
        return [word for item in settings.items() for word in item]

    def test_a_wrong_address(self, tmp_path: Path) -> None:
        told = self.run(*self.complete(tmp_path, control_plane="nowhere"))
        assert told == (
            "node agent: --control-plane 'nowhere' is not HOST:PORT (for example 10.0.0.1:15012) [MYC-5040]\n"
        )

    def test_a_state_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        told = self.run(*self.complete(tmp_path, state_dir=str(tmp_path / "file" / "state")))
        assert "cannot use the state folder" in told
        assert "--state-dir" in told

    def test_a_socket_path_in_use_by_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "zds.sock").write_text("precious")
        told = self.run(*self.complete(tmp_path))
        assert "exists and is not a socket" in told

    def test_without_privilege(self, tmp_path: Path) -> None:
        drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"]
        result = subprocess.run(
            [*drop, sys.executable, "-m", "node", *self.complete(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=30,
        )
        assert result.returncode == 1
        assert "run the agent as root" in result.stderr
        assert "Traceback" not in result.stderr
