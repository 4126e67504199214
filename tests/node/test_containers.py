"""Containers by labels: real processes and namespaces, a real agent, an engine that does what a test says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.attachment import Registration
from node.enrolment.containers import ContainerWatch
from node.enrolment.declaration import of_container
from node.enrolment.engine_api import EngineApi
from node.enrolment.resolve import HostResolver
from node.errors import BadRequestError, EngineError
from node.kernel import Redirection
from node.processes import start_time
from node.state_file import StateFile
from tests.kit.scripted_engine import ScriptedContainer, ScriptedEngine, engine_at
from tests.node.test_agent import Running, rules, running, web
from transport.netns import NetworkNamespace

__all__ = ["rules", "web"]
pytestmark = pytest.mark.namespaces


@dataclass
class Stage:
    here: Running
    engine: ScriptedEngine
    watch: ContainerWatch
    lab: Lab

    def start(self, place: Workload, name: str = "c1", **labels: str) -> ScriptedContainer:
        """A process in the place as the container's first one."""
        process = self.lab.popen(place, ["sleep", "1000"])
        return self.engine.add(name, process.pid, **{"workload": "web", "service_account": "site", **labels})

    async def until_uids(self, *uids: str) -> None:
        await self.here.until(lambda: self.here.uids() == list(uids))

    async def until_refused(self, text: str) -> None:
        with trio.fail_after(20):
            while not any(text in each for each in self.watch.refused.values()):
                await trio.sleep(0.01)


@asynccontextmanager
async def staged(lab: Lab, rules: Redirection, tmp_path: Path) -> AsyncIterator[Stage]:
    async with engine_at(tmp_path / "engine.sock") as engine, running(tmp_path / "a", rules) as here:
        watch = ContainerWatch(here.agent, EngineApi(engine.path), resync_s=0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            yield Stage(here, engine, watch, lab)
            nursery.cancel_scope.cancel()


async def test_a_labelled_container_is_enrolled_when_it_starts_and_let_go_when_it_dies(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        await stage.engine.until_followed()
        container = stage.start(web, labels="app=web,version=v1", namespace="shop")
        await stage.engine.tell(container, "start")
        await stage.until_uids("shop/web")
        ((keeper, _),) = stage.here.agent.keepers()
        kept = keeper.attachment
        with NetworkNamespace.from_path(web.path) as handle:
            assert kept.identity == handle.identity
        assert kept.registration == Registration((("app", "web"), ("version", "v1")))
        assert (kept.reference.value, kept.reference.started) == (
            str(container.pid),
            start_time(container.pid),
        )
        # Its processes still run: the engine's word is enough.
        await stage.engine.die(container)
        await stage.until_uids()


async def test_containers_of_before_are_found_and_an_engine_that_returns_is_asked_again(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        first = stage.start(web)
        await stage.until_uids("default/web")
        await stage.engine.hang_up()
        first.is_running = False
        other = stage.start(lab.add_workload("other", web.node), "c2", workload="other")
        await stage.until_uids("default/other")
        assert "default/web" not in stage.here.uids(), "it died while nobody listened"
        assert other.id not in stage.watch.refused


async def test_without_its_engine_a_container_stays_and_its_end_is_seen(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with running(tmp_path / "a", rules) as here, trio.open_nursery() as nursery:
        watch = ContainerWatch(here.agent, EngineApi(tmp_path / "engine.sock"), resync_s=0.2)
        nursery.start_soon(watch.run)
        process = lab.popen(web, ["sleep", "1000"])
        async with engine_at(tmp_path / "engine.sock") as engine:
            engine.add("c1", process.pid, workload="web")
            await here.until(lambda: here.uids() == ["default/web"])
            await engine.until_followed()
        with trio.fail_after(20):
            while not watch.problem:
                await trio.sleep(0.01)
        assert here.uids() == ["default/web"]
        lab.stop(process)
        await here.until(lambda: here.uids() == [])
        nursery.cancel_scope.cancel()


async def test_a_restarted_agent_takes_its_containers_up_again(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        process = lab.popen(web, ["sleep", "1000"])
        stage.engine.add("c1", process.pid, workload="web")
        with trio.fail_after(20):
            while not StateFile(tmp_path / "a").load().attachments:
                await trio.sleep(0.01)
    async with running(tmp_path / "a", rules) as here:
        assert here.uids() == ["default/web"], "from its state, before an engine was asked"
    async with staged(lab, rules, tmp_path) as stage:
        # This engine does not know it: it may be another one's. Its process is what counts.
        await stage.engine.until_followed()
        assert stage.here.uids() == ["default/web"]
        lab.stop(process)
        await stage.until_uids()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"workload": "Web"}, "is not a valid name"),
        ({"labels": "app"}, "is not KEY=VALUE"),
        ({"addresses": "10.0.0.0/8"}, "addresses are numeric"),
        ({"serviceaccount": "x"}, "'serviceaccount' is none of"),
    ],
)
async def test_labels_that_say_nothing_good_are_told(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path, labels: dict[str, str], reason: str
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        stage.start(web, **labels)
        await stage.until_refused(reason)
        assert stage.here.uids() == []


async def test_two_containers_cannot_be_one_workload_and_the_host_is_none(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        first = stage.start(web)
        await stage.until_uids("default/web")
        other = lab.add_workload("other", web.node)
        stage.start(other, "c2")
        await stage.until_refused("the workload default/web is enrolled already, by container")
        stage.engine.add("c3", os.getpid(), workload="host")
        await stage.until_refused("node's own network namespace")
        await stage.engine.die(first)
        with NetworkNamespace.from_path(other.path) as handle:
            await stage.here.until(
                lambda: (
                    [each.attachment.identity for each, _ in stage.here.agent.keepers()] == [handle.identity]
                )
            )


async def test_an_unhealthy_container_is_said_to_be(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with staged(lab, rules, tmp_path) as stage:
        container = stage.start(web)
        await stage.until_uids("default/web")
        ((keeper, _),) = stage.here.agent.keepers()
        container.health = "unhealthy"
        await stage.engine.tell(container, "health_status: unhealthy")
        await stage.here.until(lambda: keeper.unhealthy == "the container's health check says unhealthy")
        container.health = "healthy"
        await stage.engine.hang_up()  # nobody tells of it
        await stage.here.until(lambda: keeper.unhealthy == "")


async def test_a_container_is_named_by_hand(
    lab: Lab, web: Workload, rules: Redirection, tmp_path: Path
) -> None:
    async with engine_at(tmp_path / "engine.sock") as engine:
        process = lab.popen(web, ["sleep", "1000"])
        container = engine.add("c1", process.pid)
        resolver = HostResolver([EngineApi(tmp_path / "nobody"), EngineApi(engine.path)], None)
        reference = await resolver.resolve("container", "c1")
        assert (reference.value, reference.started) == (str(process.pid), start_time(process.pid))
        with pytest.raises(BadRequestError, match=r"knows no container .\.\./x."):
            await resolver.resolve("container", "../x")
        container.is_running = False
        with pytest.raises(BadRequestError, match="container c1 does not run"):
            await resolver.resolve("container", "c1")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
        b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"Id": "x"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    ],
)
async def test_an_engine_that_makes_no_sense_is_one_error(tmp_path: Path, answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            await stream.send_all(answer)

    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(tmp_path / "engine.sock"))
    sock.listen(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        with pytest.raises(EngineError):
            await EngineApi(tmp_path / "engine.sock").inspect("x")
        nursery.cancel_scope.cancel()


def test_labels_of_others_declare_nothing() -> None:
    assert of_container({"app": "web", "mycelia.io/namespace": "shop"}) is None
