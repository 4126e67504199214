"""One suite of the reactor's promises over both hosts.

Time is virtual in both: the bare host gets a clock that advances a millisecond per pass while a ticking
descriptor keeps the passes coming; the trio host runs under MockClock. So no test waits.

The file is long because the suite is one list of promises, each run twice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import trio
import trio.testing

from transport.reactor import _MAX_GATHERS as MAX_GATHERS
from transport.reactor import _VAIN_LOOKS as VAIN_LOOKS
from transport.reactor import Reactor, Registration, WorkRejected
from transport.timer_wheel import TICK_S

pytestmark = pytest.mark.timeout(30)


class Host(Protocol):
    def make(self) -> Reactor: ...

    def run(self, reactor: Reactor) -> None: ...


class SteppingClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class BareHost:
    def make(self) -> Reactor:
        return Reactor(clock=SteppingClock())

    def run(self, reactor: Reactor) -> None:
        ticking = os.eventfd(1)
        registration = reactor.register(ticking, lambda: None)
        try:
            reactor.run()
        finally:
            registration.close()
            os.close(ticking)


class TrioHost:
    def make(self) -> Reactor:
        return Reactor()

    def run(self, reactor: Reactor) -> None:
        trio.run(reactor.run_in_trio, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture(params=[BareHost, TrioHost], ids=["bare", "trio"])
def host(request: pytest.FixtureRequest) -> Host:
    made: Host = request.param()
    return made


@pytest.fixture
def reactor(host: Host) -> Iterator[Reactor]:
    with host.make() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with pairs(1) as made:
        yield made[0]


@contextlib.contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            a, b = socket.socketpair()
            for sock in (a, b):
                sock.setblocking(False)
                stack.enter_context(sock)
            made.append((a, b))
        yield made


def in_turn(*calls: Callable[[], object]) -> Callable[[], None]:
    """One callback that makes several calls."""

    def call_all() -> None:
        for call in calls:
            call()

    return call_all


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def quiet_errors(reactor: Reactor) -> list[tuple[BaseException, Registration | None]]:
    errors: list[tuple[BaseException, Registration | None]] = []
    reactor.on_callback_error = lambda error, registration: errors.append((error, registration))
    return errors


# Registrations


def test_readable_descriptor_is_called_until_it_is_read(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    seen: list[bytes] = []

    def on_readable() -> None:
        seen.append(a.recv(1))
        if len(seen) == 3:
            reactor.stop()

    reactor.register(a.fileno(), on_readable)
    b.send(b"xyz")
    host.run(reactor)
    assert seen == [b"x", b"y", b"z"]


def test_paused_registration_is_not_called_and_resume_sees_what_came_meanwhile(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    events: list[str] = []

    def on_readable() -> None:
        events.append("readable")
        reactor.stop()

    registration = reactor.register(a.fileno(), on_readable)
    registration.pause()
    registration.pause()
    b.send(b"x")
    reactor.call_later(1.0, in_turn(lambda: events.append("resumed"), registration.resume))
    host.run(reactor)
    assert events == ["resumed", "readable"]


def test_registration_may_start_without_reading(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    reactor.register(a.fileno(), lambda: pytest.fail("not reading"), reading=False)
    b.send(b"x")
    reactor.call_later(1.0, reactor.stop)
    host.run(reactor)


def test_pausing_within_the_batch_holds_back_an_event_of_that_batch(host: Host, reactor: Reactor) -> None:
    with pairs(2) as made:
        called: list[int] = []
        registrations: list[Registration] = []

        def on_readable(index: int) -> None:
            called.append(index)
            registrations[1 - index].pause()
            registrations[index].pause()

        for index, (a, b) in enumerate(made):
            b.send(b"x")
            registrations.append(reactor.register(a.fileno(), partial(on_readable, index)))
        reactor.call_later(1.0, reactor.stop)
        host.run(reactor)
        assert len(called) == 1


def test_writable_is_called_only_while_wanted(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, _ = pair
    calls: list[str] = []

    def on_writable() -> None:
        calls.append("writable")
        if len(calls) == 3:
            registration.want_write(False)
            reactor.call_later(1.0, reactor.stop)

    registration = reactor.register(a.fileno(), lambda: None, on_writable)
    registration.want_write(True)
    registration.want_write(True)
    host.run(reactor)
    assert len(calls) == 3


def test_wanting_to_write_without_a_callback_is_a_mistake(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    registration = reactor.register(pair[0].fileno(), lambda: None)
    with pytest.raises(ValueError, match="on_writable"):
        registration.want_write(True)


def test_closed_registration_is_not_called_for_an_event_of_the_same_batch(
    host: Host, reactor: Reactor
) -> None:
    with pairs(2) as made:
        called: list[int] = []
        registrations: list[Registration] = []

        def on_readable(index: int) -> None:
            called.append(index)
            for registration in registrations:
                registration.close()
                registration.close()
                registration.resume()
                registration.want_write(True)

        for index, (a, b) in enumerate(made):
            b.send(b"x")
            registrations.append(
                reactor.register(a.fileno(), partial(on_readable, index), lambda: pytest.fail("closed"))
            )
        reactor.call_later(1.0, reactor.stop)
        host.run(reactor)
        assert len(called) == 1


def test_stale_event_does_not_reach_a_new_registration_of_the_same_descriptor(
    host: Host, reactor: Reactor
) -> None:
    """As when a callback closes another connection and a new one, still connecting, gets its number."""
    with pairs(2) as made, pairs(1) as more:
        full, _ = more[0]
        with contextlib.suppress(BlockingIOError):
            while True:
                full.send(b"x" * 65536)
        registrations: dict[int, Registration] = {}

        def on_readable(index: int) -> None:
            victim = made[1 - index][0].fileno()
            for registration in registrations.values():
                registration.close()
            os.dup2(full.fileno(), victim)  # the number now stands for a socket that is not writable
            reactor.register(
                victim, lambda: None, lambda: pytest.fail("called for the old socket's event"), reading=False
            ).want_write(True)

        for index, (a, b) in enumerate(made):
            b.send(b"x")
            registrations[index] = reactor.register(
                a.fileno(),
                partial(on_readable, index),
                lambda: None,
            )
            registrations[index].want_write(True)
        reactor.call_later(1.0, reactor.stop)
        host.run(reactor)


def test_descriptor_can_be_registered_again_after_it_was_closed(host: Host, reactor: Reactor) -> None:
    """Closing the descriptor before the registration is wrong, but must not break the next owner."""
    for _ in range(3):
        a, b = socket.socketpair()
        registration = reactor.register(a.fileno(), reactor.stop)
        b.send(b"x")
        host.run(reactor)
        a.close()
        registration.close()
        b.close()


def test_a_descriptor_cannot_be_registered_twice(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    reactor.register(pair[0].fileno(), lambda: None)
    with pytest.raises(ValueError, match="already"):
        reactor.register(pair[0].fileno(), lambda: None)


@pytest.mark.parametrize("is_hung_up", [False, True])
def test_paused_descriptor_with_an_event_does_not_keep_the_loop_busy(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket], is_hung_up: bool
) -> None:
    a, b = pair
    events: list[bytes] = []
    registration = reactor.register(a.fileno(), in_turn(lambda: events.append(a.recv(9)), reactor.stop))
    registration.pause()
    b.send(b"x")
    if is_hung_up:
        b.close()

    def check() -> None:
        masks = dict(reactor._epoll.poll(0))
        assert a.fileno() not in masks
        registration.resume()

    reactor.call_later(1.0, check)
    host.run(reactor)
    assert events == [b"x"]


def test_hang_up_is_readable(host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    seen: list[bytes] = []
    reactor.register(a.fileno(), in_turn(lambda: seen.append(a.recv(1)), reactor.stop))
    b.close()
    host.run(reactor)
    assert seen == [b""]


def test_failed_connect_is_writable_though_nothing_is_read(host: Host, reactor: Reactor) -> None:
    with socket.socket() as unheard, socket.socket() as sock:
        unheard.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.connect_ex(unheard.getsockname())
        calls: list[int] = []

        def on_writable() -> None:
            calls.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            registration.close()
            reactor.stop()

        registration = reactor.register(sock.fileno(), lambda: None, on_writable, reading=False)
        registration.want_write(True)
        host.run(reactor)
        assert calls != [0]
        assert len(calls) == 1


# Errors


def test_failing_callback_is_reported_its_registration_closed_and_the_loop_goes_on(
    host: Host, reactor: Reactor
) -> None:
    errors = quiet_errors(reactor)
    with pairs(2) as made:
        (a, b), (c, d) = made
        boom = ValueError("boom")

        def fail() -> None:
            raise boom

        bad = reactor.register(a.fileno(), fail)
        good: list[bytes] = []
        reactor.register(
            c.fileno(), in_turn(lambda: good.append(c.recv(1)), lambda: reactor.call_later(1.0, reactor.stop))
        )
        b.send(b"x")
        d.send(b"y")
        host.run(reactor)
        assert errors == [(boom, bad)]
        assert bad.is_closed
        assert good == [b"y"]


def test_failing_soon_callback_flush_and_timer_are_reported_and_do_not_stop_the_others(
    host: Host, reactor: Reactor
) -> None:
    errors = quiet_errors(reactor)

    def fail() -> None:
        raise ValueError

    class Failing:
        def flush(self) -> None:
            raise KeyError

    done: list[str] = []
    reactor.call_soon(fail)
    reactor.call_soon(lambda: done.append("soon"))
    reactor.mark_dirty(Failing())
    reactor.mark_dirty(Flushing(done, "flush"))
    reactor.call_later(1.0, fail)
    reactor.call_later(1.0, lambda: done.append("timer"))
    reactor.call_later(2.0, reactor.stop)
    host.run(reactor)
    assert [type(error) for error, _ in errors] == [ValueError, KeyError, ValueError]
    assert done == ["soon", "flush", "timer"]


def test_errors_go_to_standard_error_by_default_and_a_failing_hook_does_not_end_the_loop(
    host: Host, reactor: Reactor, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("first")

    def failing_hook(error: BaseException, registration: Registration | None) -> None:
        raise KeyError("second")

    reactor.call_soon(fail)
    reactor.call_later(1.0, lambda: setattr(reactor, "on_callback_error", failing_hook))
    reactor.call_later(2.0, fail)
    reactor.call_later(3.0, reactor.stop)
    host.run(reactor)
    text = capsys.readouterr().err
    assert "ValueError: first" in text
    assert "KeyError: 'second'" in text


# Deferred work


class Flushing:
    """A flusher that writes its name into a log, and may mark something in turn."""

    def __init__(self, log: list[str], name: str, then: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self.name = name
        self.then = then

    def flush(self) -> None:
        self.log.append(self.name)
        self.then()


def test_order_within_a_pass_is_callbacks_then_soon_then_flushes_each_flush_once(
    host: Host, reactor: Reactor
) -> None:
    log: list[str] = []
    flusher = Flushing(log, "flush")
    with pairs(2) as made:

        def on_readable(sock: socket.socket) -> None:
            sock.recv(1)
            reactor.mark_dirty(flusher)
            reactor.call_soon(in_turn(lambda: log.append("soon"), lambda: reactor.mark_dirty(flusher)))
            log.append("readable")

        for a, b in made:
            b.send(b"x")
            reactor.register(a.fileno(), partial(on_readable, a))
        reactor.call_later(1.0, reactor.stop)
        host.run(reactor)
    assert log == ["readable", "readable", "soon", "soon", "flush"]


def test_what_becomes_ready_during_a_pass_leaves_with_its_flush(host: Host, reactor: Reactor) -> None:
    log: list[str] = []
    flusher = Flushing(log, "flush")
    with pairs(2) as ((first, near), (second, far)):

        def on_first() -> None:
            first.recv(1)
            far.send(b"x")
            reactor.mark_dirty(flusher)
            log.append("first")

        def on_second() -> None:
            second.recv(1)
            reactor.mark_dirty(flusher)
            log.append("second")

        reactor.register(first.fileno(), on_first)
        reactor.register(second.fileno(), on_second)
        near.send(b"x")
        reactor.call_later(1.0, reactor.stop)
        host.run(reactor)
    assert log == ["first", "second", "flush"]


def test_long_work_lets_out_what_has_waited_and_short_work_does_not() -> None:
    clock = SteppingClock()
    log: list[str] = []
    with Reactor(clock=clock) as reactor:
        flusher = Flushing(log, "flush")

        def part(name: str) -> None:
            log.append(name)
            reactor.mark_dirty(flusher)
            reactor.relieve()

        def work() -> None:
            part("long")  # a step of the clock is longer than output may wait
            reactor._clock = lambda: clock.now
            part("short")
            part("short")
            reactor.stop()

        reactor.call_soon(work)
        BareHost().run(reactor)
        log.append("over")
        reactor.mark_dirty(flusher)
        reactor.relieve()  # outside of a pass there is none to be long
    assert log == ["long", "flush", "short", "short", "flush", "over"]


def test_flush_waits_for_a_bounded_number_of_events_and_timers_come(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    log: list[str] = []
    flusher = Flushing(log, "flush")
    b.send(b"x")  # never read: always ready
    reactor.register(a.fileno(), in_turn(lambda: log.append("read"), lambda: reactor.mark_dirty(flusher)))
    reactor.call_later(2 * TICK_S, reactor.stop)
    if isinstance(host, TrioHost):  # trio's mock clock only jumps when nothing is left to do
        trio.run(reactor.run_in_trio)
    else:
        host.run(reactor)
    runs = "".join("." if word == "read" else "|" for word in log).split("|")
    assert len(runs) > 2
    assert max(map(len, runs)) <= 1 + MAX_GATHERS


class CountedPolls:
    """An epoll set that counts how often it is asked."""

    def __init__(self, epoll: object) -> None:
        self._epoll = epoll
        self.polls = 0

    def __getattr__(self, name: str) -> object:
        self.polls += name == "poll"
        return getattr(self._epoll, name)


def test_lone_connection_is_rarely_looked_at_twice(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    log: list[str] = []
    messages = 320
    counted = CountedPolls(reactor._epoll)
    reactor._epoll = counted  # type: ignore[assignment]

    def send_next() -> None:
        if len(log) < messages:
            b.send(b"x")  # only after the flush, so a second look before it never finds anything
        else:
            reactor.stop()

    flusher = Flushing(log, "flush", send_next)
    reactor.register(a.fileno(), in_turn(lambda: a.recv(1), lambda: reactor.mark_dirty(flusher)))
    b.send(b"x")
    trio.run(reactor.run_in_trio)
    assert len(log) == messages
    first_looks, later_looks = VAIN_LOOKS, messages // VAIN_LOOKS
    drains = messages + messages // 8 + 10  # a pass each, and one for nothing at the end of a series
    assert counted.polls <= drains + first_looks + later_looks


def test_flush_that_marks_another_is_followed_by_it_in_the_same_pass(host: Host, reactor: Reactor) -> None:
    log: list[str] = []
    second = Flushing(log, "second", reactor.stop)
    first = Flushing(log, "first", lambda: reactor.mark_dirty(second))
    passes: list[float] = []
    second.then = in_turn(lambda: passes.append(reactor.now), reactor.stop)
    reactor.call_later(1.0, in_turn(lambda: passes.append(reactor.now), lambda: reactor.mark_dirty(first)))
    host.run(reactor)
    assert log == ["first", "second"]
    assert passes[0] == passes[1]


def test_work_that_renews_itself_for_ever_does_not_starve_descriptors_and_timers(
    host: Host, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair

    def soon() -> None:
        reactor.call_soon(soon)

    log: list[str] = []
    endless = Flushing(log, "flush")
    endless.then = lambda: reactor.mark_dirty(endless)
    reactor.call_soon(soon)
    reactor.mark_dirty(endless)
    reactor.register(
        a.fileno(), in_turn(lambda: a.recv(1), lambda: reactor.call_later(2 * TICK_S, reactor.stop))
    )
    b.send(b"x")
    if isinstance(host, TrioHost):  # trio's mock clock only jumps when nothing is left to do
        trio.run(reactor.run_in_trio)
    else:
        host.run(reactor)
    assert log


def test_work_that_renews_itself_goes_on_though_nothing_else_happens(host: Host, reactor: Reactor) -> None:
    left = 5000

    def soon() -> None:
        nonlocal left
        left -= 1
        if left:
            reactor.call_soon(soon)
        else:
            reactor.stop()

    reactor.call_soon(soon)
    host_run_in_real_time(host, reactor)
    assert left == 0


def test_timers_run_in_order_not_early_and_not_when_cancelled(host: Host, reactor: Reactor) -> None:
    log: list[tuple[str, float]] = []
    start = reactor.now

    def note(name: str) -> Callable[[], None]:
        return lambda: log.append((name, reactor.now - start))

    reactor.call_later(100.0, note("c"))
    reactor.call_later(0.5, note("a"))
    reactor.call_later(5.0, note("b"))
    reactor.call_later(1.0, note("cancelled")).cancel()
    late = reactor.call_later(50.0, note("cancelled later"))
    reactor.call_later(6.0, late.cancel)
    reactor.call_later(7.0, in_turn(lambda: reactor.call_later(1.0, note("nested"))))
    reactor.call_later(101.0, reactor.stop)
    host.run(reactor)
    assert [name for name, _ in log] == ["a", "b", "nested", "c"]


def test_timer_delays_are_kept_across_hosts_with_another_clock(host: Host) -> None:
    """Timers started before the host runs belong to the old clock; the host's own begins elsewhere."""
    clock = SteppingClock()
    with Reactor(clock=clock) as reactor:
        fired: list[float] = []
        reactor.call_later(10.0, in_turn(lambda: fired.append(reactor.now), reactor.stop))
        if isinstance(host, TrioHost):
            host.run(reactor)
        else:
            BareHost().run(reactor)
        assert len(fired) == 1


