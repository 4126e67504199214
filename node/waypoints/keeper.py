"""Runs one waypoint and keeps it running: place, process, readiness, restart, drain.

A level-triggered loop, as node/keeper.py: each turn compares what is ordered with what is there. A process
that is there but was started for something else (another order, place or setting of the agent) is drained and
then replaced, never joined by a second one. One that ended is started again with backoff.

Invariants: at most one control process of a waypoint; a removed waypoint leaves neither process nor folder;
cancellation leaves the process running, and the next agent takes it over.
"""

from __future__ import annotations

import contextlib
import enum
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from node.errors import WaypointProcessError
from node.waypoints.order import DIGEST, METRICS_PORT, READINESS_PORT, WaypointOrder
from node.waypoints.probe import why_not_ready
from node.waypoints.process import Process, check_address, kill_all, start
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NetworkNamespace

STABLE_S = 30.0
KILL_MARGIN_S = 5.0
GONE_LOOK_S = 0.05
HERE = "on this node: attach the workload's network namespace, or name an address of the node"
THERE = "in the network namespace in which the workload is attached"

log = get_logger("node.waypoints")


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Plan:
    """How an order is to be run now."""

    order: WaypointOrder
    environment: dict[str, str]

    @property
    def digest(self) -> str:
        return self.environment[DIGEST]


@dataclass(frozen=True, slots=True)
class KeeperTimes:
    drain_s: float = 5.0  # what the process takes for its drain; killed some seconds later
    first_look_s: float = 0.2
    look_s: float = 1.0
    retry_first_s: float = 0.5
    retry_last_s: float = 30.0


class Surroundings(Protocol):
    """What a keeper asks; see node/waypoints/supervisor.py. `is_own`: in the node's own namespace."""

    argv: tuple[str, ...]

    def plan(self, order: WaypointOrder, *, is_own: bool) -> Plan: ...
    def namespace_of(self, order: WaypointOrder) -> tuple[NetworkNamespace, bool]: ...
    def check(self, order: WaypointOrder, *, is_own: bool) -> None: ...


