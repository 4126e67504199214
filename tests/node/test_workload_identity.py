"""A workload is its namespace and its process, not their names: what reuses a name is somebody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.agent import AttachRequest
from node.app import report, workload_report
from node.attachment import Reference, ReferenceKind, Registration
from node.kernel import Redirection
from node.namespaces import cookie_of, open_bound
from node.processes import start_time, wait_end
from tests.kit.scripted_ztunnel import closing
from tests.node.test_agent import WANTED, WEB, has_rules, rules, running, web
from transport.netns import NamespaceNotFound, NetworkNamespace

__all__ = ["rules", "web"]
pytestmark = pytest.mark.namespaces

REGISTERED = Registration((("app", "web"),))


def by_pid(pid: int, started: int = 0) -> AttachRequest:
    reference = Reference(ReferenceKind.PID, str(pid), started)
    return AttachRequest("default", "web", "site", reference, registration=REGISTERED)


async def test_a_process_has_a_start_time_and_its_end_is_seen(lab: Lab, web: Workload) -> None:
    process = lab.popen(web, ["sleep", "1000"])
    started = start_time(process.pid)
    assert started > 0
    with trio.fail_after(15):
        await wait_end(process.pid, started + 1)
    process.kill()  # not reaped yet: a zombie has ended
    with trio.fail_after(15):
        await wait_end(process.pid, started)
    assert start_time(process.pid) == 0
    lab.stop(process)


async def test_a_number_that_belongs_to_another_process_now_is_refused(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    process = lab.popen(web, ["sleep", "1000"])
    async with running(tmp_path / "a", rules) as here:
        with pytest.raises(NamespaceNotFound, match="its number belongs to another"):
            await here.agent.attach(by_pid(process.pid, start_time(process.pid) - 1))
        assert here.uids() == []


async def test_a_path_that_leads_elsewhere_releases_the_workload(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    other = lab.add_workload("other", web.node)
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            request = AttachRequest(
                "default",
                "web",
                "site",
                Reference(ReferenceKind.PATH, str(web.path)),
                registration=REGISTERED,
            )
            await here.agent.attach(request)
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=15)
            lab.run(lab.management, ["mount", "--bind", str(other.path), str(web.path)])
            await ztunnel.until_served()
            await here.until(lambda: here.uids() == [])
            lab.run(lab.management, ["umount", str(web.path)])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (lambda saved: None, True),
        (lambda saved: saved["attachments"][0]["netns"].update(started=1), False),
        (lambda saved: saved["attachments"][0].update(cookie=1 << 60), False),
        (lambda saved: saved.update(boot="another"), False),
    ],
    ids=["nothing", "number of a process", "inode of a namespace", "boot"],
)
async def test_what_was_used_again_while_no_agent_ran_is_not_taken_up(
    lab: Lab,
    web: Workload,
    rules: Redirection,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    is_kept: bool,
) -> None:
    process = lab.popen(web, ["sleep", "1000"])
    async with running(tmp_path / "a", rules) as here:
        await here.agent.attach(by_pid(process.pid))
    file = tmp_path / "a" / "node.json"
    saved = json.loads(file.read_text())
    assert saved["attachments"][0]["netns"]["started"] == start_time(process.pid)
    change(saved)
    file.write_text(json.dumps(saved))
    other = lab.add_workload("other", web.node)
    if saved["attachments"][0]["netns"]["started"] == 1:  # and no process is left in the namespace
        saved["attachments"][0]["identity"] = list(NetworkNamespace.from_path(other.path).identity)
        file.write_text(json.dumps(saved))
    async with running(tmp_path / "a", rules) as here:
        assert here.uids() == ([WEB] if is_kept else [])


def test_no_two_namespaces_have_one_cookie(lab: Lab, web: Workload) -> None:
    other = lab.add_workload("other", web.node)
    cookies = set()
    for place in (web, other):
        with NetworkNamespace.from_path(place.path) as handle:
            cookies.add(cookie_of(handle))
            assert cookie_of(handle) in cookies
    assert len(cookies) == 2
    assert 0 not in cookies
    bound, handle = open_bound(Reference(ReferenceKind.PID, str(os.getpid())))
    handle.close()
    assert bound.started == start_time(os.getpid())


async def test_what_has_ended_is_unsaid_before_its_ztunnel_let_go(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    """By the order of events: at the time the ztunnel is asked, the report is without the workload."""
    process = lab.popen(web, ["sleep", "1000"])
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)) as ztunnel:
            await here.agent.attach(by_pid(process.pid))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=15)
            ((keeper, _),) = here.agent.keepers()
            said = workload_report(keeper)
            assert dict(said.registration.labels) == {"app": "web"}
            order: list[str] = []
            delete = here.zds.delete

            async def watched(uid: str) -> None:
                told = report(here.agent, NO_WAYPOINTS, "alpha")
                order.append(f"asked the ztunnel with {len(told.workloads)} reported")
                await delete(uid)
                order.append("the ztunnel let go")

            here.zds.delete = watched  # type: ignore[method-assign]
            lab.stop(process)
            await here.until(lambda: here.uids() == [])
            assert order == ["asked the ztunnel with 0 reported", "the ztunnel let go"]
            assert ztunnel.served == set()
            assert has_rules(rules, web), "whoever comes into the namespace next is not let out in plaintext"
            nursery.cancel_scope.cancel()


class _NoWaypoints:
    def keepers(self) -> list[Any]:
        return []


NO_WAYPOINTS: Any = _NoWaypoints()
