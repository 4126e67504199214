"""Supervision with real processes: a scripted worker speaks the real framing over the real descriptor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from dataplane.control.worker_link import WorkerLink
from dataplane.control.workers import WorkerPool
from proto.mycelia import worker_pb2 as pb

ROOT = Path(__file__).parents[3]

PRELUDE = """
import os, socket, sys
from proto.mycelia import worker_pb2 as pb
from dataplane.ipc import MessageReader, encode
sock = socket.socket(fileno=int(sys.argv[1]))
reader = MessageReader(pb.ToWorker)
def say(**message): sock.sendall(encode(pb.ToControl(**message)))
def log(event): say(log_line=pb.LogLine(level="info", event=event))
def orders():
    while True:
        data, descriptors, _, _ = socket.recv_fds(sock, 65536, 8)
        if not data:
            return
        yield from reader.feed(data, descriptors)
say(hello=pb.Hello(pid=os.getpid()))
"""
ECHO = (
    PRELUDE
    + """
for message, descriptor in orders():
    kind = message.WhichOneof("message")
    if kind == "add_workload":
        say(workload_result=pb.WorkloadResult(uid=f"{message.add_workload.uid}:{os.fstat(descriptor).st_ino}"))
    elif kind == "stats_request":
        number = message.stats_request.id
        say(stats=pb.Stats(id=number, traffic=[pb.Stats.Series(labels=["a"], opened=1)], has_more=True))
        say(stats=pb.Stats(id=number + 1000))
        say(stats=pb.Stats(id=number, traffic=[pb.Stats.Series(labels=["b"], opened=2)]))
    elif kind == "dump_request":
        say(dump=pb.Dump(id=message.dump_request.id, json='{"pid": 1}'))
    elif kind == "drain":
        say(drained=pb.Drained())
        break
    elif kind == "set_log_level" and message.set_log_level.level == "crash":
        os._exit(3)
    elif kind == "set_log_level" and message.set_log_level.level == "garbage":
        sock.sendall(b"\\xff" * 100)
    elif kind == "resources":
        log(f"resources {len(message.resources.upserts)}")
    else:
        log(kind)
"""
)


@dataclass
class Events:
    """Collects what the pool reports; replays Configure, one workload and Synced."""

    log: list[str] = field(default_factory=list)
    happened: trio.Event = field(default_factory=trio.Event)

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]:
        yield pb.ToWorker(configure=pb.Configure(settings_json="{}")), None
        yield pb.ToWorker(add_workload=pb.AddWorkload(uid="u")), os.open("/dev/null", os.O_RDONLY)
        yield pb.ToWorker(synced=pb.Synced()), None

    def _note(self, text: str) -> None:
        self.log.append(text)
        self.happened.set()
        self.happened = trio.Event()

    def on_up(self, index: int) -> None:
        self._note(f"up {index}")

    def on_lost(self, index: int) -> None:
        self._note(f"lost {index}")

    def on_message(self, index: int, message: pb.ToControl) -> None:
        kind = message.WhichOneof("message")
        if kind == "log_line":
            self._note(message.log_line.event)
        elif kind == "workload_result":
            self._note(message.workload_result.uid)

    async def until(self, text: str, count: int = 1) -> None:
        with trio.fail_after(30):
            while self.log.count(text) < count:
                await self.happened.wait()


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def pool_of(events: Events, text: str = ECHO, count: int = 1) -> WorkerPool:
    return WorkerPool(count, events, lambda fd: (sys.executable, "-c", text, str(fd)))


def level(text: str) -> pb.ToWorker:
    return pb.ToWorker(set_log_level=pb.SetLogLevel(level=text))


async def test_a_new_worker_gets_everything_in_order_with_its_descriptor(nursery: trio.Nursery) -> None:
    events = Events()
    pool = pool_of(events)
    nursery.start_soon(pool.run)
    await events.until("synced")
    inode = Path("/dev/null").stat().st_ino
    assert events.log == ["up 0", "configure", f"u:{inode}", "synced"]
    assert len(pool.pids) == 1
    for _ in range(3):
        pool.broadcast(
            pb.ToWorker(resources=pb.Resources(upserts=[pb.Resources.Resource(value=b"x" * 50_000)]))
        )
    await events.until("resources 1", 3)


async def test_answers_are_gathered_from_all_workers(nursery: trio.Nursery) -> None:
    events = Events()
    pool = pool_of(events, count=2)
    nursery.start_soon(pool.run)
    await events.until("synced", 2)
    stats = await pool.stats()
    assert {index: [s.opened for part in parts for s in part.traffic] for index, parts in stats.items()} == {
        0: [1, 2],
        1: [1, 2],
    }
    assert await pool.dumps() == {0: '{"pid": 1}', 1: '{"pid": 1}'}


async def test_a_crashed_worker_is_replaced_and_told_everything_again(nursery: trio.Nursery) -> None:
    events = Events()
    pool = pool_of(events)
    nursery.start_soon(pool.run)
    await events.until("synced")
    first = pool.pids
    pool.broadcast(level("crash"))
    await events.until("synced", 2)
    assert pool.pids != first
    assert [entry for entry in events.log if entry[:2] in ("up", "lo")] == ["up 0", "lost 0", "up 0"]


async def test_a_worker_that_talks_nonsense_is_replaced(nursery: trio.Nursery) -> None:
    events = Events()
    pool = pool_of(events)
    nursery.start_soon(pool.run)
    await events.until("synced")
    pool.broadcast(level("garbage"))
    await events.until("synced", 2)


async def test_questions_end_when_the_worker_does(nursery: trio.Nursery) -> None:
    events = Events()
    deaf = PRELUDE + "for message, _ in orders(): message.HasField('stats_request') and os._exit(1)"
    pool = pool_of(events, deaf)
    nursery.start_soon(pool.run)
    await events.until("up 0")
    assert await pool.stats() == {}


async def test_drain_waits_for_all_workers_and_restarts_none(nursery: trio.Nursery) -> None:
    events = Events()
    pool = pool_of(events, count=2)
    nursery.start_soon(pool.run)
    await events.until("synced", 2)
    with trio.fail_after(10):
        await pool.drain(60)
    assert sum(entry.startswith("up") for entry in events.log) == 2


async def test_workers_outlive_a_crash_of_the_control_process_until_they_notice() -> None:
    """The end of the channel is what they see: no signal reaches them first."""
    events = Events()
    lingering = PRELUDE + "for _ in orders(): pass\nos.write(2, b'')\n"
    link = WorkerLink(0, lambda *_: None, lambda fd: (sys.executable, "-c", lingering, str(fd)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run, lambda _: events._note("hello"))
        await events.until("hello")
        assert os.getsid(link.pid) == link.pid
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(link.pid, 0)


async def test_sending_to_an_ended_worker_closes_the_descriptor() -> None:
    link = WorkerLink(0, lambda *_: None, lambda fd: ("/nonexistent/program", str(fd)))
    with pytest.raises(Exception, match="worker 0"):
        await link.run(lambda _: None)
    descriptor = os.open("/dev/null", os.O_RDONLY)
    link.send(pb.ToWorker(add_workload=pb.AddWorkload(uid="u")), descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