class WaypointKeeper:
    """One waypoint's. Inert until `run`; `noticed` is called after each change of what is told about it."""

    def __init__(
        self,
        order: WaypointOrder,
        folder: Path,
        surroundings: Surroundings,
        times: KeeperTimes,
        *,
        noticed: Callable[[], None],
    ) -> None:
        self.order = order
        self.state, self.problem = State.STARTING, ""
        self.process: Process | None = None
        self._folder = folder
        self._surroundings = surroundings
        self._times = times
        self._noticed = noticed
        self.is_wanted = True
        self._woken = trio.Event()
        self._backoff_s = times.retry_first_s
        self._is_starting = False
        self._started_at = float("-inf")  # that of a process that was taken over is long ago

    # --- told from outside; nothing here awaits ---

    def wish(self, order: WaypointOrder | None) -> None:
        """Another order, or none: the waypoint is removed."""
        self.is_wanted = order is not None
        self.order = order or self.order
        self._woken.set()

    def wake(self) -> None:
        """Look again: where the workload is may have changed."""
        self._woken.set()

    def take_over(self, process: Process) -> None:
        """Before `run`: a process that another agent started."""
        self.process = process
        log.info("waypoint_taken_over", waypoint=self.order.key, pid=process.pid)

    @property
    def has_addresses(self) -> bool:
        """Its process may be listening at them."""
        return self._is_starting or self.process is not None

    @property
    def metrics_port(self) -> int:
        return int(self.process.environment.get(METRICS_PORT, "0")) if self.process is not None else 0

    # --- the loop ---

    async def run(self) -> None:
        """Until the waypoint is removed. Cancellation leaves its process running."""
        try:
            async with trio.open_nursery() as nursery:
                if self.process is not None:
                    nursery.start_soon(self._watch, self.process)
                while True:
                    self._woken = trio.Event()
                    try:
                        if not await self._turn(nursery):
                            break
                    except MeshError as error:
                        await self._failed(str(error))
                nursery.cancel_scope.cancel()
        finally:
            if self.process is not None:
                self.process.close()

    async def _turn(self, nursery: trio.Nursery) -> bool:
        """One step; False when the waypoint is gone. Raises MeshError when it cannot be run as ordered."""
        if not self.is_wanted:
            await self._end()
            if not self.is_wanted:  # it may have been ordered again meanwhile
                shutil.rmtree(self._folder, ignore_errors=True)
            return self.is_wanted
        if self.process is not None and self.process.has_ended:
            raise WaypointProcessError(self._bury(self.process), next_step="look at the node agent's log")
        namespace, is_own = self._surroundings.namespace_of(self.order)
        with namespace:
            plan = self._surroundings.plan(self.order, is_own=is_own)
            if self.process is None:
                self._check(plan, namespace, is_own=is_own)
                self._is_starting = True  # the addresses are taken from here on; nothing was awaited since
                try:
                    self.process = await self._start(plan, namespace)
                finally:
                    self._is_starting = False
                nursery.start_soon(self._watch, self.process)
                self._noticed()
            elif not self._fits(self.process, plan, namespace):
                log.info("waypoint_replaced", waypoint=self.order.key)
                await self._end()
                return True
            await self._look(self.process, plan, namespace)
        return True

    def _check(self, plan: Plan, namespace: NetworkNamespace, *, is_own: bool) -> None:
        self._surroundings.check(plan.order, is_own=is_own)
        for address in plan.order.addresses:
            try:
                check_address(address, namespace)
            except WaypointProcessError as error:
                where = HERE if is_own else THERE
                raise WaypointProcessError(f"{error.text.removesuffix(' here')} {where}") from error

    @staticmethod
    def _fits(process: Process, plan: Plan, namespace: NetworkNamespace) -> bool:
        return process.environment.get(DIGEST) == plan.digest and process.namespace == namespace.identity

    async def _start(self, plan: Plan, namespace: NetworkNamespace) -> Process:
        self._tell(State.STARTING, "")
        (self._folder / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not abandoned on cancellation: a process that nobody knows of yet would have no owner.
        process = await trio.to_thread.run_sync(start, self._surroundings.argv, plan.environment, namespace)
        self._started_at = trio.current_time()
        log.info("waypoint_started", waypoint=self.order.key, pid=process.pid)
        return process

    async def _watch(self, process: Process) -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # it was seen to end before this task was
            await process.watch()
        if self.process is process:
            self._woken.set()

    async def _look(self, process: Process, plan: Plan, namespace: NetworkNamespace) -> None:
        """Asks whether it is ready, and rests until the next look or until something happens."""
        port = int(process.environment[READINESS_PORT])
        why_not = await why_not_ready(namespace, plan.order.addresses[0], port)
        if process.has_ended:
            return
        self._tell(State.STARTING if why_not else State.READY, why_not)
        with trio.move_on_after(self._times.first_look_s if why_not else self._times.look_s):
            await self._woken.wait()

    async def _failed(self, problem: str) -> None:
        self._tell(State.FAILED, problem)
        with trio.move_on_after(self._backoff_s):
            await self._woken.wait()
        self._backoff_s = min(self._backoff_s * 2, self._times.retry_last_s)

    def _bury(self, process: Process) -> str:
        """Lets go of a process that ended by itself; its workers finish what is open."""
        how = process.reap()
        process.close()
        self.process = None
        if trio.current_time() - self._started_at >= STABLE_S:
            self._backoff_s = self._times.retry_first_s
        return f"its process {process.pid} is gone: {how}"

    # --- the end ---

    async def _end(self) -> None:
        """Drains and ends what runs, workers included. A new order meanwhile waits for the end."""
        self._tell(State.STOPPING, "")
        process = self.process
        if process is not None:
            process.send(signal.SIGTERM)
            with trio.move_on_after(self._times.drain_s + KILL_MARGIN_S):
                await process.ended.wait()
        with trio.move_on_after(KILL_MARGIN_S):
            # Workers are nobody's children here: there is nothing but looking.
            while await trio.to_thread.run_sync(kill_all, self._folder):  # noqa: ASYNC110
                await trio.sleep(GONE_LOOK_S)
        if process is not None:
            if not process.has_ended:
                raise WaypointProcessError(f"process {process.pid} does not end")
            self.process = None
            log.info("waypoint_stopped", waypoint=self.order.key, pid=process.pid, how=process.reap())
            process.close()
        self._noticed()

    def _tell(self, state: State, problem: str) -> None:
        if (state, problem) == (self.state, self.problem):
            return
        if state is not self.state or state is State.FAILED:
            write = log.warning if state is State.FAILED else log.info
            write("waypoint_state", waypoint=self.order.key, state=state.value, problem=problem)
        self.state, self.problem = state, problem
        self._noticed()
