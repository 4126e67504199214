"""The steps of capture and release: the pure decision as a table, and the loop on a mock clock."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from node.attachment import Attachment, Reference, ReferenceKind
from node.errors import NoZtunnelError, RuleCommandError, ZtunnelRefusedError
from node.keeper import Facts, Goal, Keeper, KeeperSettings, Step, next_step
from node.zds import ServedWorkload
from transport.errors import MeshError
from transport.netns import NetworkNamespace

NOTHING = Facts(
    has_rules=False,
    has_no_rules=False,
    is_served=False,
    is_handed_over=False,
    is_captured=False,
    has_ztunnel=True,
)
CAPTURED = Facts(
    has_rules=True,
    has_no_rules=False,
    is_served=True,
    is_handed_over=True,
    is_captured=True,
    has_ztunnel=True,
)


def after(step: Step, facts: Facts) -> Facts:
    """What is true when a step succeeded."""
    match step:
        case Step.INSTALL:
            return replace(facts, has_rules=True, has_no_rules=False)
        case Step.HAND_OVER:
            return replace(facts, is_served=True, is_handed_over=True)
        case Step.CONFIRM:
            return replace(facts, is_captured=True)
        case Step.ANNOUNCE_RELEASE:
            return replace(facts, is_captured=False)
        case Step.WITHDRAW:
            return replace(facts, is_served=False, is_handed_over=False)
        case Step.REMOVE:
            return replace(facts, has_rules=False, has_no_rules=True)
        case _:
            return facts


def story(goal: Goal, facts: Facts) -> tuple[list[Step], Facts]:
    steps: list[Step] = []
    while len(steps) < 10:
        step = next_step(goal, facts)
        steps.append(step)
        if step in {Step.REST, Step.END, Step.AWAIT_ZTUNNEL}:
            return steps, facts
        facts = after(step, facts)
    raise AssertionError(f"no end: {steps}")


def test_capture_installs_rules_before_the_ztunnel_is_asked_and_confirms_last() -> None:
    assert story(Goal.CAPTURED, NOTHING)[0] == [Step.INSTALL, Step.HAND_OVER, Step.CONFIRM, Step.REST]


def test_a_fresh_capture_waits_for_a_ztunnel_before_traffic_is_redirected() -> None:
    assert story(Goal.CAPTURED, replace(NOTHING, has_ztunnel=False))[0] == [Step.AWAIT_ZTUNNEL]


def test_a_promised_capture_gets_its_rules_back_even_without_a_ztunnel() -> None:
    facts = replace(CAPTURED, has_rules=False, has_ztunnel=False)
    assert story(Goal.CAPTURED, facts)[0] == [Step.INSTALL, Step.REST]


def test_a_refused_workload_is_handed_over_again_and_stays_captured() -> None:
    assert story(Goal.CAPTURED, replace(CAPTURED, is_handed_over=False))[0] == [Step.HAND_OVER, Step.REST]


def test_release_announces_then_withdraws_then_removes() -> None:
    expected = [Step.ANNOUNCE_RELEASE, Step.WITHDRAW, Step.REMOVE]
    assert story(Goal.RELEASED, CAPTURED)[0] == [*expected, Step.REST]
    assert story(Goal.DETACHED, CAPTURED)[0] == [*expected, Step.END]


def test_a_namespace_that_is_gone_is_withdrawn_at_once() -> None:
    assert story(Goal.GONE, CAPTURED)[0] == [Step.WITHDRAW, Step.END]


def test_without_an_order_what_is_captured_stays_and_the_rest_is_left_alone() -> None:
    assert story(Goal.UNDECIDED, NOTHING)[0] == [Step.REST]
    assert story(Goal.UNDECIDED, replace(CAPTURED, has_rules=False))[0] == [Step.INSTALL, Step.REST]


ALL_FACTS = [Facts(*values) for values in itertools.product([False, True], repeat=6)]


@pytest.mark.parametrize("goal", list(Goal))
def test_every_state_leads_to_the_goal(goal: Goal) -> None:
    for facts in ALL_FACTS:
        if facts.has_rules and facts.has_no_rules:
            continue
        steps, end = story(goal, facts)
        if steps[-1] is Step.AWAIT_ZTUNNEL:
            assert not facts.has_ztunnel
        elif goal is Goal.CAPTURED:
            assert end.has_rules
            assert end.is_handed_over
            assert end.is_captured
        elif goal in {Goal.RELEASED, Goal.DETACHED}:
            assert end.has_no_rules
            assert not end.is_served
            assert not end.is_captured


# --- the loop ---


@dataclass
class FakeRules:
    events: list[str]
    is_there: bool = False
    failures: list[MeshError] = field(default_factory=list)

    def apply(self, namespace: NetworkNamespace) -> None:
        self.events.append("apply")
        if self.failures:
            raise self.failures.pop(0)
        self.is_there = True

    def is_in_place(self, namespace: NetworkNamespace) -> bool:
        return self.is_there

    def is_absent(self, namespace: NetworkNamespace) -> bool:
        return not self.is_there

    def remove(self, namespace: NetworkNamespace) -> None:
        self.events.append("remove")
        self.is_there = False

    def addresses(self, namespace: NetworkNamespace) -> tuple[str, ...]:
        return ("10.77.1.10",)


@dataclass
class FakeZtunnels:
    events: list[str]
    connections: int = 1
    wanted: set[str] = field(default_factory=set)
    failures: list[MeshError] = field(default_factory=list)
    release_add: trio.Event | None = None

    def has(self, uid: str) -> bool:
        return uid in self.wanted

    def want(self, workload: ServedWorkload) -> None:
        self.wanted.add(workload.uid)

    async def add(self, workload: ServedWorkload) -> None:
        self.events.append("add")
        self.wanted.add(workload.uid)
        if self.release_add is not None:
            await self.release_add.wait()
        if self.failures:
            raise self.failures.pop(0)
        if not self.connections:
            raise NoZtunnelError("none")

    async def delete(self, uid: str) -> None:
        self.events.append("delete")
        self.wanted.discard(uid)


@dataclass
class Stage:
    keeper: Keeper
    rules: FakeRules
    ztunnels: FakeZtunnels
    events: list[str]
    changed: trio.Event = field(default_factory=trio.Event)

    def announce(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(1000):
            while not condition():
                await self.changed.wait()


ATTACHMENT = Attachment("uid", "default", "web", "site", Reference(ReferenceKind.NAME, "web"), (4, 1))


@asynccontextmanager
async def staged(attachment: Attachment = ATTACHMENT, **ztunnels: object) -> AsyncIterator[Stage]:
    events: list[str] = []
    rules = FakeRules(events)
    fake_ztunnels = FakeZtunnels(events, **ztunnels)  # type: ignore[arg-type]

    async def changed(keeper: Keeper) -> None:
        events.append("captured" if keeper.attachment.is_captured else "released")
        stage.announce()

    keeper = Keeper(
        attachment,
        NetworkNamespace.current(),
        rules,
        fake_ztunnels,
        settings=KeeperSettings(),
        changed=changed,
        noticed=lambda: stage.announce(),  # noqa: PLW0108 - made below
        threads=trio.CapacityLimiter(1),
    )
    stage = Stage(keeper, rules, fake_ztunnels, events)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        yield stage
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    # Rules are looked at in worker threads, during which the clock must not jump.
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


async def test_capture_and_release_in_order(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        assert stage.events == ["apply", "add", "captured"]
        stage.keeper.wish(Goal.RELEASED)
        await stage.until(lambda: stage.keeper.is_settled)
        assert stage.events[3:] == ["released", "delete", "remove"]


async def test_release_waits_for_the_grace_between_report_and_withdrawal(
    clock: MockClock,
) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.keeper.wish(Goal.RELEASED)
        await stage.until(lambda: "released" in stage.events)
        start = trio.current_time()
        await stage.until(lambda: "delete" in stage.events)
        assert trio.current_time() - start >= 1.9


async def test_a_release_taken_back_during_the_grace_touches_nothing(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.keeper.wish(Goal.RELEASED)
        await stage.until(lambda: "released" in stage.events)
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        assert stage.events == ["apply", "add", "captured", "released", "captured"]


async def test_a_refusing_ztunnel_is_asked_again_and_the_reason_is_shown(
    clock: MockClock,
) -> None:
    async with staged() as stage:
        stage.ztunnels.failures = [ZtunnelRefusedError("listener: address in use")] * 3
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: "address in use" in stage.keeper.problem)
        assert not stage.keeper.attachment.is_captured
        assert stage.rules.is_there, "traffic fails closed meanwhile"
        await stage.until(lambda: stage.keeper.is_settled and not stage.keeper.problem)
        assert stage.events == ["apply", *["add"] * 4, "captured"]


async def test_failing_rules_are_tried_again_with_growing_pauses(clock: MockClock) -> None:
    async with staged() as stage:
        stage.rules.failures = [RuleCommandError("no")] * 8
        start = trio.current_time()
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.attachment.is_captured)
        assert stage.events.count("apply") == 9
        assert 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4 + 12.8 + 15 <= trio.current_time() - start < 60


async def test_without_a_ztunnel_a_working_connection_is_not_broken(clock: MockClock) -> None:
    async with staged(connections=0) as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: "no ztunnel" in stage.keeper.problem)
        assert stage.events == []
        stage.ztunnels.connections = 1
        stage.keeper.wake()
        await stage.until(lambda: stage.keeper.is_settled)
        assert stage.events == ["apply", "add", "captured"]


async def test_drift_is_mended_at_the_next_look(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.rules.is_there = False
        await stage.until(lambda: stage.events.count("apply") == 2)
        await stage.until(lambda: stage.keeper.is_settled)
        assert stage.events == ["apply", "add", "captured", "apply"]


async def test_rules_that_reappear_after_release_are_removed_again(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.RELEASED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.rules.is_there = True
        await stage.until(lambda: stage.events == ["remove", "remove"])


async def test_a_restored_capture_is_promised_to_the_next_ztunnel_and_checked(
    clock: MockClock,
) -> None:
    async with staged(replace(ATTACHMENT, is_captured=True), connections=0) as stage:
        assert stage.ztunnels.wanted == {"uid"}
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: "apply" in stage.events)
        assert stage.keeper.attachment.is_captured


async def test_a_bad_word_in_a_snapshot_is_shown_and_handed_over_again(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.keeper.ztunnel_answered(ZtunnelRefusedError("cannot listen"))
        assert "cannot listen" in stage.keeper.problem
        await stage.until(lambda: stage.keeper.is_settled and not stage.keeper.problem)
        assert stage.events == ["apply", "add", "captured", "add"]


async def test_gone_wins_over_everything_else(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.keeper.is_settled)
        stage.keeper.wish(Goal.GONE)
        stage.keeper.wish(Goal.CAPTURED)
        await stage.keeper.has_ended.wait()
        assert stage.events == ["apply", "add", "captured", "delete"]


async def test_detached_is_final(clock: MockClock) -> None:
    async with staged() as stage:
        stage.keeper.wish(Goal.DETACHED)
        stage.keeper.wish(Goal.CAPTURED)
        await stage.keeper.has_ended.wait()
        assert stage.events == ["remove"]


async def test_cancellation_leaves_rules_and_workload_as_they_are(clock: MockClock) -> None:
    async with staged() as stage:
        stage.ztunnels.release_add = trio.Event()
        stage.keeper.wish(Goal.CAPTURED)
        await stage.until(lambda: stage.rules.is_there)
        await wait_all_tasks_blocked()
    assert stage.events == ["apply", "add"]
    assert stage.rules.is_there
    assert stage.ztunnels.wanted == {"uid"}
