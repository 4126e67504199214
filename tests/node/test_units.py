"""systemd units that declare workloads: real processes, namespaces, files; what systemctl says is a file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.attachment import Registration
from node.enrolment.resolve import HostResolver
from node.enrolment.unit import Unit, read_options, read_show, reference_of
from node.enrolment.units import Systemctl, UnitFiles, UnitWatch
from node.errors import BadRequestError, UnitRefusedError
from node.kernel import Redirection
from node.processes import start_time
from node.state_file import StateFile
from tests.kit.scripted_ztunnel import closing
from tests.node.test_agent import WANTED, Running, has_none, has_rules, rules, running, web

__all__ = ["rules", "web"]

WEB_UNIT = """\
[Unit]
Description=A web server
[Service]
ExecStart=/usr/bin/sleep infinity
PrivateNetwork=yes
X-Mycelia-Workload=web
X-Mycelia-Namespace=shop
X-Mycelia-ServiceAccount=site
X-Mycelia-Labels=app=web version=v1
"""


def test_options_of_drop_ins_count_last_and_an_empty_one_takes_back() -> None:
    found = read_options([WEB_UNIT, "[Service]\nX-Mycelia-Labels=app=shop\nX-Mycelia-ServiceAccount=\n"])
    assert found is not None
    assert (found.uid, found.service_account) == ("shop/web", "default")
    assert found.registration == Registration((("app", "shop"),))
    assert read_options(["[Service]\nExecStart=/bin/true\n"]) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("X-Mycelia-Account=web", "option X-Mycelia-Account is none of: X-Mycelia-Workload"),
        ("X-Mycelia-Labels=app", "is not KEY=VALUE"),
        ("X-Mycelia-Namespace=a b", "is not a valid name"),
    ],
)
def test_options_that_say_nothing_good_are_refused(line: str, reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason):
        read_options([WEB_UNIT, line])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_itself_has_nothing_to_say_about_the_options(tmp_path: Path) -> None:
    unit = tmp_path / "web.service"
    unit.write_text(WEB_UNIT)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert "X-Mycelia" not in done.stderr


def unit(**changes: object) -> Unit:
    said = {
        "name": "web.service",
        "is_loaded": True,
        "is_up": True,
        "state": "active",
        "pid": 17,
        "invocation": "i1",
        "netns_path": "",
        "has_private_network": True,
        **changes,
    }
    return Unit(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "started", "reason"),
    [
        (unit(is_loaded=False), 1, "there is no unit web.service"),
        (unit(has_private_network=False), 1, "runs in the network namespace of the host"),
        (unit(is_up=False, state="failed"), 1, "web.service is failed"),
        (unit(pid=0), 0, "has no process"),
        (unit(), 0, "has no process"),
    ],
)
def test_units_that_cannot_be_enrolled_say_why(found: Unit, started: int, reason: str) -> None:
    with pytest.raises(UnitRefusedError, match=reason):
        reference_of(found, started)


def test_unit_files_are_found_with_drop_ins_and_templates(tmp_path: Path) -> None:
    (tmp_path / "plain.service").write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / "web.service").write_text(WEB_UNIT)
    (tmp_path / "job@.service").write_text(WEB_UNIT)
    drop_in = tmp_path / "db.service.d" / "mesh.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nX-Mycelia-Workload=db\n")
    files = UnitFiles([tmp_path, tmp_path / "nowhere"])
    assert files.declaring() == {"web.service", "job@*.service", "db.service"}
    drop_in.write_text("[Service]\n")
    assert files.declaring() == {"web.service", "job@*.service"}


@dataclass
class Stage:
    here: Running
    watch: UnitWatch
    said: Path
    files: Path

    def say(self, *, state: str = "active", pid: int = 0, invocation: str = "i1", netns: str = "") -> None:
        """What systemctl answers from now on."""
        fresh = self.said.with_suffix(".new")
        fresh.write_text(
            f"Id=web.service\nLoadState=loaded\nActiveState={state}\nMainPID={pid}\nControlPID=0\n"
            f"InvocationID={invocation}\nNetworkNamespacePath={netns}\n"
            f"PrivateNetwork={'no' if netns else 'yes'}\nDropInPaths=\n"
            f"FragmentPath={self.files / 'web.service'}\n"
        )
        fresh.rename(self.said)

    async def until_uids(self, *uids: str) -> None:
        await self.here.until(lambda: self.here.uids() == list(uids))


@asynccontextmanager
async def staged(rules: Redirection, tmp_path: Path, *, every_s: float = 0.05) -> AsyncIterator[Stage]:
    files, said = tmp_path / "units", tmp_path / "said"
    files.mkdir()
    (files / "web.service").write_text(WEB_UNIT)
    async with running(tmp_path / "a", rules) as here:
        watch = UnitWatch(here.agent, Systemctl(["sh", "-c", f"cat {said}"]), UnitFiles([files]), every_s)
        stage = Stage(here, watch, said, files)
        stage.say(state="inactive")
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            yield stage
            nursery.cancel_scope.cancel()


@pytest.mark.namespaces
async def test_a_unit_with_a_private_network_is_enrolled_and_let_go(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(rules, tmp_path) as stage:
        process = lab.popen(web, ["sleep", "1000"])
        stage.say(pid=process.pid)
        await stage.until_uids("shop/web")
        ((keeper, _),) = stage.here.agent.keepers()
        assert keeper.attachment.origin == "unit web.service i1"
        assert keeper.attachment.reference.started == start_time(process.pid)
        lab.stop(process)
        await stage.until_uids()
        with trio.fail_after(20):
            while "web.service" not in stage.watch.refused:
                await trio.sleep(0.01)


@pytest.mark.namespaces
async def test_a_unit_in_a_lasting_namespace_is_let_go_when_its_process_ends(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    # Only the end of the process makes it look again: nothing is looked at by the clock.
    async with staged(rules, tmp_path, every_s=3600) as stage:
        process = lab.popen(web, ["sleep", "1000"])
        stage.say(pid=process.pid, netns=str(web.path))
        async with trio.open_nursery() as nursery:
            await stage.watch.look(nursery)
            assert stage.here.uids() == ["shop/web"]
            stage.say(state="inactive", netns=str(web.path))
            lab.stop(process)
            await stage.until_uids()


@pytest.mark.namespaces
async def test_rules_in_a_lasting_namespace_stay_until_it_is_removed_or_starts_again(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(rules, tmp_path) as stage, trio.open_nursery() as nursery:
        agent = stage.here.agent
        with closing(await stage.here.ztunnel(nursery)):
            for invocation in ("i1", "i2"):
                stage.say(invocation=invocation, netns=str(web.path))
                await stage.until_uids("shop/web")
                assert agent.fences.all() == {}
                await agent.apply_orders({"shop/web": WANTED})
                await agent.wait("shop/web", is_captured=True, timeout_s=15)
                stage.say(state="inactive", invocation=invocation, netns=str(web.path))
                await stage.here.until(lambda: list(agent.fences.all()) == ["shop/web"])
                assert stage.here.uids() == []
                assert has_rules(rules, web)
                await agent.apply_orders({})
            await agent.detach("shop/web")
            assert has_none(rules, web)
            nursery.cancel_scope.cancel()


@pytest.mark.namespaces
async def test_what_is_removed_by_hand_stays_removed_until_it_starts_again(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(rules, tmp_path) as stage:
        stage.say(netns=str(web.path))
        await stage.until_uids("shop/web")
        await stage.here.agent.detach("shop/web")
        with trio.fail_after(20):
            while "it was removed by hand" not in stage.watch.refused.get("web.service", ""):
                await trio.sleep(0.01)
        assert stage.here.uids() == []
        assert StateFile(tmp_path / "a").load().removed == ("unit web.service i1",)
        stage.say(invocation="i2", netns=str(web.path))
        await stage.until_uids("shop/web")


@pytest.mark.namespaces
async def test_a_unit_that_is_started_again_is_another_workload(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(rules, tmp_path) as stage:
        stage.say(state="activating", netns=str(web.path))
        await stage.until_uids("shop/web")
        stage.say(invocation="i2", netns=str(web.path))

        def is_second() -> bool:
            return [k.attachment.origin for k, _ in stage.here.agent.keepers()] == ["unit web.service i2"]

        await stage.here.until(is_second)


@pytest.mark.namespaces
async def test_what_cannot_be_known_changes_nothing(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(rules, tmp_path) as stage:
        stage.say(netns=str(web.path))
        await stage.until_uids("shop/web")
        stage.said.unlink()
        with trio.fail_after(20):
            while not stage.watch.problem:
                await trio.sleep(0.01)
        assert stage.here.uids() == ["shop/web"]


async def test_a_unit_is_named_by_hand(tmp_path: Path) -> None:
    said = "Id=web.service\nLoadState=loaded\nActiveState=active\nNetworkNamespacePath=/run/netns/w\n"
    resolver = HostResolver([], Systemctl(["printf", said]))
    assert str(await resolver.resolve("unit", "web")) == "path /run/netns/w"
    for name in ("../web", "*", "-x"):
        with pytest.raises(BadRequestError, match="is no name of a unit"):
            await resolver.resolve("unit", name)


def test_what_systemctl_shows_is_read() -> None:
    text = "Id=a.service\nLoadState=loaded\nActiveState=active\nMainPID=0\nControlPID=9\n\nId=b.service\n\n\n"
    assert [(each.name, each.pid, each.is_up) for each in read_show(text)] == [
        ("a.service", 9, True),
        ("b.service", 0, False),
    ]
