"""After a boot: what was in the mesh is kept from plaintext until it is enrolled again."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.agent import Agent
from node.api import ApiServer
from node.api_client import AgentClient
from node.attachment import Fence, NodeState, Reference, ReferenceKind, from_json, to_json
from node.kernel import Redirection
from node.state_file import StateFile
from node.unix_socket import unix_listener
from tests.kit.scripted_ztunnel import closing
from tests.node.test_agent import UNWANTED, WANTED, WEB, has_none, has_rules, rules, running, web

__all__ = ["rules", "web"]
pytestmark = pytest.mark.namespaces


async def captured_then_booted(web: Workload, rules: Redirection, directory: Path) -> None:
    """A saved state of an earlier boot, in which the workload was captured; its namespace is a new one."""
    async with running(directory, rules) as here, trio.open_nursery() as nursery:
        with closing(await here.ztunnel(nursery)):
            await here.agent.attach(here.request(web))
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=15)
            nursery.cancel_scope.cancel()
    saved = json.loads((directory / "node.json").read_text())
    (directory / "node.json").write_text(json.dumps(saved | {"boot": "the one before"}))


def recreate(lab: Lab, web: Workload) -> Workload:
    """Another namespace under the same path."""
    node = web.node
    lab.remove_workload("web")
    return lab.add_workload("web", node)


def connect(lab: Lab, place: Workload) -> int:
    """The errno of a connection to somebody else."""
    with lab.entered(place), socket.socket() as sock:
        sock.settimeout(10)
        return sock.connect_ex((place.node.gateway_ipv4, 9))


async def test_its_traffic_is_refused_until_it_is_enrolled_again(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    await captured_then_booted(web, rules, tmp_path / "a")
    again = recreate(lab, web)
    assert has_none(rules, again)
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        # Before the agent counts as started, and without an identity.
        assert has_rules(rules, again)
        assert here.uids() == []
        assert connect(lab, again) == errno.ECONNREFUSED
        with closing(await here.ztunnel(nursery)) as ztunnel:
            assert ztunnel.served == set()
            await here.agent.attach(here.request(again))
            assert here.agent.fences.all() == {}
            assert has_rules(rules, again), "no moment without them"
            await here.agent.apply_orders({WEB: WANTED})
            await here.agent.wait(WEB, is_captured=True, timeout_s=15)
            await here.agent.apply_orders({WEB: UNWANTED})
            await here.agent.wait(WEB, is_captured=False, timeout_s=15)
            assert has_none(rules, again), "the order is what counts now"
            nursery.cancel_scope.cancel()


async def test_a_namespace_that_comes_later_is_fenced_too_and_removed_by_hand(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    await captured_then_booted(web, rules, tmp_path / "a")
    node = web.node
    lab.remove_workload("web")
    async with running(tmp_path / "a", rules) as here:
        again = lab.add_workload("web", node)
        await here.until(lambda: here.agent.fences.has_rules(WEB))
        assert has_rules(rules, again)
    async with running(tmp_path / "a", rules) as here:
        assert list(here.agent.fences.all()) == [WEB], "a restart of the agent keeps it"
        await here.agent.detach(WEB)
        assert has_none(rules, again)
    assert StateFile(tmp_path / "a").load().fences == {}


async def test_it_is_listed_with_what_is_to_be_done(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    await captured_then_booted(web, rules, tmp_path / "a")
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        with unix_listener(tmp_path / "api.sock", socket.SOCK_STREAM) as listener:
            await nursery.start(ApiServer(here.agent, dict, _Nobody()).run, listener)

            def ask() -> str:
                with AgentClient(tmp_path / "api.sock") as client:
                    (listed,) = client.list()
                    assert (listed.uid, listed.state, listed.is_captured) == (WEB, "fenced", False)
                    return listed.reason

            reason = await trio.to_thread.run_sync(ask)
            assert "ended or the host was booted: its traffic is refused; add it again" in reason
            nursery.cancel_scope.cancel()


class _Nobody:
    async def resolve(self, kind: str, value: str) -> Reference:
        raise AssertionError((kind, value))


async def test_the_agents_own_namespace_is_never_fenced(rules: Redirection, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    own = Reference(ReferenceKind.PATH, "/proc/self/ns/net")
    state = NodeState(fences={WEB: Fence(WEB, own)})
    assert from_json(json.loads(json.dumps(to_json(state)))) == state
    StateFile(tmp_path / "a").save(state)
    async with running(tmp_path / "a", rules) as here:
        assert isinstance(here.agent, Agent)
        assert not here.agent.fences.has_rules(WEB)
