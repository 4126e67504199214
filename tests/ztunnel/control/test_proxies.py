"""When a workload is up, pending or gone, over one worker and several."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proto.mycelia import worker_pb2 as pb
from tests.dataplane.control.fakes import RecordingPool, namespace
from transport.netns import NetworkNamespace
from ztunnel.control.errors import ProxyNotStarted
from ztunnel.control.proxies import RETRY_S, START_TIMEOUT_S, ProxyRegistry
from ztunnel.control.zds_client import PodInfo

INFO = PodInfo("web", "shop", "sa")
ADD, DEL = "add_workload", "del_workload"


class Bench:
    def __init__(self, *workers: int) -> None:
        self.pool = RecordingPool(*workers)
        self.changes = 0
        self.registry = ProxyRegistry(self._count)
        self.registry.attach(self.pool)

    def _count(self) -> None:
        self.changes += 1

    def answer(self, worker: int, uid: str = "u", error: str = "") -> None:
        self.registry.on_result(worker, pb.WorkloadResult(uid=uid, error=error))

    async def add(self, handle: NetworkNamespace | None = None, uid: str = "u", info: PodInfo = INFO) -> str:
        """Error text, empty where it started."""
        try:
            await self.registry.add(uid, info, handle or namespace())
        except ProxyNotStarted as error:
            return error.text
        return ""

    async def started(self, uid: str = "u") -> None:
        """Add a workload that every worker takes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.add, None, uid)
            await wait_all_tasks_blocked()
            for worker in sorted(self.pool.workers):
                self.answer(worker, uid)
        self.pool.taken()


def state_of(bench: Bench, uid: str = "u") -> object:
    return bench.registry.states()[uid]["state"]


async def test_up_when_every_worker_listens() -> None:
    bench = Bench(0, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.add)
        await wait_all_tasks_blocked()
        assert sorted(bench.pool.taken()) == [(0, ADD, "u"), (1, ADD, "u")]
        bench.answer(0)
        await wait_all_tasks_blocked()
        assert state_of(bench) == "Pending"
        bench.answer(1)
    assert (state_of(bench), bench.registry.active, bench.registry.pending) == ("Up", 1, 0)
    assert (bench.registry.started, bench.registry.stopped) == (1, 0)


async def test_failure_is_told_and_retried_until_it_works(autojump_clock: MockClock) -> None:
    bench = Bench(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.registry.run)
        nursery.start_soon(fail_later, bench)
        assert await bench.add() == "port in use"
        assert bench.registry.pending == 1
        bench.pool.taken()
        await trio.sleep(RETRY_S + 0.1)
        assert bench.pool.taken() == [(0, ADD, "u")]
        await trio.sleep(RETRY_S)  # still unanswered: not asked twice
        assert bench.pool.taken() == []
        bench.answer(0)
        assert bench.registry.has_pending is False
        nursery.cancel_scope.cancel()
    assert bench.registry.started == 1
    assert bench.changes == 2


async def fail_later(bench: Bench) -> None:
    await wait_all_tasks_blocked()
    bench.answer(0, error="port in use")


async def test_silent_worker_is_pending_before_the_agents_deadline(autojump_clock: MockClock) -> None:
    bench = Bench(0)
    begun = trio.current_time()
    assert "has not opened the listeners" in await bench.add()
    assert trio.current_time() - begun == pytest.approx(START_TIMEOUT_S)
    bench.answer(0)
    assert state_of(bench) == "Up"


async def test_no_worker_is_pending_and_replayed_to_the_next(autojump_clock: MockClock) -> None:
    bench = Bench()
    assert await bench.add() != ""
    replayed = list(bench.registry.replay(0))
    close_all(replayed)
    assert [message.add_workload.uid for message, _ in replayed] == ["u"]
    bench.pool.workers = {0}
    bench.answer(0)
    assert state_of(bench) == "Up"


async def test_same_workload_in_the_same_namespace_is_no_news() -> None:
    bench = Bench(0)
    await bench.started()
    assert await bench.add() == ""
    assert bench.pool.taken() == []