def test_other_threads_wake_the_loop(host: Host, reactor: Reactor) -> None:
    where: list[int] = []

    def in_thread() -> None:
        for _ in range(100):
            reactor.call_soon_threadsafe(lambda: where.append(threading.get_ident()))
        reactor.call_soon_threadsafe(reactor.stop)

    thread = threading.Thread(target=in_thread)
    reactor.call_soon(thread.start)
    host_run_in_real_time(host, reactor)
    thread.join()
    assert where == [threading.get_ident()] * 100


def test_stop_from_another_thread_ends_the_run(host: Host, reactor: Reactor) -> None:
    thread = threading.Thread(target=reactor.stop)
    reactor.call_soon(thread.start)
    host_run_in_real_time(host, reactor)
    thread.join()


def host_run_in_real_time(host: Host, reactor: Reactor) -> None:
    """Threads do not know of virtual time: a mock clock would jump past them."""
    if isinstance(host, TrioHost):
        trio.run(reactor.run_in_trio)
    else:
        reactor.run()


def test_work_in_a_thread_gives_its_result_or_its_exception_to_the_loop(host: Host, reactor: Reactor) -> None:
    results: list[object] = []
    boom = ValueError("boom")

    def fail() -> int:
        raise boom

    def done(result: object) -> None:
        results.append(result)
        assert threading.current_thread() is threading.main_thread()
        if len(results) == 2:
            reactor.stop()

    reactor.run_in_thread(threading.get_ident, done)
    reactor.run_in_thread(fail, done)
    host_run_in_real_time(host, reactor)
    assert boom in results
    assert reactor.threaded_work == 0
    assert threading.get_ident() not in results


