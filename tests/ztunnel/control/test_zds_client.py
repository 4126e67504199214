"""Every row of facts 10.7's reaction table, against a scripted agent over real SEQPACKET sockets."""

from __future__ import annotations

import array
import itertools
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dataplane.control.readiness import WORKLOAD_MANAGER, Readiness
from proto.istio import zds_pb2 as pb
from transport.netns import NetworkNamespace
from ztunnel.control.errors import ProxyNotStarted, ZdsViolated
from ztunnel.control.zds_client import ACK_OK, HELLO, PodInfo, ZdsClient, connector

SNAPSHOT_SENT = bytes.fromhex("1a00")
INFO = pb.WorkloadInfo(name="web", namespace="shop", service_account="sa")


@dataclass
class Place:
    """A place for workloads that only remembers what it is told."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)

    async def add(self, uid: str, info: PodInfo, namespace: NetworkNamespace) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(("add", uid, info))
        assert os.get_inheritable(namespace.fd) is False
        namespace.close()
        if uid in self.failures:
            self.pending.add(uid)
            raise ProxyNotStarted(self.failures[uid])

    def delete(self, uid: str) -> None:
        self.calls.append(("delete", uid))

    def forget_pending(self, uid: str) -> None:
        self.calls.append(("forget", uid))
        self.pending.discard(uid)

    def retain(self, uids: frozenset[str]) -> None:
        self.calls.append(("retain", uids))

    def forget_all_pending(self) -> None:
        self.calls.append(("forget_all",))
        self.pending.clear()

    @property
    def has_pending(self) -> bool:
        return bool(self.pending)


class Agent:
    """The scripted agent's end of one connection."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock

    async def send(self, data: bytes, *descriptors: int) -> None:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        await self.sock.sendmsg([data], rights)

    async def receive(self) -> bytes:
        return await self.sock.recv(4096)

    async def ask(self, data: bytes, *descriptors: int) -> str:
        """One message and the text of its Ack."""
        await self.send(data, *descriptors)
        answer = pb.WorkloadResponse.FromString(await self.receive())
        assert answer.WhichOneof("payload") == "ack"
        return answer.ack.error

    async def add(self, uid: str) -> str:
        with NetworkNamespace.current() as namespace:
            return await self.ask(add(uid), namespace.fd)


class Bench:
    """A client whose connections the test hands out."""

    def __init__(self) -> None:
        self.place = Place()
        self.readiness = Readiness(WORKLOAD_MANAGER)
        self.client = ZdsClient(self._connect, self.place, self.readiness, lambda: 0.5)
        self.connected_at: list[float] = []
        self.refusals = 0
        self.agents: list[Agent] = []
        self._agents, self._new_agents = trio.open_memory_channel[Agent](10)

    async def _connect(self) -> trio.socket.SocketType:
        await trio.lowlevel.checkpoint()
        self.connected_at.append(trio.current_time())
        if self.refusals:
            self.refusals -= 1
            raise FileNotFoundError(2, "No such file")
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.agents.append(Agent(theirs))
        self._agents.send_nowait(self.agents[-1])
        return ours

    async def agent(self) -> Agent:
        """The next connection, its hello taken."""
        agent = await self._new_agents.receive()
        assert await agent.receive() == HELLO == bytes.fromhex("0801")
        return agent

    def is_ready(self) -> bool:
        return self.readiness.is_ready


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    for agent in made.agents:
        agent.sock.close()


def add(uid: str, info: pb.WorkloadInfo | None = INFO) -> bytes:
    return pb.WorkloadRequest(add=pb.AddWorkload(uid=uid, workload_info=info)).SerializeToString()


def keep(uid: str) -> bytes:
    return pb.WorkloadRequest(keep=pb.KeepWorkload(uid=uid)).SerializeToString()


def delete(uid: str) -> bytes:
    message = pb.WorkloadRequest()
    getattr(message, "del").uid = uid
    return message.SerializeToString()


def test_fixed_byte_strings() -> None:
    assert bytes.fromhex("0801") == HELLO
    assert bytes.fromhex("0a00") == ACK_OK
    assert pb.WorkloadRequest(snapshot_sent=pb.SnapshotSent()).SerializeToString() == SNAPSHOT_SENT


async def test_snapshot_then_live_changes(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    with NetworkNamespace.current() as namespace:
        await agent.send(add("u1"), namespace.fd)
    assert await agent.receive() == ACK_OK
    assert await agent.ask(keep("u2")) == ""
    assert not bench.is_ready()
    assert await agent.ask(SNAPSHOT_SENT) == ""
    assert bench.is_ready()
    assert await agent.add("u3") == ""
    assert await agent.ask(delete("u1")) == ""
    assert await agent.ask(delete("unknown")) == ""
    assert bench.place.calls == [
        ("add", "u1", PodInfo("web", "shop", "sa")),
        ("retain", frozenset({"u1", "u2"})),
        ("add", "u3", PodInfo("web", "shop", "sa")),
        ("delete", "u1"),
        ("delete", "unknown"),
    ]


async def test_failed_add_is_told_and_keeps_the_proxy_unready_until_it_starts(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench.place.failures["u1"] = "port 15001 is in use"
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    assert await agent.add("u1") == "port 15001 is in use"
    assert await agent.ask(SNAPSHOT_SENT) == ""
    assert not bench.is_ready()
    bench.place.pending.clear()
    bench.client.on_pending_changed()
    assert bench.is_ready()
    assert await agent.add("u1") == "port 15001 is in use"
    assert not bench.is_ready()
    assert await agent.ask(delete("u1")) == ""
    bench.place.pending.clear()
    bench.client.on_pending_changed()
    assert bench.is_ready()


async def test_delete_before_the_snapshot_only_takes_it_out_of_the_snapshot(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    await agent.ask(keep("u1"))
    await agent.ask(keep("u2"))
    await agent.ask(delete("u1"))
    await agent.ask(SNAPSHOT_SENT)
    assert bench.place.calls == [("forget", "u1"), ("retain", frozenset({"u2"}))]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([SNAPSHOT_SENT, keep("u1")], "Keep"),
        ([SNAPSHOT_SENT, SNAPSHOT_SENT], "SnapshotSent"),
    ],
)
async def test_broken_order_is_fatal(
    bench: Bench, autojump_clock: MockClock, script: list[bytes], reason: str
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ZdsViolated, match=reason)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.client.run)
            agent = await bench.agent()
            answers = [await agent.ask(message) for message in script]
            assert answers[:-1] == [""]
            assert reason in answers[-1]


