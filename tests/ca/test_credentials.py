"""Renewal in virtual time: ztunnel-facts 6.4 line by line, and clocks that are stepped."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ca.credentials import (
    FETCH_TIMEOUT_S,
    MAX_BACKOFF_S,
    REEVALUATE_S,
    CredentialFailed,
    CredentialManager,
    CredentialReady,
    Priority,
    Update,
)
from ca.errors import CredentialForgotten, CredentialUnavailable, TooManyIdentities
from transport.grpc.status import GrpcError, GrpcStatus

from .harness import DAY, WEB, ScriptedCa, SteppedClock, identity

DAY_S, HOUR_S = 86400.0, 3600.0
HALF_LIFE_S = (DAY_S + 120) / 2 - 120  # not_before is two minutes before issue
DOWN = GrpcError(GrpcStatus.UNAVAILABLE, "the CA is away")


@dataclass
class Scene:
    manager: CredentialManager
    ca: ScriptedCa
    clock: SteppedClock
    updates: list[tuple[float, Update]] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return ["ready" if isinstance(update, CredentialReady) else "failed" for _, update in self.updates]


@asynccontextmanager
async def managing(
    *,
    lifetime: dt.timedelta = DAY,
    max_in_flight: int = 8,
    is_running: bool = True,
    max_identities: int = 1000,
) -> AsyncIterator[Scene]:
    clock = SteppedClock()
    ca = ScriptedCa(clock, lifetime=lifetime)
    updates: list[tuple[float, Update]] = []
    manager = CredentialManager(
        ca.fetch,
        on_update=lambda update: updates.append((trio.current_time(), update)),
        now=clock,
        max_in_flight=max_in_flight,
        max_identities=max_identities,
        randomness=random.Random(7),
    )
    async with trio.open_nursery() as nursery:
        if is_running:
            await nursery.start(manager.run)
        yield Scene(manager, ca, clock, updates)
        nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_the_first_request_waits_for_the_first_outcome(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        assert scene.manager.request(WEB, Priority.WARMUP) is None
        assert scene.manager.states() == {WEB: "Initializing"}
        credential = await scene.manager.get(WEB)
        assert credential.identity == WEB
        assert scene.kinds() == ["ready"]
        assert scene.manager.request(WEB, Priority.REAL_TIME) == CredentialReady(credential)
        assert scene.manager.current(WEB) is credential
        assert scene.manager.credentials() == [credential]
        assert scene.manager.states() == {WEB: "Available"}
        assert len(scene.ca.asked) == 1


async def test_renewal_is_at_half_life_each_time(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        first = await scene.manager.get(WEB)
        await trio.sleep(HALF_LIFE_S - 1)
        assert len(scene.ca.asked) == 1
        await trio.sleep(2)
        await settle()
        assert len(scene.ca.asked) == 2
        second = scene.manager.current(WEB)
        assert second is not None
        assert second is not first
        await trio.sleep(10 * DAY_S)
        await settle()
        gaps = [after - before for before, after in zip(scene.ca.times, scene.ca.times[1:], strict=False)]
        assert gaps == [pytest.approx(HALF_LIFE_S, abs=2)] * len(gaps)
        assert scene.kinds() == ["ready"] * len(scene.ca.asked)


async def test_failures_back_off_exponentially_and_a_success_resets(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.error = DOWN
        with pytest.raises(CredentialUnavailable, match="the CA is away"):
            await scene.manager.get(WEB)
        await trio.sleep(1500)
        gaps = [after - before for before, after in zip(scene.ca.times, scene.ca.times[1:], strict=False)]
        for number, gap in enumerate(gaps):
            ideal = min(2.0**number, MAX_BACKOFF_S)
            assert 0.8 * ideal - 0.01 <= gap <= min(1.2 * ideal, MAX_BACKOFF_S) + 0.01
        assert len(gaps) >= 14
        assert len(set(gaps)) > len(gaps) / 2
        scene.ca.error = None
        await trio.sleep(MAX_BACKOFF_S)
        assert scene.kinds()[-1] == "ready"
        scene.ca.error = DOWN
        failed_from = len(scene.ca.asked)
        await trio.sleep(HALF_LIFE_S + 60)
        assert scene.ca.times[failed_from + 1] - scene.ca.times[failed_from] <= 1.2


async def test_without_a_certificate_requests_fail_at_once_with_the_last_error(
    autojump_clock: MockClock,
) -> None:
    async with managing() as scene:
        scene.ca.error = DOWN
        with pytest.raises(CredentialUnavailable):
            await scene.manager.get(WEB)
        asked, began = len(scene.ca.asked), trio.current_time()
        outcome = scene.manager.request(WEB, Priority.REAL_TIME)
        assert isinstance(outcome, CredentialFailed)
        assert "the CA is away" in outcome.error.text
        with pytest.raises(CredentialUnavailable):
            await scene.manager.get(WEB)
        assert (len(scene.ca.asked), trio.current_time()) == (asked, began)
        assert scene.manager.states()[WEB] == "Unavailable: gRPC UNAVAILABLE: the CA is away"
        scene.ca.error = None
        await trio.sleep(5)
        assert (await scene.manager.get(WEB)).identity == WEB


async def test_the_ca_away_for_longer_than_half_life_is_not_noticed(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        first = await scene.manager.get(WEB)
        scene.ca.error = DOWN
        await trio.sleep(DAY_S - 60)
        assert scene.manager.current(WEB) is first
        assert scene.kinds() == ["ready"]
        assert scene.manager.states() == {WEB: "Available"}
        scene.ca.error = None
        await trio.sleep(60)
        await settle()
        assert scene.kinds() == ["ready", "ready"]


async def test_the_ca_away_for_longer_than_the_lifetime_ends_in_a_failure_and_recovers(
    autojump_clock: MockClock,
) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.ca.error = DOWN
        await trio.sleep(DAY_S + 1)
        await settle()
        assert scene.kinds() == ["ready", "failed"]
        told_at, _ = scene.updates[-1]
        assert told_at == pytest.approx(DAY_S, abs=2)
        assert scene.manager.current(WEB) is None
        assert isinstance(scene.manager.request(WEB, Priority.REAL_TIME), CredentialFailed)
        scene.ca.error = None
        await trio.sleep(MAX_BACKOFF_S + 1)
        assert scene.kinds()[-1] == "ready"
        assert scene.manager.current(WEB) is not None


async def test_a_fetch_that_never_ends_is_given_up_and_frees_its_place(autojump_clock: MockClock) -> None:
    async with managing(max_in_flight=1) as scene:
        scene.ca.hang = trio.Event()
        scene.manager.request(WEB, Priority.REAL_TIME)
        scene.manager.request(identity(2), Priority.REAL_TIME)
        await trio.sleep(FETCH_TIMEOUT_S + 1)
        await settle()
        assert [who for who, _ in scene.ca.asked[:2]] == [WEB, identity(2)]
        assert scene.kinds() == ["failed"]


async def test_an_unexpected_exception_is_a_failure_of_one_identity(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.error = ZeroDivisionError()
        with pytest.raises(CredentialUnavailable, match="ZeroDivisionError"):
            await scene.manager.get(WEB)
        scene.ca.error = None
        assert (await scene.manager.get(identity(2))).identity == identity(2)


async def test_at_most_eight_requests_are_in_flight(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.hang = trio.Event()
        for number in range(50):
            scene.manager.request(identity(number), Priority.WARMUP)
        await settle()
        assert (scene.ca.in_flight, len(scene.ca.asked)) == (8, 8)
        scene.ca.hang.set()
        await settle()
        assert len(scene.ca.asked) == 50
        assert scene.ca.most_in_flight == 8


async def test_priorities_then_due_time_decide_the_order(autojump_clock: MockClock) -> None:
    async with managing(max_in_flight=1, is_running=False) as scene:
        scene.manager.request(identity(1), Priority.BACKGROUND)
        scene.manager.request(identity(2), Priority.WARMUP)
        scene.manager.request(identity(3), Priority.REAL_TIME)
        scene.manager.request(identity(4), Priority.WARMUP)
        scene.manager.request(identity(5), Priority.BACKGROUND)
        scene.manager.request(identity(6), Priority.REAL_TIME)
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.manager.run)
            await settle()
            nursery.cancel_scope.cancel()
        assert [who for who, _ in scene.ca.asked] == [identity(number) for number in (3, 6, 2, 4, 1, 5)]


async def test_a_waiting_connection_raises_the_priority_of_its_identity(autojump_clock: MockClock) -> None:
    async with managing(max_in_flight=1) as scene:
        scene.ca.hang = trio.Event()
        for number in range(5):
            scene.manager.request(identity(number), Priority.WARMUP)
        await settle()
        assert scene.manager.request(identity(4), Priority.REAL_TIME) is None
        scene.ca.hang.set()
        await settle()
        assert [who for who, _ in scene.ca.asked] == [identity(number) for number in (0, 4, 1, 2, 3)]


async def test_many_requests_for_one_identity_are_one_fetch(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        got: list[object] = []

        async def want() -> None:
            got.append(await scene.manager.get(WEB))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(want)
        assert len(got) == 20
        assert len(scene.ca.asked) == 1


async def test_a_forgotten_identity_is_not_renewed(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.manager.forget(WEB)
        scene.manager.forget(WEB)
        assert scene.manager.current(WEB) is None
        await trio.sleep(3 * DAY_S)
        assert len(scene.ca.asked) == 1
        assert scene.manager.states() == {}


async def test_an_answer_for_a_forgotten_identity_is_thrown_away(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.hang = trio.Event()
        scene.manager.request(WEB, Priority.WARMUP)
        await settle()
        scene.manager.forget(WEB)
        scene.ca.hang.set()
        await settle()
        assert scene.updates == []
        assert scene.manager.current(WEB) is None


async def test_forget_and_want_again_while_in_flight_fetches_anew(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.hang = first_hang = trio.Event()
        scene.manager.request(WEB, Priority.WARMUP)
        await settle()
        scene.manager.forget(WEB)
        scene.ca.hang = None
        assert scene.manager.request(WEB, Priority.WARMUP) is None
        await settle()
        assert scene.kinds() == ["ready"]
        mine = scene.manager.current(WEB)
        first_hang.set()
        await settle()
        assert scene.kinds() == ["ready"]
        assert scene.manager.current(WEB) is mine


async def test_who_waits_for_a_forgotten_identity_is_told(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.hang = trio.Event()
        caught: list[BaseException] = []

        async def want() -> None:
            try:
                await scene.manager.get(WEB)
            except CredentialForgotten as error:
                caught.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(want)
            await settle()
            scene.manager.forget(WEB)
        assert len(caught) == 1


async def test_cancelling_a_waiter_does_not_cancel_the_fetch(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.hang = trio.Event()
        with trio.move_on_after(1):
            await scene.manager.get(WEB)
        scene.ca.hang.set()
        await settle()
        assert scene.manager.current(WEB) is not None


async def test_a_wall_clock_stepped_forward_by_a_day_renews_at_once(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.clock.offset += DAY
        assert scene.manager.current(WEB) is None
        await trio.sleep(REEVALUATE_S + 1)
        await settle()
        assert scene.kinds() == ["ready", "failed", "ready"]
        assert scene.manager.current(WEB) is not None
        await trio.sleep(HALF_LIFE_S - 10)
        assert len(scene.ca.asked) == 2


async def test_after_a_step_forward_a_request_does_not_wait_for_the_next_look(
    autojump_clock: MockClock,
) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.clock.offset += DAY
        assert isinstance(scene.manager.request(WEB, Priority.REAL_TIME), CredentialFailed)
        await settle()
        assert isinstance(scene.manager.request(WEB, Priority.REAL_TIME), CredentialReady)
        assert scene.kinds() == ["ready", "failed", "ready"]


async def test_a_step_forward_with_the_ca_away_keeps_failing_until_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.ca.error = DOWN
        scene.clock.offset += DAY
        await trio.sleep(HOUR_S)
        assert set(scene.kinds()[1:]) == {"failed"}
        assert len(scene.ca.asked) > 5
        scene.ca.error = None
        await trio.sleep(MAX_BACKOFF_S + 1)
        assert scene.kinds()[-1] == "ready"


async def test_a_wall_clock_stepped_back_by_a_day_renews_and_keeps_serving(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        await scene.manager.get(WEB)
        scene.clock.offset -= DAY
        assert scene.manager.current(WEB) is not None
        await trio.sleep(REEVALUATE_S + 1)
        await settle()
        assert len(scene.ca.asked) == 2
        assert scene.kinds() == ["ready", "ready"]
        await trio.sleep(HALF_LIFE_S - REEVALUATE_S)
        assert len(scene.ca.asked) == 2


async def test_a_ca_whose_clock_is_ahead_is_not_asked_in_a_loop(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.clock = ahead = SteppedClock()
        ahead.offset = DAY
        credential = await scene.manager.get(WEB)
        assert credential.not_before > scene.clock()
        await trio.sleep(HOUR_S)
        assert scene.manager.current(WEB) is not None
        assert len(scene.ca.asked) < 40
        ahead.offset = dt.timedelta()
        await trio.sleep(MAX_BACKOFF_S + 1)
        asked = len(scene.ca.asked)
        await trio.sleep(11 * HOUR_S)
        assert len(scene.ca.asked) == asked


async def test_a_certificate_that_is_expired_on_arrival_is_a_failure(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        scene.ca.clock = behind = SteppedClock()
        behind.offset = -2 * DAY
        with pytest.raises(CredentialUnavailable, match="expired"):
            await scene.manager.get(WEB)
        await trio.sleep(HOUR_S)
        assert len(scene.ca.asked) < 40
        assert set(scene.kinds()) == {"failed"}


async def test_short_lifetimes_are_renewed_before_they_end(autojump_clock: MockClock) -> None:
    async with managing(lifetime=dt.timedelta(minutes=5)) as scene:
        await scene.manager.get(WEB)
        for _ in range(1000):
            await trio.sleep(7.3)
            assert scene.manager.current(WEB) is not None


async def test_plans_do_not_pile_up(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        for number in range(20):
            scene.manager.request(identity(number), Priority.WARMUP)
        await trio.sleep(2 * DAY_S)
        assert len(scene.manager._later) + len(scene.manager._ready) <= 40
        for number in range(20):
            scene.manager.forget(identity(number))
        await trio.sleep(2 * REEVALUATE_S)
        assert len(scene.manager._later) + len(scene.manager._ready) == 0


async def test_the_number_of_identities_is_bounded(autojump_clock: MockClock) -> None:
    async with managing(max_identities=2) as scene:
        for number in range(2):
            await scene.manager.get(identity(number))
        outcome = scene.manager.request(identity(2), Priority.REAL_TIME)
        assert isinstance(outcome, CredentialFailed)
        assert isinstance(outcome.error, TooManyIdentities)
        with pytest.raises(TooManyIdentities):
            await scene.manager.get(identity(3))
        scene.manager.forget(identity(0))
        assert (await scene.manager.get(identity(2))).identity == identity(2)


async def test_the_key_does_not_show_in_a_repr(autojump_clock: MockClock) -> None:
    async with managing() as scene:
        assert "key" not in repr(await scene.manager.get(WEB))
