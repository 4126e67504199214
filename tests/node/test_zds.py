"""ZDS server against scripted ztunnels on real sockets. Byte strings are those of ztunnel-facts 10.7."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from node.errors import NoZtunnelError, SocketPathError, ZdsProtocolError, ZtunnelRefusedError
from node.unix_socket import unix_listener
from node.zds import ServedWorkload, ZdsServer, delete_request, snapshot_sent_request
from tests.kit.scripted_ztunnel import GOOD_ACK, HELLO, SNAPSHOT_SENT, ScriptedZtunnel
from transport.errors import MeshError
from transport.netns import NetworkNamespace

BAD_ACK = b"\x0a\x07\x0a\x05nope!"
ADD_WEB = b"\x0a\x20\x0a\x08uid-1234\x12\x14\x0a\x03web\x12\x07default\x1a\x04site"


@dataclass
class Stage:
    server: ZdsServer
    path: Path
    answers: list[tuple[str, MeshError | None]]
    namespace: NetworkNamespace
    ztunnels: list[ScriptedZtunnel] = field(default_factory=list)

    def workload(self, uid: str = "uid-1234", name: str = "web") -> ServedWorkload:
        return ServedWorkload(uid, name, "default", "site", self.namespace)

    async def raw(self) -> ScriptedZtunnel:
        ztunnel = await ScriptedZtunnel.connect(self.path)
        self.ztunnels.append(ztunnel)
        return ztunnel

    async def ztunnel(self) -> ScriptedZtunnel:
        """Connected, hello said, an empty snapshot taken."""
        before = self.server.connections
        ztunnel = await self.raw()
        await ztunnel.answer(HELLO)
        await ztunnel.expect(SNAPSHOT_SENT)
        assert self.server.connections == before + 1
        return ztunnel

    async def wait_connections(self, count: int) -> None:
        with trio.fail_after(5):
            while self.server.connections != count:
                await self.server.wait_connection_change()


@asynccontextmanager
async def staged(tmp_path: Path) -> AsyncIterator[Stage]:
    answers: list[tuple[str, MeshError | None]] = []
    server = ZdsServer(lambda uid, error: answers.append((uid, error)))
    path = tmp_path / "zds.sock"
    with unix_listener(path, socket.SOCK_SEQPACKET) as listener, NetworkNamespace.current() as namespace:
        stage = Stage(server, path, answers, namespace)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listener)
            try:
                yield stage
            finally:
                for ztunnel in stage.ztunnels:
                    ztunnel.close()
                nursery.cancel_scope.cancel()


def test_fixed_byte_strings() -> None:
    assert (HELLO.hex(), GOOD_ACK.hex(), SNAPSHOT_SENT.hex()) == ("0801", "0a00", "1a00")
    assert snapshot_sent_request() == SNAPSHOT_SENT
    assert delete_request("uid-1234") == b"\x12\x0a\x12\x08uid-1234"
    with NetworkNamespace.current() as namespace:
        assert ServedWorkload("uid-1234", "web", "default", "site", namespace).to_request() == ADD_WEB


async def test_hello_then_snapshot_then_live_add_and_delete(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.add, stage.workload())
            await ztunnel.expect(ADD_WEB)
        assert stage.answers == [("uid-1234", None)]
        (fd,) = ztunnel.fds
        status = os.fstat(fd)
        assert (status.st_dev, status.st_ino) == stage.namespace.identity
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.delete, "uid-1234")
            await ztunnel.expect(b"\x12\x0a\x12\x08uid-1234")
        assert len(ztunnel.fds) == 1
        assert not stage.server.has("uid-1234")


async def test_a_snapshot_holds_every_wanted_workload_before_its_end(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.server.want(stage.workload("a"))
        stage.server.want(stage.workload("b"))
        ztunnel = await stage.raw()
        await ztunnel.answer(HELLO)
        for uid in ("a", "b"):
            await ztunnel.expect(stage.workload(uid).to_request())
        await ztunnel.expect(SNAPSHOT_SENT)
        assert [uid for uid, _ in stage.answers] == ["a", "b"]
        assert len(ztunnel.fds) == 2


async def test_one_request_at_a_time(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.add, stage.workload("a"))
            nursery.start_soon(stage.server.add, stage.workload("b"))
            first = await ztunnel.receive()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                os.read(ztunnel.sock.fileno(), 1)
            await ztunnel.answer()
            second = await ztunnel.receive()
            await ztunnel.answer()
        assert {first, second} == {stage.workload(uid).to_request() for uid in ("a", "b")}


async def test_a_refusal_is_told_and_the_workload_stays_in_later_snapshots(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        with pytest.RaisesGroup(pytest.RaisesExc(ZtunnelRefusedError, match="nope!")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.server.add, stage.workload())
                await ztunnel.expect(ADD_WEB, BAD_ACK)
        assert isinstance(stage.answers[0][1], ZtunnelRefusedError)
        successor = await stage.raw()
        await successor.answer(HELLO)
        await successor.expect(ADD_WEB)


async def test_without_a_ztunnel_an_add_fails_at_once_but_is_remembered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        with pytest.raises(NoZtunnelError):
            await stage.server.add(stage.workload())
        ztunnel = await stage.raw()
        await ztunnel.answer(HELLO)
        await ztunnel.expect(ADD_WEB)


async def test_adds_go_to_the_newest_ztunnel_deletes_to_all(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        old = await stage.ztunnel()
        new = await stage.ztunnel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.add, stage.workload())
            await new.expect(ADD_WEB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.delete, "uid-1234")
            await old.expect(delete_request("uid-1234"))
            await new.expect(delete_request("uid-1234"))


async def test_when_the_newest_leaves_adds_go_to_the_one_before(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        old = await stage.ztunnel()
        new = await stage.ztunnel()
        new.sock.close()
        await stage.wait_connections(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.add, stage.workload())
            await old.expect(ADD_WEB)


async def test_a_workload_deleted_during_a_snapshot_is_not_added_after_its_delete(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.server.want(stage.workload("a"))
        stage.server.want(stage.workload("b"))
        ztunnel = await stage.raw()
        await ztunnel.answer(HELLO)
        assert await ztunnel.receive() == stage.workload("a").to_request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.delete, "b")
            await trio.testing.wait_all_tasks_blocked()
            await ztunnel.answer()
            await ztunnel.expect(SNAPSHOT_SENT)
            await ztunnel.expect(delete_request("b"))


@pytest.mark.parametrize(
    "hello",
    [b"\x08\x00", b"\x08\x02", b"\xff\xff", b"\x0a\x00"],
    ids=["version 0", "version 2", "no protobuf", "an answer"],
)
async def test_a_bad_hello_closes_the_connection_and_nothing_else(tmp_path: Path, hello: bytes) -> None:
    async with staged(tmp_path) as stage:
        good = await stage.ztunnel()
        bad = await stage.raw()
        await bad.answer(hello)
        await bad.expect_end()
        assert stage.server.connections == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.add, stage.workload())
            await good.expect(ADD_WEB)


@pytest.mark.parametrize("packet", [GOOD_ACK, b"\xff"], ids=["an answer", "rubbish"])
async def test_data_while_idle_is_a_protocol_error(tmp_path: Path, packet: bytes) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        await ztunnel.answer(packet)
        await ztunnel.expect_end()
        await stage.wait_connections(0)


@pytest.mark.parametrize("answer", [b"\xff", b"\x12\x00"], ids=["rubbish", "no acknowledgement"])
async def test_an_answer_that_is_none_fails_the_add_and_drops_the_connection(
    tmp_path: Path, answer: bytes
) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        with pytest.RaisesGroup(NoZtunnelError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.server.add, stage.workload())
                await ztunnel.expect(ADD_WEB, answer)
        await ztunnel.expect_end()
        await stage.wait_connections(0)


async def test_a_ztunnel_that_dies_fails_what_is_queued_for_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        errors: list[MeshError] = []

        async def add(uid: str) -> None:
            try:
                await stage.server.add(stage.workload(uid))
            except MeshError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, "a")
            nursery.start_soon(add, "b")
            await ztunnel.receive()
            ztunnel.sock.close()
        assert [type(error) for error in errors] == [NoZtunnelError, NoZtunnelError]
        await stage.wait_connections(0)


async def test_a_delete_survives_a_ztunnel_that_dies(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ztunnel = await stage.ztunnel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.delete, "a")
            await ztunnel.receive()
            ztunnel.sock.close()


class TestDeadlines:
    """On a clock that jumps when nothing else is to be done. The peer is a socket pair: no real waiting."""

    async def test_no_hello(self, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
        async with staged(tmp_path) as stage:
            ztunnel = await stage.raw()
            assert await ztunnel.sock.recv(100) == b""

    async def test_no_answer(self, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
        autojump_clock.autojump_threshold = 0.05
        async with staged(tmp_path) as stage:
            ztunnel = await stage.ztunnel()
            with pytest.raises(NoZtunnelError):
                await stage.server.add(stage.workload())
            await stage.wait_connections(0)
            assert ztunnel.sock.fileno() >= 0

    async def test_five_connections_a_second(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        autojump_clock.autojump_threshold = 0.05
        async with staged(tmp_path) as stage:
            start = trio.current_time()
            for _ in range(6):
                await stage.ztunnel()
            assert trio.current_time() - start >= 1.0


async def test_more_ztunnels_than_the_limit_are_turned_away(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with staged(tmp_path) as stage:
        for _ in range(8):
            await stage.ztunnel()
        extra = await stage.raw()
        await extra.expect_end()
        assert stage.server.connections == 8


def expect_refusal(reason: str) -> pytest.RaisesExc[SocketPathError]:
    return pytest.raises(SocketPathError, match=reason)


class TestSocketFile:
    def test_only_its_owner_may_connect(self, tmp_path: Path) -> None:
        path = tmp_path / "sub" / "zds.sock"
        with unix_listener(path, socket.SOCK_SEQPACKET):
            assert path.stat().st_mode & 0o777 == 0o600
        assert not path.exists()

    def test_a_dead_owners_file_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "zds.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(path))
        with unix_listener(path, socket.SOCK_SEQPACKET):
            pass

    def test_a_living_owners_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "zds.sock"
        with unix_listener(path, socket.SOCK_SEQPACKET):
            with expect_refusal("another process listens"), unix_listener(path, socket.SOCK_SEQPACKET):
                pass
            assert path.exists()

    def test_any_other_file_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "zds.sock"
        path.write_text("precious")
        with expect_refusal("not a socket"), unix_listener(path, socket.SOCK_SEQPACKET):
            pass
        assert path.read_text() == "precious"

    def test_a_path_too_long_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 120)
        with expect_refusal("longer than a unix socket allows"), unix_listener(path, socket.SOCK_SEQPACKET):
            pass


def test_protocol_errors_are_the_peers_fault() -> None:
    assert ZdsProtocolError.blame.value == "remote"