def test_work_beyond_the_bound_is_rejected_and_the_rest_is_done(host: Host, reactor: Reactor) -> None:
    gate = threading.Event()
    results: list[object] = []

    def done(result: object) -> None:
        results.append(result)
        if isinstance(result, WorkRejected):
            gate.set()
        if len(results) == 1025:
            reactor.stop()

    for _ in range(1025):
        reactor.run_in_thread(gate.wait, done)
    host_run_in_real_time(host, reactor)
    assert isinstance(results[0], WorkRejected)
    assert results[1:] == [True] * 1024


# Life of the loop


def test_it_can_be_stopped_and_run_again(host: Host, reactor: Reactor) -> None:
    for _ in range(3):
        reactor.call_soon(reactor.stop)
        host.run(reactor)


def test_it_cannot_run_twice_at_once(host: Host, reactor: Reactor) -> None:
    errors = quiet_errors(reactor)
    reactor.call_soon(reactor.run)
    reactor.call_later(1.0, reactor.stop)
    host.run(reactor)
    assert [type(error) for error, _ in errors] == [RuntimeError]


def test_close_while_running_ends_the_run_and_frees_every_descriptor(host: Host) -> None:
    with pairs(1) as made:
        before = open_descriptors()
        reactor = host.make()
        registration = reactor.register(made[0][0].fileno(), lambda: None)
        reactor.call_later(1.0, reactor.close)
        if isinstance(host, TrioHost):
            host.run(reactor)
        else:
            reactor._clock = SteppingClock()
            reactor.register(made[0][1].fileno(), lambda: None, lambda: None).want_write(True)
            reactor.run()
        assert registration.is_closed
        reactor.close()
        assert open_descriptors() == before


