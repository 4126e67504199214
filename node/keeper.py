"""Brings one attached workload to the state that is wished for it, and keeps it there.

A level-triggered loop: each turn looks at what is true and takes the next step towards the goal, so a step
that failed, or an agent that was killed between two steps, needs no special case. `next_step` is the pure
decision; the rest performs it.

Order of steps, and why:

* capture: rules first, then the ztunnel is asked, then its word is awaited. Between the first and the last,
  connections are refused: traffic fails closed, nothing leaves in plaintext that a policy might forbid. To
  keep that time short, rules are not put in place while no ztunnel is connected to ask.
* release: the control plane hears of it first and is given a grace to tell peers, who then send plaintext;
  then the ztunnel lets go; then the rules are removed.
* a namespace that is gone: the ztunnel is told at once.

Invariants: `is_captured` turns true only after a ztunnel took the workload behind rules in place, and false
only by release. A failure is kept as `problem` until the step succeeds, and repeated with a bounded backoff.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, assert_never

import trio

from node.attachment import Attachment, Reference, Registration
from node.faults import reach
from node.zds import ServedWorkload
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NetworkNamespace

log = get_logger("node.keeper")
Result = TypeVar("Result")


class Goal(enum.Enum):
    UNDECIDED = "undecided"  # no order yet: what is captured stays captured, the rest is left alone
    CAPTURED = "captured"
    RELEASED = "released"
    DETACHED = "detached"  # released, then forgotten
    GONE = "gone"  # the namespace no longer exists


class Step(enum.Enum):
    REST = "rest"
    AWAIT_ZTUNNEL = "await a ztunnel"
    INSTALL = "install rules"
    HAND_OVER = "hand over to the ztunnel"
    CONFIRM = "confirm capture"
    ANNOUNCE_RELEASE = "announce release"
    WITHDRAW = "withdraw from the ztunnel"
    REMOVE = "remove rules"
    END = "end"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known now. Rules of unknown state count as not installed and as not removed."""

    has_rules: bool
    has_no_rules: bool
    is_served: bool  # in the set that ztunnels are given
    is_handed_over: bool  # a ztunnel took it
    is_captured: bool
    has_ztunnel: bool


def next_step(goal: Goal, facts: Facts) -> Step:
    match goal:
        case Goal.UNDECIDED:
            return _towards_capture(facts) if facts.is_captured else Step.REST
        case Goal.CAPTURED:
            return _towards_capture(facts)
        case Goal.RELEASED | Goal.DETACHED:
            if facts.is_captured:
                return Step.ANNOUNCE_RELEASE
            if facts.is_served:
                return Step.WITHDRAW
            if not facts.has_no_rules:
                return Step.REMOVE
            return Step.END if goal is Goal.DETACHED else Step.REST
        case Goal.GONE:
            return Step.WITHDRAW if facts.is_served else Step.END
        case _ as never:
            assert_never(never)


def _towards_capture(facts: Facts) -> Step:
    if not facts.has_rules:
        # Captured before: its rules are mended at once, ztunnel or not. Fresh: not without one to serve it.
        is_promised = facts.is_captured or facts.has_ztunnel
        return Step.INSTALL if is_promised else Step.AWAIT_ZTUNNEL
    if not facts.is_handed_over:
        return Step.HAND_OVER if facts.has_ztunnel else Step.AWAIT_ZTUNNEL
    return Step.REST if facts.is_captured else Step.CONFIRM


class Rules(Protocol):
    """What a keeper needs of node/kernel.py; blocking."""

    def apply(self, namespace: NetworkNamespace) -> None: ...
    def is_in_place(self, namespace: NetworkNamespace) -> bool: ...
    def is_absent(self, namespace: NetworkNamespace) -> bool: ...
    def remove(self, namespace: NetworkNamespace) -> None: ...
    def addresses(self, namespace: NetworkNamespace) -> tuple[str, ...]: ...


