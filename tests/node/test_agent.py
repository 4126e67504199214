"""The agent's heart with real namespaces and rules, a real ZDS server and scripted ztunnels."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.agent import Agent, AttachRequest
from node.attachment import CaptureOrder, Reference, ReferenceKind
from node.errors import (
    NamespaceRefusedError,
    NotReachedError,
    StateFileError,
    UnknownAttachmentError,
)
from node.keeper import KeeperSettings, Rules
from node.kernel import Redirection, find_programs
from node.rules import RuleOptions
from node.state_file import StateFile
from node.unix_socket import unix_listener
from node.zds import ServedWorkload, ZdsServer
from tests.kit.scripted_ztunnel import HELLO, SNAPSHOT_SENT, ScriptedZtunnel, closing
from transport.errors import MeshError
from transport.netns import NamespaceNotFound, NetworkNamespace

pytestmark = pytest.mark.namespaces

WANTED = CaptureOrder(True, "namespace label")
UNWANTED = CaptureOrder(False, "pod label")
WEB = "default/web"


@pytest.fixture(scope="module")
def rules() -> Redirection:
    made = Redirection(find_programs(), RuleOptions())
    made.self_test()
    return made


@dataclass
class Running:
    """An agent over a state folder, with its ZDS socket."""

    agent: Agent
    zds: ZdsServer
    directory: Path

    def request(self, workload: Workload, *, name: str = "", kind: str = "path") -> AttachRequest:
        value = str(workload.path) if kind == "path" else workload.namespace
        return AttachRequest("default", name or workload.name, "site", Reference(ReferenceKind(kind), value))

    async def ztunnel(self, nursery: trio.Nursery) -> ScriptedZtunnel:
        """One that takes everything."""
        ztunnel = await ScriptedZtunnel.connect(self.directory / "zds.sock")
        await nursery.start(ztunnel.serve)
        return ztunnel

    def keeper_problem(self, uid: str) -> str:
        return next(keeper.problem for keeper, _ in self.agent.keepers() if keeper.attachment.uid == uid)

    def uids(self) -> list[str]:
        return [keeper.attachment.uid for keeper, _ in self.agent.keepers()]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await self.agent.wait_change()


@asynccontextmanager
async def running(
    directory: Path, rules: Rules, wrap: Callable[[ZdsServer], ZdsServer] | None = None
) -> AsyncIterator[Running]:
    """Leaving the block is as good as a kill: keepers do nothing when they are cancelled."""
    directory.mkdir(exist_ok=True)

    def answered(uid: str, error: MeshError | None) -> None:
        agent.ztunnel_answered(uid, error)

    async def follow() -> None:
        while True:
            await zds.wait_connection_change()
            agent.ztunnels_changed()

    zds = ZdsServer(answered)
    if wrap is not None:
        zds = wrap(zds)
    settings = KeeperSettings(release_grace_s=0.05, check_interval_s=0.2, retry_first_s=0.05)
    agent = Agent(rules, zds, StateFile(directory), settings)
    with unix_listener(directory / "zds.sock", socket.SOCK_SEQPACKET) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            await nursery.start(zds.run, listener)
            nursery.start_soon(follow)
            yield Running(agent, zds, directory)
            nursery.cancel_scope.cancel()


@pytest.fixture
def web(lab: Lab) -> Workload:
    return lab.add_workload("web", lab.add_node("alpha"))


def has_rules(rules: Redirection, workload: Workload) -> bool:
    with NetworkNamespace.from_path(workload.path) as handle:
        return rules.is_in_place(handle)


def has_none(rules: Redirection, workload: Workload) -> bool:
    with NetworkNamespace.from_path(workload.path) as handle:
        return rules.is_absent(handle)


async def test_an_ordered_workload_is_captured_and_released(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        ztunnel = await here.ztunnel(nursery)
        with closing(ztunnel):
            attachment = await here.agent.attach(here.request(web))
            assert attachment.uid == WEB
            assert has_none(rules, web)
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            assert has_rules(rules, web)
            assert ztunnel.served == {WEB}
            ((keeper, _),) = here.agent.keepers()
            assert keeper.addresses == (web.ipv4, web.ipv6)
            await here.agent.apply_orders({WEB: UNWANTED})
            await here.agent.wait(WEB, is_captured=False, timeout_s=10)
            await here.until(lambda: keeper.is_settled)
            assert has_none(rules, web)
            assert ztunnel.log == ["snapshot", "add default/web", "del default/web"]
            nursery.cancel_scope.cancel()


async def test_an_order_that_came_before_the_workload_is_not_kept(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here:
        await here.agent.apply_orders({WEB: WANTED})
        await here.agent.attach(here.request(web))
        with pytest.raises(NotReachedError, match="no order from the control plane"):
            await here.agent.wait(WEB, is_captured=True, timeout_s=0.05)


async def test_attaching_is_idempotent_by_any_reference(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here:
        await here.agent.attach(here.request(web))
        await here.agent.attach(here.request(web, kind="name"))
        assert here.uids() == [WEB]


async def test_a_namespace_has_one_attachment(web: Workload, rules: Redirection, tmp_path: Path) -> None:
    async with running(tmp_path / "a", rules) as here:
        await here.agent.attach(here.request(web))
        with pytest.raises(NamespaceRefusedError, match="attached already, as 'default/web'"):
            await here.agent.attach(here.request(web, name="other"))


async def test_the_nodes_own_namespace_is_never_attached(rules: Redirection, tmp_path: Path) -> None:
    async with running(tmp_path / "a", rules) as here:
        own = Reference(ReferenceKind.PATH, "/proc/thread-self/ns/net")
        with pytest.raises(NamespaceRefusedError, match="node's own"):
            await here.agent.attach(AttachRequest("default", "web", "site", own))
        with pytest.raises(NamespaceNotFound):
            await here.agent.attach(
                AttachRequest("default", "web", "site", Reference(ReferenceKind.NAME, "nobody"))
            )
        assert here.uids() == []


async def test_a_workload_that_was_recreated_replaces_the_old_one(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            again = lab.add_workload("again", web.node)
            await here.agent.attach(here.request(again, name="web"))
            await here.agent.apply_orders({})
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            assert has_none(rules, web)
            assert has_rules(rules, again)
            assert ztunnel.log == ["snapshot", "add default/web", "del default/web", "add default/web"]
            nursery.cancel_scope.cancel()


async def test_detaching_releases_and_forgets(web: Workload, rules: Redirection, tmp_path: Path) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            await here.agent.detach(WEB)
            assert here.uids() == []
            assert has_none(rules, web)
            assert ztunnel.served == set()
            with pytest.raises(UnknownAttachmentError):
                await here.agent.detach(WEB)
            nursery.cancel_scope.cancel()


async def test_a_deleted_namespace_is_taken_from_the_ztunnel_at_once(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            lab.remove_workload("web")
            await ztunnel.until_served()
            await here.until(lambda: here.uids() == [])
            nursery.cancel_scope.cancel()
    assert StateFile(tmp_path / "a").load().attachments == {}


async def test_a_process_that_ends_hands_its_namespace_on_to_another_in_it(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    first = lab.popen(web, ["sleep", "1000"])
    second = lab.popen(web, ["sleep", "1000"])
    async with running(tmp_path / "a", rules) as here:
        reference = Reference(ReferenceKind.PID, str(first.pid))
        await here.agent.attach(AttachRequest("default", "web", "site", reference))
        lab.stop(first)
        ((keeper, _),) = here.agent.keepers()
        await here.until(lambda: keeper.attachment.reference.value == str(second.pid))
        lab.stop(second)
        await here.until(lambda: here.uids() == [])


async def test_a_new_ztunnel_gets_the_captured_workloads_in_its_snapshot(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as old:
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            with closing(await here.ztunnel(nursery)) as new:
                assert new.log == ["add default/web", "snapshot"]
                assert old.log == ["snapshot", "add default/web"]
                nursery.cancel_scope.cancel()


async def test_traffic_is_not_redirected_before_there_is_a_ztunnel(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        await here.agent.attach(here.request(web))
        await here.agent.apply_orders({WEB: WANTED})
        await here.until(lambda: "no ztunnel" in here.keeper_problem(WEB))
        assert has_none(rules, web)
        with closing(await here.ztunnel(nursery)):
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            assert has_rules(rules, web)
            nursery.cancel_scope.cancel()


async def test_drift_is_mended(lab: Lab, web: Workload, rules: Redirection, tmp_path: Path) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)):
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            lab.run(web, ["nft", "flush", "ruleset"])
            await here.until(lambda: has_rules(rules, web))
            nursery.cancel_scope.cancel()


async def test_a_disk_that_is_full_is_shown_and_stops_nothing(
    web: Workload, rules: Redirection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StateFile, state: object) -> None:
        raise StateFileError("No space left on device")

    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)), monkeypatch.context() as patch:
            patch.setattr(StateFile, "save", full)
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            assert "No space left" in here.agent.state_problem
            patch.undo()
            await here.agent.apply_orders({WEB: UNWANTED})
            await here.until(lambda: not here.agent.state_problem)
            nursery.cancel_scope.cancel()


async def test_a_useless_state_file_is_set_aside_and_said(rules: Redirection, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "node.json").write_text("rubbish")
    async with running(tmp_path / "a", rules) as here:
        assert "set aside" in here.agent.state_problem
    assert (tmp_path / "a" / "node.unreadable.json").read_text() == "rubbish"


async def test_a_restart_goes_on_without_the_control_plane(
    web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)):
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            nursery.cancel_scope.cancel()
    assert has_rules(rules, web)
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        ((keeper, order),) = here.agent.keepers()
        assert keeper.attachment.is_captured, "the promise is not taken back by a restart"
        assert order == WANTED
        with closing(await here.ztunnel(nursery)) as ztunnel:
            assert ztunnel.log == ["add default/web", "snapshot"]
            await here.agent.wait(WEB, is_captured=True, timeout_s=10)
            nursery.cancel_scope.cancel()


async def test_a_restart_forgets_namespaces_that_are_gone(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here:
        await here.agent.attach(here.request(web))
    lab.remove_workload("web")
    async with running(tmp_path / "a", rules) as here:
        assert here.uids() == []


class Killed(Rules):
    """Real rules that end the agent when a step begins or is done."""

    def __init__(self, rules: Redirection, step: str, kill: trio.CancelScope) -> None:
        self._rules = rules
        self._step = step
        self._kill = kill

    def _reach(self, step: str) -> None:
        if step == self._step:
            trio.from_thread.run_sync(self._kill.cancel)
            raise NamespaceRefusedError("killed")

    def apply(self, namespace: NetworkNamespace) -> None:
        self._reach("before rules")
        self._rules.apply(namespace)
        self._reach("after rules")

    def remove(self, namespace: NetworkNamespace) -> None:
        self._reach("before removal")
        self._rules.remove(namespace)
        self._reach("after removal")

    def is_in_place(self, namespace: NetworkNamespace) -> bool:
        return self._rules.is_in_place(namespace)

    def is_absent(self, namespace: NetworkNamespace) -> bool:
        return self._rules.is_absent(namespace)

    def addresses(self, namespace: NetworkNamespace) -> tuple[str, ...]:
        return self._rules.addresses(namespace)


class KillingZds(ZdsServer):
    """A real ZDS server that ends the agent around a request."""

    step = ""
    kill: trio.CancelScope

    async def add(self, workload: ServedWorkload) -> None:
        await super().add(workload)
        await self._reach("after add")

    async def delete(self, uid: str) -> None:
        await self._reach("before delete")
        await super().delete(uid)
        await self._reach("after delete")

    async def _reach(self, step: str) -> None:
        if step == self.step:
            self.kill.cancel()
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("step", "wish"),
    [
        ("before rules", WANTED),
        ("after rules", WANTED),
        ("add unanswered", WANTED),
        ("after add", WANTED),
        ("before delete", UNWANTED),
        ("after delete", UNWANTED),
        ("before removal", UNWANTED),
        ("after removal", UNWANTED),
    ],
)
async def test_killed_at_a_step_the_next_start_reaches_the_right_end(
    web: Workload, rules: Redirection, tmp_path: Path, step: str, wish: CaptureOrder
) -> None:
    directory = tmp_path / "a"
    if wish is UNWANTED:
        async with running(directory, rules) as here, trio.open_nursery() as nursery:
            with closing(await here.ztunnel(nursery)):
                await here.agent.attach(here.request(web))
                await here.agent.apply_orders({WEB: WANTED})
                await here.agent.wait(WEB, is_captured=True, timeout_s=10)
                nursery.cancel_scope.cancel()

    with trio.CancelScope() as kill, trio.fail_after(20):

        def killing(zds: ZdsServer) -> ZdsServer:
            made = KillingZds(zds._on_add_answer)
            made.step, made.kill = step, kill
            return made

        async with (
            running(directory, Killed(rules, step, kill), killing) as here,
            trio.open_nursery() as nursery,
        ):
            ztunnel = await ScriptedZtunnel.connect(directory / "zds.sock")
            with closing(ztunnel):
                if step == "add unanswered":
                    await ztunnel.answer(HELLO)
                    await ztunnel.expect(SNAPSHOT_SENT)
                else:
                    await nursery.start(ztunnel.serve)
                await here.agent.attach(here.request(web))
                await here.agent.apply_orders({WEB: wish})
                if step == "add unanswered":
                    await ztunnel.receive()
                    kill.cancel()
                await trio.sleep_forever()
    assert kill.cancelled_caught

    async with running(directory, rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            if not here.uids():
                await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: wish})
            await here.agent.wait(WEB, is_captured=wish.is_wanted, timeout_s=10)
            if wish.is_wanted:
                assert has_rules(rules, web)
                assert ztunnel.served == {WEB}
            else:
                assert has_none(rules, web)
                assert ztunnel.served == set()
            nursery.cancel_scope.cancel()
