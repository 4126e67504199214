"""The wheel against a naive list of deadlines."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transport.timer_wheel import TICK_S, Timer, TimerWheel

_delays = st.floats(0, 5) | st.floats(0, 200) | st.integers(0, 2000).map(lambda ticks: ticks * TICK_S)


class WheelAgainstList(RuleBasedStateMachine):
    """Whatever is started, cancelled and waited for: never early, at most two ticks late, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 12345.678
        self.wheel = TimerWheel(self.now)
        self.waiting: dict[int, tuple[float, Timer]] = {}
        self.fired: list[int] = []
        self.serial = 0

    @rule(delay=_delays)
    def start(self, delay: float) -> None:
        serial = self.serial = self.serial + 1
        timer = self.wheel.start(self.now, delay, lambda: self.fired.append(serial))
        self.waiting[serial] = (self.now + delay, timer)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            serial = data.draw(st.sampled_from(sorted(self.waiting)))
            _, timer = self.waiting.pop(serial)
            timer.cancel()
            assert not timer.is_pending

    @rule(step=st.floats(0, 0.1) | st.floats(0, 100))
    def wait(self, step: float) -> None:
        self.now += step
        self.fired.clear()
        for timer in self.wheel.expire(self.now):
            callback = timer.take()
            assert callback is not None
            callback()
        for serial in self.fired:
            due, _ = self.waiting.pop(serial)
            assert due <= self.now
        assert all(due + 2 * TICK_S > self.now for due, _ in self.waiting.values())

    @rule(other=st.floats(0, 1e6))
    def change_clock(self, other: float) -> None:
        """The shift is rounded down to a tick, so a timer may come up to one tick later, and never early."""
        self.wheel.rebase(self.now, other)
        shift = math.floor((other - self.now) / TICK_S) * TICK_S
        self.waiting = {serial: (due + shift, timer) for serial, (due, timer) in self.waiting.items()}
        self.now += shift

    @invariant()
    def the_next_deadline_is_not_too_late(self) -> None:
        if self.waiting:
            earliest = min(due for due, _ in self.waiting.values())
            assert self.wheel.next_deadline <= earliest + 2 * TICK_S


TestWheelAgainstList = WheelAgainstList.TestCase


@given(st.lists(_delays, max_size=30), st.floats(0, 500))
def test_expired_timers_come_in_the_order_of_their_deadlines(delays: list[float], wait: float) -> None:
    wheel = TimerWheel(7.0)
    order: list[float] = []
    for delay in delays:
        wheel.start(7.0, delay, lambda delay=delay: order.append(delay))  # type: ignore[misc]
    for timer in wheel.expire(7.0 + wait):
        callback = timer.take()
        assert callback is not None
        callback()
    ticks = [math.floor(delay / TICK_S) for delay in order]
    assert ticks == sorted(ticks)


def test_waiting_exactly_until_the_next_deadline_fires() -> None:
    wheel = TimerWheel(0.1)
    wheel.start(0.1, 1.0, lambda: None)
    assert len(wheel.expire(wheel.next_deadline)) == 1
    assert wheel.next_deadline == math.inf


def test_a_timer_cancelled_by_an_earlier_one_of_the_same_batch_does_not_run() -> None:
    wheel = TimerWheel(0.0)
    calls: list[str] = []
    second = wheel.start(0.0, 2.0, lambda: calls.append("second"))

    def first() -> None:
        calls.append("first")
        second.cancel()

    wheel.start(0.0, 1.0, first)
    for timer in wheel.expire(10.0):
        callback = timer.take()
        if callback is not None:
            callback()
    assert calls == ["first"]


def test_a_spent_timer_can_be_cancelled() -> None:
    wheel = TimerWheel(0.0)
    timer = wheel.start(0.0, 0.0, lambda: None)
    assert wheel.expire(1.0) == [timer]
    assert timer.take() is not None
    timer.cancel()
    assert timer.take() is None


def test_cancelled_timers_do_not_pile_up() -> None:
    wheel = TimerWheel(0.0)
    now = 0.0
    for _ in range(10_000):
        now += 0.01
        wheel.start(now, 1.0, lambda: None).cancel()
        wheel.expire(now)
    assert wheel._held < 200