def test_result_of_a_thread_after_close_is_dropped(host: Host) -> None:
    reactor = host.make()
    gate = threading.Event()
    reactor.run_in_thread(gate.wait, lambda _: pytest.fail("closed"))
    gate.set()
    reactor.close()


# The trio host alone


async def test_cancelling_the_trio_host_leaves_a_reactor_that_runs_again() -> None:
    with Reactor() as reactor, pairs(1) as made:
        a, b = made[0]
        seen: list[bytes] = []
        reactor.register(a.fileno(), in_turn(lambda: seen.append(a.recv(1)), reactor.stop))
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: reactor.run_in_trio(task_status=task_status))
            nursery.cancel_scope.cancel()
        b.send(b"x")
        await reactor.run_in_trio()
        assert seen == [b"x"]


async def test_other_trio_tasks_wake_the_loop_with_every_kind_of_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with Reactor() as reactor:
        log: list[str] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: reactor.run_in_trio(task_status=task_status))
            await trio.sleep(1)
            reactor.call_soon(lambda: log.append("soon"))
            await trio.sleep(1)
            assert log == ["soon"]
            reactor.mark_dirty(Flushing(log, "flush"))
            await trio.sleep(1)
            assert log == ["soon", "flush"]
            reactor.call_later(10.0, lambda: log.append("timer"))
            await trio.sleep(11)
            assert log == ["soon", "flush", "timer"]
            reactor.stop()


async def test_other_trio_tasks_get_their_turn_while_the_reactor_is_busy() -> None:
    with Reactor() as reactor, pairs(1) as made:
        a, b = made[0]
        b.send(b"x")
        reactor.register(a.fileno(), lambda: None)  # never reads: always ready
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run_in_trio)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            reactor.stop()


def test_the_bare_host_does_not_import_trio() -> None:
    code = "import sys, transport.reactor, transport.tls.pump; assert 'trio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