async def test_pending_workload_that_is_added_again_is_tried_at_once(autojump_clock: MockClock) -> None:
    bench = Bench(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_later, bench)
        assert await bench.add() == "port in use"
    bench.pool.taken()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.add)
        await wait_all_tasks_blocked()
        assert bench.pool.taken() == [(0, ADD, "u")]
        bench.answer(0)
    assert state_of(bench) == "Up"


async def test_other_namespace_replaces_the_proxy_at_once() -> None:
    bench = Bench(0)
    await bench.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.add, namespace(7))
        await wait_all_tasks_blocked()
        assert bench.pool.taken() == [(None, DEL, "u"), (0, ADD, "u")]
        bench.answer(0)
    assert (bench.registry.started, bench.registry.stopped) == (2, 1)


async def test_answer_to_an_overtaken_add_is_not_taken_for_the_later_one(autojump_clock: MockClock) -> None:
    bench = Bench(0)
    assert await bench.add() != ""  # unanswered
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.registry.run)
        proxy_again = [False]

        async def add_again() -> None:
            await bench.add()
            proxy_again[0] = True

        nursery.start_soon(add_again)
        await wait_all_tasks_blocked()
        bench.answer(0)
        await wait_all_tasks_blocked()
        assert state_of(bench) == "Up"
        nursery.cancel_scope.cancel()


async def test_worker_loss_makes_it_pending_until_the_next_worker_has_it() -> None:
    bench = Bench(0)
    await bench.started()
    bench.pool.workers = set()
    told = bench.changes
    bench.registry.on_lost(0)
    assert state_of(bench) == "Pending"
    assert bench.changes > told
    close_all(list(bench.registry.replay(0)))
    bench.pool.workers = {0}
    assert state_of(bench) == "Pending"
    bench.answer(0)
    assert state_of(bench) == "Up"
    assert bench.registry.started == 1


async def test_second_worker_that_cannot_listen_keeps_it_pending_and_is_retried_alone(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(0, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.add)
        await wait_all_tasks_blocked()
        bench.answer(0)
        bench.answer(1, error="no memory")
        await wait_all_tasks_blocked()
        bench.pool.taken()
        nursery.start_soon(bench.registry.run)
        await trio.sleep(RETRY_S + 0.1)
        assert bench.pool.taken() == [(1, ADD, "u")]
        nursery.cancel_scope.cancel()


async def test_delete_and_retain() -> None:
    bench = Bench(0)
    for uid in ("a", "b", "c"):
        await bench.started(uid)
    bench.registry.delete("a")
    bench.registry.delete("unknown")
    assert bench.pool.taken() == [(None, DEL, "a")]
    bench.registry.retain(frozenset({"c", "unknown"}))
    assert bench.pool.taken() == [(None, DEL, "b")]
    assert list(bench.registry.states()) == ["c"]
    bench.answer(0, "a")  # a late answer is nobody's


async def test_forgetting_pending_spares_what_has_run(autojump_clock: MockClock) -> None:
    bench = Bench(0)
    await bench.started("up")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.add, None, "new")
        await wait_all_tasks_blocked()
        bench.answer(0, "new", "port in use")
    bench.registry.on_lost(0)  # `up` is pending now too, and must survive
    bench.registry.forget_pending("up")
    bench.registry.forget_all_pending()
    assert list(bench.registry.states()) == ["up"]


async def test_every_handle_is_closed_in_the_end() -> None:
    bench = Bench(0)
    handles = [namespace(number) for number in (1, 2, 3)]
    for handle in handles:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.add, handle, f"u{handle.identity[1]}")
            await wait_all_tasks_blocked()
            bench.answer(0, f"u{handle.identity[1]}")
    same = namespace(1)
    assert await bench.add(same, "u1") == ""
    assert same.is_closed
    bench.registry.delete("u2")
    bench.registry.close()
    assert all(handle.is_closed for handle in handles)


def close_all(replayed: list[tuple[pb.ToWorker, int]]) -> None:
    for _, descriptor in replayed:
        os.close(descriptor)
