"""The agent, a real process, is killed (SIGKILL) at every named step of boot, enrolment, removal and end.

After each kill it is started again, and whoever asked asks again, as people and engines do; then everything
is as if nothing had happened. At no time is traffic let out: rules are there whenever others were told so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Node, Workload
from node import faults
from node.api_client import AgentClient, RequestFailedError
from node.errors import AgentUnreachableError
from node.kernel import Redirection, find_programs
from node.rules import RuleOptions
from node.state_file import StateFile
from tests.kit.scripted_control_plane import ScriptedControlPlane, serving
from tests.kit.scripted_ztunnel import ScriptedZtunnel, closing
from transport.netns import NetworkNamespace

pytestmark = pytest.mark.namespaces

ROOT = Path(__file__).resolve().parents[2]
WEB = "default/web"
PATIENCE_S = 20.0
REGISTRATION = {"labels": {"app": "web"}, "addresses": [], "network": ""}


@dataclass
class Stage:
    lab: Lab
    place: Workload
    folder: Path
    plane: ScriptedControlPlane
    zygote: subprocess.Popen[bytes]
    rules: Redirection
    ztunnel: ScriptedZtunnel | None = None
    pid: int = 0

    @property
    def has_rules(self) -> bool:
        with NetworkNamespace.from_path(self.place.path) as handle:
            return self.rules.is_in_place(handle)

    @property
    def has_none(self) -> bool:
        with NetworkNamespace.from_path(self.place.path) as handle:
            return self.rules.is_absent(handle)

    @property
    def served(self) -> set[str]:
        return self.ztunnel.served if self.ztunnel is not None else set()

    async def start(self, point: str = "") -> None:
        assert self.zygote.stdin is not None
        self.zygote.stdin.write(f"{point}\n".encode())
        self.zygote.stdin.flush()
        self.pid = int((await self._word()).removeprefix("started "))

    async def killed(self, point: str) -> None:
        assert await self._word() == f"ended {-signal.SIGKILL}", point

    async def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        assert await self._word() == "ended 0"

    async def _word(self) -> str:
        assert self.zygote.stdout is not None
        with trio.fail_after(PATIENCE_S):
            line = await trio.to_thread.run_sync(self.zygote.stdout.readline, abandon_on_cancel=True)
        return line.decode().strip()

    async def ask(self, request: Callable[[AgentClient], object]) -> None:
        """Until it is answered: by an agent that is starting, too."""
        with trio.fail_after(PATIENCE_S):
            while True:
                with suppress(AgentUnreachableError):
                    await trio.to_thread.run_sync(self._ask, request)
                    return
                await trio.sleep(0.01)

    async def try_to(self, request: Callable[[AgentClient], object]) -> None:
        """Once it can be asked; the answer may be lost with the agent."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    client = AgentClient(self.folder / "api.sock")
                except AgentUnreachableError:
                    await trio.sleep(0.01)
                    continue
                with client, suppress(AgentUnreachableError):
                    await trio.to_thread.run_sync(request, client)
                return

    def _ask(self, request: Callable[[AgentClient], object]) -> None:
        with AgentClient(self.folder / "api.sock") as client:
            request(client)

    def attach(self, client: AgentClient) -> None:
        client.attach("default", "web", "site", ("path", str(self.place.path)), registration=REGISTRATION)

    async def until(self, what: str, is_true: Callable[[], bool]) -> None:
        with trio.move_on_after(PATIENCE_S):
            while not is_true():
                await trio.sleep(0.005)
            return
        raise AssertionError(f"in vain: {what}\n{(self.folder / 'log').read_text()[-3000:]}")

    async def until_captured(self) -> None:
        await self.plane.until_captured(WEB)
        await self.until("served", lambda: self.served == {WEB})
        assert self.has_rules
        assert StateFile(self.folder / "state").load().attachments[WEB].is_captured


async def run_ztunnel(stage: Stage) -> None:
    """One that takes everything and comes back after each end of the agent."""
    while True:
        try:
            ztunnel = await ScriptedZtunnel.connect(stage.folder / "zds.sock")
        except OSError:
            await trio.sleep(0.01)
            continue
        with closing(ztunnel), suppress(trio.TooSlowError):
            stage.ztunnel = ztunnel
            await ztunnel.serve()
        stage.ztunnel = None


