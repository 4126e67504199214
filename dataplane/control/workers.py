"""The data workers of one ztunnel: started, restarted with backoff, asked, drained.

A worker that ends takes only its own connections with it; its successor gets everything again
(`replay`), in the order of the contract: Configure, credentials, resources, workloads, Synced, and from
then on each change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import trio

from dataplane.control.worker_link import Command, WorkerLink
from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger
from transport.errors import MeshError

MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 15.0
# A worker that lived this long was not failing at start: its successor comes at once.
_STABLE_S = 60.0
_ANSWER_TIMEOUT_S = 2.0
_DRAIN_MARGIN_S = 2.0


class WorkerEvents(Protocol):
    """What the rest of the control process is told. All of it is quick and does not raise."""

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]:
        """Everything a new worker must know, with descriptors it takes over."""

    def on_up(self, index: int) -> None: ...
    def on_lost(self, index: int) -> None: ...
    def on_message(self, index: int, message: pb.ToControl) -> None: ...


@dataclass(slots=True, eq=False)
class _Question:
    """One request to all workers and the parts of their answers."""

    waiting: set[int]
    answers: dict[int, list[pb.ToControl]] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)
    is_answered: trio.Event = field(default_factory=trio.Event)

    def finish(self, index: int) -> None:
        self.waiting.discard(index)
        if not self.waiting:
            self.is_answered.set()


class WorkerPool:
    """Built inert; `run` starts `count` workers and never returns by itself."""

    def __init__(self, count: int, events: WorkerEvents, command: Command) -> None:
        self._count = count
        self._events = events
        self._command = command
        self._links: dict[int, WorkerLink] = {}
        self._questions: dict[int, _Question] = {}
        self._ids = itertools.count(1)
        self._draining = trio.Event()
        self._left = trio.Event()
        self._log = get_logger("workers")

    @property
    def count(self) -> int:
        return self._count

    @property
    def live(self) -> frozenset[int]:
        """The workers that have said hello."""
        return frozenset(self._links)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(link.pid for link in self._links.values())

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for index in range(self._count):
                nursery.start_soon(self._supervise, index)

    async def _supervise(self, index: int) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            started = trio.current_time()
            link = WorkerLink(index, self._on_message, self._command)
            try:
                await link.run(self._on_hello)
            except MeshError as error:
                if not self._draining.is_set():
                    self._log.error("worker_lost", worker=index, error=error.text, restart_s=backoff_s)
            finally:
                self._on_end(index, link)
            if self._draining.is_set():
                return
            if trio.current_time() - started >= _STABLE_S:
                backoff_s = MIN_BACKOFF_S
            await trio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    def _on_hello(self, link: WorkerLink) -> None:
        for message, descriptor in self._events.replay(link.index):
            link.send(message, descriptor)
        self._links[link.index] = link
        self._log.info("worker_up", worker=link.index, worker_pid=link.pid)
        self._events.on_up(link.index)

    def _on_end(self, index: int, link: WorkerLink) -> None:
        if self._links.get(index) is link:
            del self._links[index]
            for question in self._questions.values():
                question.finish(index)
            self._events.on_lost(index)
        self._note_drained()

    # --- talking to them ---

    def broadcast(self, message: pb.ToWorker) -> None:
        for link in self._links.values():
            link.send(message)

    def send(self, index: int, message: pb.ToWorker, descriptor: int | None = None) -> None:
        """Takes the descriptor over. The worker must be live."""
        self._links[index].send(message, descriptor)

    def _on_message(self, link: WorkerLink, message: pb.ToControl) -> None:
        kind = message.WhichOneof("message")
        if kind == "stats":
            self._take_answer(message.stats.id, link.index, message, is_last=not message.stats.has_more)
        elif kind == "dump":
            self._take_answer(message.dump.id, link.index, message, is_last=True)
        elif kind == "drained":
            link.is_drained = True
            self._note_drained()
        else:
            self._events.on_message(link.index, message)

    def _take_answer(self, number: int, index: int, message: pb.ToControl, *, is_last: bool) -> None:
        question = self._questions.get(number)
        if question is None or index not in question.waiting:
            return
        question.answers.setdefault(index, []).append(message)
        if is_last:
            question.complete.add(index)
            question.finish(index)

    async def _ask(self, make: Callable[[int], pb.ToWorker]) -> Mapping[int, list[pb.ToControl]]:
        """Complete answers by worker; a worker that is too slow or goes away is left out."""
        number = next(self._ids)
        question = _Question(set(self._links))
        self._questions[number] = question
        try:
            self.broadcast(make(number))
            if question.waiting:
                with trio.move_on_after(_ANSWER_TIMEOUT_S):
                    await question.is_answered.wait()
        finally:
            del self._questions[number]
        return {index: question.answers[index] for index in question.complete}

    async def stats(self) -> Mapping[int, list[pb.Stats]]:
        answers = await self._ask(lambda number: pb.ToWorker(stats_request=pb.StatsRequest(id=number)))
        return {index: [part.stats for part in parts] for index, parts in answers.items()}

    async def dumps(self) -> Mapping[int, str]:
        """JSON text by worker."""
        answers = await self._ask(lambda number: pb.ToWorker(dump_request=pb.DumpRequest(id=number)))
        return {index: parts[0].dump.json for index, parts in answers.items()}

    # --- the end ---

    def _note_drained(self) -> None:
        if all(link.is_drained for link in self._links.values()):
            self._left.set()

    async def drain(self, deadline_s: float) -> None:
        """Ask all workers to finish; returns when they have, or soon after the deadline. No restarts
        any more.
        """
        self._draining.set()
        self._left = trio.Event()
        self.broadcast(pb.ToWorker(drain=pb.Drain(deadline_s=deadline_s)))
        self._note_drained()
        with trio.move_on_after(deadline_s + _DRAIN_MARGIN_S):
            await self._left.wait()