async def test_add_without_workload_info_is_answered_and_fatal(
    bench: Bench, autojump_clock: MockClock
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ZdsViolated, match="workload_info")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.client.run)
            agent = await bench.agent()
            with NetworkNamespace.current() as namespace:
                assert "workload_info" in await agent.ask(add("u1", None), namespace.fd)
    assert bench.place.calls == [("forget_all",)]


@pytest.mark.parametrize(
    ("data", "descriptors", "reason"),
    [
        (b"\xff\xff\xff", 0, "decoded"),
        (add("u" * 1100), 0, "longer than 1024"),
        (pb.WorkloadRequest().SerializeToString() + b"\x10\x01", 0, "no payload"),
        (add("u1"), 0, "exactly one descriptor, got 0"),
        (add("u1"), 2, "exactly one descriptor, got 2"),
        (keep("u1"), 1, "must not carry a descriptor"),
        (SNAPSHOT_SENT, 1, "must not carry a descriptor"),
        (delete("u1"), 1, "must not carry a descriptor"),
    ],
)
async def test_packets_that_cannot_be_understood_end_the_connection_only(
    bench: Bench,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    data: bytes,
    descriptors: int,
    reason: str,
) -> None:
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    with NetworkNamespace.current() as namespace:
        before = open_descriptors()
        assert reason in await agent.ask(data, *[namespace.fd] * descriptors)
        assert await agent.receive() == b""
        again = await bench.agent()
        assert (
            open_descriptors() == before + 1
        )  # the new connection's own two, less the client's end of the old
    assert await again.ask(SNAPSHOT_SENT) == ""
    assert bench.is_ready()


async def test_a_descriptor_that_is_no_network_namespace_is_refused(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    with Path(os.devnull).open("rb") as file:
        assert "not a network namespace" in await agent.ask(add("u1"), file.fileno())
    assert await agent.ask(SNAPSHOT_SENT) == ""


async def test_disconnect_keeps_workloads_and_takes_readiness(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    await agent.add("u1")
    await agent.ask(SNAPSHOT_SENT)
    assert bench.is_ready()
    agent.sock.close()
    again = await bench.agent()
    assert not bench.is_ready()
    assert [call[0] for call in bench.place.calls] == ["add", "retain", "forget_all"]
    await again.ask(keep("u1"))
    await again.ask(SNAPSHOT_SENT)
    assert bench.is_ready()
    assert bench.place.calls[-1] == ("retain", frozenset({"u1"}))


def waits(times: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]


async def test_reconnects_with_backoff(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench.refusals = 13
    nursery.start_soon(bench.client.run)
    agent = await bench.agent()
    doubling = [0.02 * 2**n for n in range(10)]
    assert waits(bench.connected_at) == [round(min(wait, 15.0), 3) for wait in doubling] + [15.0] * 3
    await agent.ask(SNAPSHOT_SENT)
    agent.sock.close()
    await bench.agent()
    assert waits(bench.connected_at)[-1] == 0.02  # a connection that worked resets the backoff


async def test_agent_that_hangs_up_at_once_is_not_hammered(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(bench.client.run)
    for _ in range(5):
        (await bench.agent()).sock.close()
    await bench.agent()
    assert waits(bench.connected_at) == [0.02, 0.04, 0.08, 0.16, 0.32]


async def test_hello_that_cannot_be_written_has_its_own_backoff(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send = type(ours).send

    async def connect() -> trio.socket.SocketType:
        await trio.lowlevel.checkpoint()
        return ours

    async def flaky(sock: trio.socket.SocketType, data: bytes, flags: int = 0) -> int:
        tried.append(trio.current_time())
        if len(tried) <= 4:
            raise OSError(105, "No buffer space available")
        return await send(sock, data, flags)

    monkeypatch.setattr(type(ours), "send", flaky)
    monkeypatch.setattr(bench.client, "_connect", connect)
    with theirs:
        nursery.start_soon(bench.client.run)
        assert await theirs.recv(100) == HELLO
        assert waits(tried) == [0.005, 0.01, 0.02, 0.04]
        nursery.cancel_scope.cancel()


async def test_real_socket_path(
    bench: Bench, nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = str(tmp_path / "ztunnel.sock")
    client = ZdsClient(connector(path), bench.place, bench.readiness, lambda: 0.5)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        await listener.bind(path)
        listener.listen()
        nursery.start_soon(client.run)
        accepted, _ = await listener.accept()
        with accepted:
            assert await accepted.recv(100) == HELLO
    nursery.cancel_scope.cancel()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_cancellation_leaves_no_descriptor_behind(bench: Bench, autojump_clock: MockClock) -> None:
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.client.run)
        agent = await bench.agent()
        await agent.add("u1")
        agent.sock.close()
        nursery.cancel_scope.cancel()
    assert open_descriptors() == before