@asynccontextmanager
async def staged(lab: Lab, node: Node, place: Workload, tmp_path: Path) -> AsyncIterator[Stage]:
    with lab.entered(lab.management):
        sock = trio.socket.socket()
    await sock.bind(("10.77.255.1", 0))
    sock.listen(16)
    (tmp_path / "token").write_text("the-token\n")
    async with serving(trio.SocketListener(sock), "10.77.255.1", tmp_path / "root.pem") as plane:
        await plane.set_orders(web=True)
        arguments = [
            *("--node", "alpha", "--state-dir", str(tmp_path / "state")),
            *("--control-plane", f"10.77.255.1:{plane.port}"),
            *("--root-cert", str(tmp_path / "root.pem"), "--token-file", str(tmp_path / "token")),
            *("--zds-socket", str(tmp_path / "zds.sock"), "--api-socket", str(tmp_path / "api.sock")),
            *("--release-grace", "0.01", "--check-interval", "0.5", "--no-containers", "--no-units"),
        ]
        rules = Redirection(find_programs(), RuleOptions())
        await trio.to_thread.run_sync(rules.self_test)
        zygote = lab.popen(
            node,
            [sys.executable, "-m", "tests.kit.agent_zygote", *arguments],
            log=tmp_path / "log",
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stage = Stage(lab, place, tmp_path, plane, zygote, rules)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_ztunnel, stage)
            try:
                yield stage
            finally:
                with suppress(ProcessLookupError):
                    if stage.pid:
                        os.kill(stage.pid, signal.SIGKILL)
                zygote.kill()
                zygote.wait()
                for pipe in (zygote.stdin, zygote.stdout):
                    assert pipe is not None
                    pipe.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
def place(lab: Lab) -> Workload:
    return lab.add_workload("web", lab.add_node("alpha"))


async def clean(stage: Stage) -> None:
    """Nothing is attached, nothing is in the way of the next round; the agent has ended."""
    with suppress(RequestFailedError):
        await stage.ask(lambda client: client.detach(WEB))
    await stage.until("released", lambda: stage.has_none)
    await stage.stop()


async def captured(stage: Stage) -> None:
    await stage.start()
    await stage.ask(stage.attach)
    await stage.until_captured()
    await stage.stop()


async def in_rounds(
    lab: Lab,
    place: Workload,
    tmp_path: Path,
    points: tuple[str, ...],
    play: Callable[[Stage, str], Awaitable[None]],
) -> None:
    async with staged(lab, lab.nodes[0], place, tmp_path) as stage:
        for point in points:
            await play(stage, point)


async def test_enrolment(lab: Lab, place: Workload, tmp_path: Path) -> None:
    async def play(stage: Stage, point: str) -> None:
        await stage.start(point)
        await stage.try_to(stage.attach)
        await stage.killed(point)
        was_told = stage.plane.captured() == {WEB}
        assert stage.has_rules or not was_told, point
        await stage.start()
        await stage.ask(stage.attach)
        await stage.until_captured()
        await clean(stage)
        stage.plane.reports.clear()

    await in_rounds(lab, place, tmp_path, (*faults.ENROLMENT, *faults.STATE_FILE), play)


async def test_boot(lab: Lab, place: Workload, tmp_path: Path) -> None:
    async def play(stage: Stage, point: str) -> None:
        await captured(stage)
        await stage.start(point)
        await stage.killed(point)
        assert stage.has_rules, f"{point}: fails closed"
        await stage.start()
        await stage.until_captured()
        await clean(stage)

    await in_rounds(lab, place, tmp_path, faults.BOOT, play)


async def test_removal(lab: Lab, place: Workload, tmp_path: Path) -> None:
    async def play(stage: Stage, point: str) -> None:
        await stage.start(point)
        await stage.ask(stage.attach)
        await stage.until_captured()
        await stage.try_to(lambda client: client.detach(WEB))
        await stage.killed(point)
        assert stage.has_rules or stage.plane.captured() == set(), f"{point}: others were told first"
        await stage.start()
        with suppress(RequestFailedError):
            await stage.ask(lambda client: client.detach(WEB))
        await stage.until("released", lambda: stage.has_none)
        await stage.until("withdrawn", lambda: stage.ztunnel is not None and stage.served == set())
        assert StateFile(stage.folder / "state").load().attachments == {}
        await stage.stop()

    await in_rounds(lab, place, tmp_path, faults.REMOVAL, play)


async def test_the_end_of_a_workload(lab: Lab, place: Workload, tmp_path: Path) -> None:
    async def play(stage: Stage, point: str) -> None:
        process = lab.popen(place, ["sleep", "1000"])
        await stage.start(point)

        def attach(client: AgentClient) -> None:
            client.attach("default", "web", "site", ("pid", str(process.pid)), registration=REGISTRATION)

        await stage.ask(attach)
        await stage.until_captured()
        lab.stop(process)
        await stage.killed(point)
        assert stage.has_rules, f"{point}: whoever comes next is not let out"
        seen = len(stage.plane.reports)
        await stage.start()
        await stage.until("a report", lambda: len(stage.plane.reports) > seen)
        assert list(stage.plane.reports[-1].workloads) == []
        await stage.until("withdrawn", lambda: stage.ztunnel is not None and stage.served == set())
        await stage.ask(lambda client: client.list())
        await stage.stop()

    await in_rounds(lab, place, tmp_path, faults.END, play)


def test_every_point_is_tried() -> None:
    tried = {*faults.ENROLMENT, *faults.STATE_FILE, *faults.BOOT, *faults.REMOVAL, *faults.END}
    assert tried == faults.POINTS
    words = {
        word
        for path in (ROOT / "node").rglob("*.py")
        for word in path.read_text().split('"')
        if ": " in word and word in faults.POINTS
    }
    assert words == faults.POINTS