class Ztunnels(Protocol):
    """What a keeper needs of node/zds.py."""

    @property
    def connections(self) -> int: ...
    def has(self, uid: str) -> bool: ...
    def want(self, workload: ServedWorkload) -> None: ...
    async def add(self, workload: ServedWorkload) -> None: ...
    async def delete(self, uid: str) -> None: ...


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    release_grace_s: float = 2.0
    check_interval_s: float = 30.0  # how often rules in place are looked at
    retry_first_s: float = 0.2
    retry_last_s: float = 15.0


class Keeper:
    """One workload's. Owns the namespace handle; closes it when `run` ends.

    `changed` is awaited after each change of `attachment` (it saves and reports), `noticed` is called after
    each step and when `problem` or `addresses` changed.
    """

    def __init__(
        self,
        attachment: Attachment,
        handle: NetworkNamespace,
        rules: Rules,
        ztunnels: Ztunnels,
        *,
        settings: KeeperSettings,
        changed: Callable[[Keeper], Awaitable[None]],
        noticed: Callable[[], None],
        threads: trio.CapacityLimiter,
    ) -> None:
        self.attachment = attachment
        self.addresses: tuple[str, ...] = ()
        self.problem = ""
        self.unhealthy = ""
        self.has_looked = False  # `addresses` is what is there
        self.goal = Goal.UNDECIDED
        self.has_ended = trio.Event()
        self._handle = handle
        self._rules = rules
        self._ztunnels = ztunnels
        self._settings = settings
        self._changed = changed
        self._noticed = noticed
        self._threads = threads
        self._has_rules = False
        self._has_no_rules = False
        # A captured workload was taken by a ztunnel, and the snapshot tells the next one.
        self._is_handed_over = attachment.is_captured
        self._grace_s = settings.release_grace_s
        self._woken = trio.Event()
        if attachment.is_captured:
            ztunnels.want(self._served())

    # --- told from outside; nothing here awaits ---

    def wish(self, goal: Goal, *, grace_s: float | None = None) -> None:
        """Changes the goal. A namespace that is gone stays gone, a detached workload is not captured
        again.
        """
        if self.goal is Goal.GONE or (self.goal is Goal.DETACHED and goal is not Goal.GONE):
            return
        if grace_s is not None:
            self._grace_s = grace_s
        if goal is not self.goal:
            log.info("goal", workload=self.attachment.full_name, goal=goal.value)
            self.goal = goal
            self.wake()

    def wake(self) -> None:
        """Look again: something that decides the next step may have changed."""
        self._woken.set()

    def register(self, registration: Registration | None) -> None:
        """From now on the control plane is told this of it; the caller saves."""
        self.attachment = replace(self.attachment, registration=registration)

    async def refer(self, reference: Reference) -> None:
        """From now on the namespace is found by this reference."""
        self.attachment = replace(self.attachment, reference=reference)
        await self._changed(self)

    def ztunnel_answered(self, error: MeshError | None) -> None:
        """A ztunnel's word about this workload: to a live request or in a snapshot."""
        if error is not None:
            self._set_problem(str(error))
        if self._is_handed_over != (error is None):
            self._is_handed_over = error is None
            self.wake()

    def duplicate_namespace(self) -> NetworkNamespace | None:
        return None if self._handle.is_closed else self._handle.duplicate()

    @property
    def is_ending(self) -> bool:
        return self.goal in {Goal.DETACHED, Goal.GONE}

    @property
    def is_settled(self) -> bool:
        """Nothing is left to do for the present goal."""
        return next_step(self.goal, self._facts()) is Step.REST

    # --- the loop ---

    async def run(self) -> None:
        """Until detached or gone. Cancellation leaves everything as it is: rules in place, ztunnel
        serving.
        """
        delay_s = self._settings.retry_first_s
        try:
            with self._handle:
                while True:
                    self._woken = trio.Event()
                    step = next_step(self.goal, self._facts())
                    if step is Step.END:
                        return
                    try:
                        if not self.addresses:
                            await self._read_addresses()
                        await self._perform(step)
                    except MeshError as error:
                        self._set_problem(str(error))
                        await self._sleep(delay_s)
                        delay_s = min(delay_s * 2, self._settings.retry_last_s)
                    else:
                        delay_s = self._settings.retry_first_s
                        self._noticed()
        finally:
            self.has_ended.set()

    def _facts(self) -> Facts:
        return Facts(
            has_rules=self._has_rules,
            has_no_rules=self._has_no_rules,
            is_served=self._ztunnels.has(self.attachment.uid),
            is_handed_over=self._is_handed_over,
            is_captured=self.attachment.is_captured,
            has_ztunnel=self._ztunnels.connections > 0,
        )

    async def _perform(self, step: Step) -> None:
        match step:
            case Step.REST | Step.AWAIT_ZTUNNEL:
                if await self._look():
                    is_rest = step is Step.REST
                    self._set_problem("" if is_rest else "no ztunnel is connected to the node agent")
                    await self._sleep(self._settings.check_interval_s)
            case Step.INSTALL:
                self._has_no_rules = False
                reach("rules: before")
                await self._in_thread(self._rules.apply)
                reach("rules: in place")
                self._has_rules = True
                log.info("rules_installed", workload=self.attachment.full_name)
            case Step.HAND_OVER:
                reach("hand over: before")
                await self._ztunnels.add(self._served())
                reach("hand over: taken")
                self._is_handed_over = True
            case Step.CONFIRM:
                await self._set_captured(is_captured=True)
            case Step.ANNOUNCE_RELEASE:
                await self._set_captured(is_captured=False)
                await self._grace()
            case Step.WITHDRAW:
                reach("withdraw: before")
                await self._ztunnels.delete(self.attachment.uid)
                reach("withdraw: gone")
                self._is_handed_over = False
            case Step.REMOVE:
                self._has_rules = False
                reach("removal: before")
                await self._in_thread(self._rules.remove)
                reach("removal: done")
                self._has_no_rules = True
                log.info("rules_removed", workload=self.attachment.full_name)
            case Step.END:
                pass
            case _ as never:
                assert_never(never)

    async def _look(self) -> bool:
        """Compares the namespace with what is believed of it; False when the belief was wrong."""
        await self._read_addresses()
        if self._has_rules and not await self._in_thread(self._rules.is_in_place):
            log.warning("rules_drifted", workload=self.attachment.full_name)
            self._has_rules = False
            return False
        if self._has_no_rules and not await self._in_thread(self._rules.is_absent):
            log.warning("rules_reappeared", workload=self.attachment.full_name)
            self._has_no_rules = False
            return False
        return True

    async def _read_addresses(self) -> None:
        addresses = await self._in_thread(self._rules.addresses)
        if addresses != self.addresses or not self.has_looked:
            self.addresses, self.has_looked = addresses, True
            self._noticed()

    async def _grace(self) -> None:
        """Waits for the grace, or until release is no longer the goal."""
        with trio.move_on_after(self._grace_s):
            while self.goal in {Goal.RELEASED, Goal.DETACHED}:
                self._woken = trio.Event()
                await self._woken.wait()

    async def _sleep(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._woken.wait()

    async def _in_thread(self, work: Callable[[NetworkNamespace], Result]) -> Result:
        """Not abandoned on cancellation: half-written rules would have no owner. Commands have deadlines."""
        return await trio.to_thread.run_sync(work, self._handle, limiter=self._threads)

    async def _set_captured(self, *, is_captured: bool) -> None:
        self.attachment = self.attachment.captured(is_captured=is_captured)
        log.info("captured" if is_captured else "released", workload=self.attachment.full_name)
        reach("captured: unsaved" if is_captured else "released: unsaved")
        await self._changed(self)
        reach("captured: saved" if is_captured else "released: saved")

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.warning("workload_problem", workload=self.attachment.full_name, problem=problem)
            self._noticed()

    def _served(self) -> ServedWorkload:
        kept = self.attachment
        return ServedWorkload(kept.uid, kept.name, kept.namespace, kept.service_account, self._handle)
