"""Enrols the labelled containers of one engine, and lets them go when they end.

Level-triggered: after each connection everything that runs is looked at, every `resync_s` what is not
enrolled or does not run any more; events only make it quick. Without the engine nothing is let go: the agent
sees by itself when a workload's processes end.
A container is taken by its id and by its first process with start time: after that process was found the
engine is asked again, so that a number that was used again is no workload.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Final

import trio

from node.agent import Agent, AttachRequest
from node.attachment import Reference, ReferenceKind
from node.enrolment.declaration import ORIGIN, Declaration, of_container, origin_of
from node.enrolment.engine_api import Container, EngineApi, Event
from node.errors import BadRequestError, EngineError
from node.processes import start_time
from telemetry.logging import get_logger
from transport.errors import MeshError

RESYNC_S: Final = 30.0
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 5.0
MAX_SHOWN: Final = 100
MAX_CHANGED: Final = 100  # beyond that everything is looked at

log = get_logger("node.containers")


class ContainerWatch:
    """One engine's. `problem` is empty while it is connected; `refused` tells why containers are left out."""

    def __init__(self, agent: Agent, engine: EngineApi, resync_s: float = RESYNC_S) -> None:
        self._agent = agent
        self._engine = engine
        self._resync_s = resync_s
        self.problem = "not connected yet"
        self.refused: dict[str, str] = {}
        self._changed: set[str] = set()  # containers of events that were not looked at yet
        self._woken = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        delay_s = BACKOFF_FIRST_S
        while True:
            problem = "the engine ended the stream of events"
            try:
                async with self._engine.events() as events:
                    delay_s = BACKOFF_FIRST_S
                    await self._follow(events)
            except EngineError as error:
                problem = error.text
            if problem != self.problem:
                log.info("engine_away", engine=str(self._engine.path), problem=problem)
            self.problem = problem
            await trio.sleep(delay_s * random.uniform(0.8, 1.2))
            delay_s = min(delay_s * 2, BACKOFF_LAST_S)

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        """Events are read in a task of their own, so that an end is seen while others are looked at."""
        failure: EngineError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_changed)
            try:
                await self._resync(is_first=True)
                if self.problem:
                    log.info("engine_connected", engine=str(self._engine.path))
                self.problem = ""
                async for event in events:
                    if event.is_end:
                        self._ended(event.id)
                    else:
                        self._changed.add(event.id)
                        self._woken.set()
            except EngineError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _look_at_changed(self) -> None:
        while True:
            with trio.move_on_after(self._resync_s) as idle:
                await self._woken.wait()
            self._woken = trio.Event()
            changed, self._changed = self._changed, set()
            if not idle.cancelled_caught and len(changed) < MAX_CHANGED:
                for identifier in sorted(changed):
                    await self._look_at(identifier)
                continue
            try:
                await self._resync(is_first=False)
            except EngineError as error:
                log.warning("resync_failed", engine=str(self._engine.path), problem=error.text)

    async def _resync(self, *, is_first: bool) -> None:
        """All that runs. Of what is enrolled already, events tell what changes: only after a time without
        them is it looked at one by one.
        """
        running = set(await self._engine.labelled())
        held = {
            keeper.attachment.origin.removeprefix(ORIGIN)
            for keeper, _ in self._agent.keepers()
            if keeper.attachment.origin.startswith(ORIGIN)
        }
        self.refused = {key: text for key, text in self.refused.items() if key in running}
        for identifier in sorted(running | held if is_first else running ^ held):
            await self._look_at(identifier)

    async def _look_at(self, identifier: str) -> None:
        """Enrols a container, or says why not."""
        try:
            found = await self._engine.inspect(identifier)
            if found is None:
                return  # another engine's, or removed: then its processes have ended, which the agent sees
            if not found.is_running:
                self._ended(identifier)
                return
            declaration = of_container(found.labels)
            if declaration is None:
                return
            await self._enrol(found, declaration)
        except EngineError as error:
            self._refuse(identifier, error.text)
        except MeshError as error:
            self._refuse(identifier, str(error))
        else:
            self.refused.pop(identifier, None)

    async def _enrol(self, container: Container, declaration: Declaration) -> None:
        origin = origin_of(container.id)
        self._agent.may_declare(origin)
        reference = await bound_to(self._engine, container)
        await self._agent.attach(
            AttachRequest(
                declaration.namespace,
                declaration.name,
                declaration.service_account,
                reference,
                registration=declaration.registration,
                origin=origin,
            )
        )
        is_bad = container.health in {"starting", "unhealthy"}
        self._agent.set_health(
            origin, f"the container's health check says {container.health}" if is_bad else ""
        )

    def _ended(self, identifier: str) -> None:
        self.refused.pop(identifier, None)
        self._agent.ended(origin_of(identifier))

    def _refuse(self, identifier: str, reason: str) -> None:
        if self.refused.get(identifier) != reason and len(self.refused) < MAX_SHOWN:
            self.refused[identifier] = reason
            log.warning("container_not_enrolled", container=identifier[:12], reason=reason)


async def bound_to(engine: EngineApi, container: Container) -> Reference:
    """The first process of a running container, with its start time. Raises EngineError, BadRequestError."""
    started = start_time(container.pid) if container.pid > 0 else 0
    again = await engine.inspect(container.id)
    if not started or again is None or not again.is_running or again.pid != container.pid:
        raise BadRequestError(
            f"container {container.name or container.id[:12]} does not run (any more)",
            next_step="start it first",
        )
    return Reference(ReferenceKind.PID, str(container.pid), started)
