"""The data path's event loop: callbacks over one epoll set, a timer wheel, one flush per connection and pass.

Theory of operation. A pass is: poll; the callbacks of the live registrations; if they left something to
flush, what became ready meanwhile, as long as that goes on (bounded); due timers; then rounds of
soon-callbacks and dirty flushes until there are none (bounded). Writers do not send: they mark themselves
dirty, and all that a pass produced for one connection leaves in one system call at its end. That, and
level-triggered registrations that are made once and rarely changed, is where the speed comes from (DESIGN
section 4).

Two hosts run the same pass. `run` blocks on the epoll set and is what a data worker uses. `run_in_trio` is a
trio task: trio waits for the epoll descriptor, the pass runs synchronously in between, and time is trio's
clock. A program in which nothing else needs trio saves about 0.15 ms per lone round trip with the first.

Invariants:
- After `Registration.close` no callback of it runs, not even for an event of the batch in hand; an event of
  the batch that belongs to a closed descriptor never reaches a registration that got the same number since.
- A callback that raises is reported, and its registration closed; the loop goes on.
- Only `call_soon_threadsafe` and `stop` may be called from other threads.
- trio is imported only by `run_in_trio`.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from transport.errors import Blame, MeshError
from transport.timer_wheel import Timer, TimerWheel

if TYPE_CHECKING:
    import trio

__all__ = ["Flusher", "Reactor", "Registration", "Timer", "WorkRejected"]

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_BROKEN = select.EPOLLERR | select.EPOLLHUP  # reported always, wanted or not

_MAX_EVENTS = 256  # per poll: bounds how long a pass can starve timers and flushes
_MAX_ROUNDS = (
    16  # of soon-callbacks and flushes per pass; what is left waits for the next pass, which does not block
)
_MAX_GATHERS = 8  # polls more in a pass; each costs a microsecond, a flush of its own costs ten
_HOLD_S = 0.0005  # how long output may wait while its pass works on
_GATHER_S = 0.0003  # from the pass's beginning: how long its flush may wait for what else is ready
_VAIN_LOOKS = 16
_MAX_DRAINS = 8  # passes in a row before trio's other tasks get their turn
_THREADS = 2
_MAX_QUEUED_WORK = 1024

T = TypeVar("T")


class WorkRejected(MeshError):
    """The thread pool's queue is full, so the work was not done."""

    code = "MYC-1002"
    blame = Blame.LOCAL


class Flusher(Protocol):
    """Something with output to send at the end of the pass."""

    def flush(self) -> None: ...


class Registration:
    """One descriptor in the epoll set; made by `Reactor.register`. It does not own the descriptor.

    Close it before the descriptor. While paused and not waiting to write, it also does not see resets and
    hang-ups; they are reported by the first read after `resume`.
    """

    __slots__ = (
        "_armed",
        "_is_write_wanted",
        "_on_readable",
        "_on_writable",
        "_reactor",
        "fd",
        "is_closed",
        "readable",
    )

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        on_readable: Callable[[], None],
        on_writable: Callable[[], None] | None,
    ) -> None:
        self._reactor = reactor
        self.fd = fd
        self._on_readable: Callable[[], None] | None = on_readable
        self._on_writable = on_writable
        self.readable: Callable[[], None] | None = None  # None while paused: what the loop looks at
        self._is_write_wanted = False
        self._armed: int | None = None  # the mask in the kernel; None = not in the set
        self.is_closed = False

    @property
    def is_reading(self) -> bool:
        return self.readable is not None

    def pause(self) -> None:
        """No readable callbacks from now on. Costs no system call unless an event arrives while paused."""
        self.readable = None

    def resume(self) -> None:
        if self.readable is None and not self.is_closed:
            self.readable = self._on_readable
            if self._armed is None or not self._armed & _IN:
                self._arm()

    def want_write(self, wanted: bool) -> None:
        """Call `on_writable` in each pass in which the descriptor is writable, while `wanted`."""
        if self._is_write_wanted is wanted or self.is_closed:
            return
        if wanted and self._on_writable is None:
            raise ValueError("registered without on_writable")
        self._is_write_wanted = wanted
        self._arm()

    def close(self, *, is_fd_closing: bool = False) -> None:
        """No callback from now on. `is_fd_closing`: the caller closes the descriptor right after, and nobody
        holds a duplicate, so that the kernel takes it out of the set by itself: one system call less.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self.readable = None
        self._is_write_wanted = False
        self._on_readable = None  # break cycles: the callbacks are bound methods of what holds us
        self._on_writable = None
        self._reactor._forget(self)
        if self._armed is not None:
            self._armed = None
            if is_fd_closing:
                return
            # The owner may have closed the descriptor already, which took it out of the set.
            with contextlib.suppress(OSError, ValueError):
                self._reactor._epoll.unregister(self.fd)

    def _arm(self) -> None:
        """Bring the kernel's mask in line with what is wanted."""
        mask = (_IN if self.readable is not None else 0) | (_OUT if self._is_write_wanted else 0)
        if self._armed is None:
            self._reactor._epoll.register(self.fd, mask)
        elif self._armed != mask:
            self._reactor._epoll.modify(self.fd, mask)
        self._armed = mask

    def _dispatch(self, mask: int) -> None:
        """The general case of an event; the loop handles the plain readable one itself."""
        is_broken = mask & _BROKEN
        readable = self.readable
        if readable is not None:
            if mask & _IN or is_broken:
                readable()
        elif self._armed is not None and (self._armed & _IN or (is_broken and not self._is_write_wanted)):
            self._settle(is_broken)
        if self._is_write_wanted and mask & _OUT | is_broken:
            on_writable = self._on_writable
            if on_writable is not None:
                on_writable()

    def _settle(self, is_broken: int) -> None:
        """An event arrived that nobody wants: stop the kernel from reporting it for ever."""
        if is_broken and not self._is_write_wanted:
            self._armed = None
            self._reactor._epoll.unregister(self.fd)  # a mask of zero would still report it
        else:
            self._arm()


def _report_to_stderr(error: BaseException, registration: Registration | None) -> None:
    where = "" if registration is None else f" (descriptor {registration.fd})"
    print(f"error in a callback of the event loop{where}:", file=sys.stderr)
    traceback.print_exception(error, file=sys.stderr)


class Reactor:
    """The loop. Build it, register, then host it with `run` or `run_in_trio`; `close` it afterwards.

    `clock` is replaceable for tests of the bare host; the trio host always uses trio's clock.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_callback_error: Callable[[BaseException, Registration | None], None] = _report_to_stderr
        self.now = clock()
        self._clock = clock
        self._epoll = select.epoll()
        self._registrations: dict[int, Registration] = {}
        self._fresh: set[int] = set()  # descriptors registered while the batch in hand is dispatched
        self._soon: deque[Callable[[], None]] = deque()
        self._dirty: dict[Flusher, None] = {}
        self._flushed_at = 0.0  # or the pass's beginning
        self._vain_looks = 0  # in a row: polls of `_gather` that found nothing, and those it left out since
        self._wheel = TimerWheel(self.now)
        self._is_in_pass = False
        self._is_running = False
        self._is_stopping = False
        self._is_close_wanted = False
        self._pool: ThreadPoolExecutor | None = None
        self.threaded_work = 0  # pieces of work queued for or running in the pool
        self._from_threads: deque[Callable[[], None]] = deque()
        self._is_wake_pending = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.register(self._wake_fd, self._on_wake)

    # Registrations

    def register(
        self,
        fd: int,
        on_readable: Callable[[], None],
        on_writable: Callable[[], None] | None = None,
        *,
        reading: bool = True,
    ) -> Registration:
        """Add a non-blocking descriptor. It starts reading unless told not to, and never waiting to write."""
        if fd in self._registrations:
            raise ValueError(f"descriptor {fd} is registered already")
        registration = Registration(self, fd, on_readable, on_writable)
        if reading:
            registration.readable = on_readable
        registration._arm()
        self._registrations[fd] = registration
        if self._is_in_pass:
            self._fresh.add(fd)
        return registration

    def _forget(self, registration: Registration) -> None:
        if self._registrations.get(registration.fd) is registration:
            del self._registrations[registration.fd]

    # Deferred work

    def mark_dirty(self, flusher: Flusher) -> None:
        """Call `flusher.flush()` once at the end of this pass (or of the next, from outside a pass)."""
        self._dirty[flusher] = None
        if not self._is_in_pass:
            self._wake()

    def relieve(self) -> None:
        """Within long work, between two parts of it: flush what has waited for `_HOLD_S`, so that whoever
        gets it works at the same time. Flushers other than the caller's own may be called from here.
        """
        if self._dirty and self._is_in_pass:
            now = self._clock()
            if now - self._flushed_at > _HOLD_S:
                self._flushed_at = now
                self._flush()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` later in this pass, outside of the caller's frames."""
        self._soon.append(callback)
        if not self._is_in_pass:
            self._wake()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `delay_s`, up to two ticks (62 ms) late, never early."""
        if self._is_in_pass:
            return self._wheel.start(self.now, delay_s, callback)
        before = self._wheel.next_deadline
        timer = self._wheel.start(self._clock(), delay_s, callback)
        if self._wheel.next_deadline < before:
            self._wake()
        return timer

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """`call_soon` from any thread or signal handler."""
        self._from_threads.append(callback)
        self._wake()

    def run_in_thread(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Run `work` in the pool, then `done` with its result or exception in the loop.

        At `_MAX_QUEUED_WORK` pieces, `done` gets WorkRejected and `work` is not run. After `close`, `done`
        is not called any more.
        """
        if self.threaded_work >= _MAX_QUEUED_WORK:
            rejected = WorkRejected(f"more than {_MAX_QUEUED_WORK} pieces of work wait for a thread")
            self.call_soon(lambda: done(rejected))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="reactor")
        self.threaded_work += 1
        self._pool.submit(self._work_in_thread, work, done)

    def _work_in_thread(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        result: T | BaseException
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to `done` whole, whatever it is
            result = error

        def finish() -> None:
            self.threaded_work -= 1
            done(result)

        with contextlib.suppress(OSError):  # the reactor has been closed meanwhile
            self.call_soon_threadsafe(finish)

    def _wake(self) -> None:
        if not self._is_wake_pending:
            self._is_wake_pending = True
            os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._is_wake_pending = False  # before the queue is looked at: a later append wakes again
        while self._from_threads:
            self._soon.append(self._from_threads.popleft())

    # The pass

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        """The callbacks of one batch. Everything here runs once per event: keep it short."""
        lookup = self._registrations.get
        fresh = self._fresh
        if fresh:
            fresh.clear()  # registered before this poll: its events are really theirs
        for fd, mask in events:
            registration = lookup(fd)
            if registration is None or (fresh and fd in fresh):
                continue
            try:
                readable = registration.readable
                if mask == 1 and readable is not None:  # 1 = EPOLLIN
                    readable()
                else:
                    registration._dispatch(mask)
            except Exception as error:  # noqa: BLE001 - a bad callback must not end other connections
                self._contain(error, registration)

    def _gather(self) -> None:
        """Before the flush: take in what became ready while the batch was dispatched, to leave with it.

        Under load events come one by one, each while the last is worked on, and each would leave in a record
        and a send of its own. Unlike giving up the processor, to look again costs no turn on a busy machine.
        A lone connection has nothing to gather: after so many looks in vain only every so-manyth pass looks.
        """
        vain = self._vain_looks
        self._vain_looks = vain + 1
        if vain >= _VAIN_LOOKS and vain % _VAIN_LOOKS:
            return
        poll, clock = self._epoll.poll, self._clock
        for _ in range(_MAX_GATHERS):
            events = poll(0, _MAX_EVENTS)
            if not events:
                return
            self._vain_looks = 0
            self._dispatch(events)
            if clock() - self.now > _GATHER_S:
                return

    def _finish_pass(self) -> None:
        if self.now >= self._wheel.next_deadline:
            for timer in self._wheel.expire(self.now):
                callback = timer.take()
                if callback is not None:
                    self._call(callback)
        for _ in range(_MAX_ROUNDS):
            if self._soon:
                for _ in range(len(self._soon)):
                    self._call(self._soon.popleft())
            if self._dirty:
                self._flush()
            elif not self._soon:
                break

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for flusher in dirty:
            self._call(flusher.flush)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - as in _dispatch
            self._contain(error, None)

    def _contain(self, error: Exception, registration: Registration | None) -> None:
        if registration is not None:
            registration.close()
        try:
            self.on_callback_error(error, registration)
        except Exception as hook_error:  # noqa: BLE001 - the hook is foreign code too
            _report_to_stderr(hook_error, registration)

    @property
    def _has_leftover(self) -> bool:
        return bool(self._soon or self._dirty)

    # Hosts

    def run(self) -> None:
        """Run passes on the calling thread until `stop`."""
        self._begin(self._clock)
        poll = self._epoll.poll
        clock = self._clock
        wheel = self._wheel
        try:
            while not self._is_stopping:
                if self._soon or self._dirty:
                    timeout = 0.0
                elif wheel.next_deadline == math.inf:
                    timeout = -1.0
                else:  # since the last pass began: timers are late by its length, one clock call is saved
                    timeout = max(wheel.next_deadline - self.now, 0.0)
                events = poll(timeout, _MAX_EVENTS)
                self.now = now = clock()
                self._flushed_at = now
                self._is_in_pass = True
                self._dispatch(events)
                if self._dirty and events:
                    self._gather()
                if self._soon or self._dirty or now >= wheel.next_deadline:
                    self._finish_pass()
                self._is_in_pass = False
        finally:
            self._end()

    async def run_in_trio(self, *, task_status: trio.TaskStatus[None] | None = None) -> None:
        """Run passes as a trio task until `stop` or cancellation; time is trio's clock (MockClock included).

        Cancellation ends it between two passes; registrations stay as they are until `close`.
        """
        import trio  # noqa: PLC0415 - data workers run without trio

        self._begin(trio.current_time)
        if task_status is not None:
            task_status.started()
        wheel = self._wheel
        try:
            while not self._is_stopping:
                with trio.CancelScope(deadline=wheel.next_deadline) as until_timer:
                    while not self._is_stopping:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                        self._drain()
                        if until_timer.deadline != wheel.next_deadline:
                            until_timer.deadline = wheel.next_deadline
                if until_timer.cancelled_caught:
                    self._drain()
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._end()

    def _drain(self) -> None:
        """Passes without waiting, until there is nothing to do or the bound is reached."""
        for _ in range(_MAX_DRAINS):
            events = self._epoll.poll(0, _MAX_EVENTS)
            self.now = self._flushed_at = self._clock()
            if not events and not self._has_leftover and self.now < self._wheel.next_deadline:
                return
            self._is_in_pass = True
            try:
                self._dispatch(events)
                if self._dirty and events:
                    self._gather()
                self._finish_pass()
            finally:
                self._is_in_pass = False
            if self._is_stopping:
                return
        if self._has_leftover:
            self._wake()  # nothing else would make the epoll descriptor readable

    def _begin(self, clock: Callable[[], float]) -> None:
        if self._is_running:
            raise RuntimeError("the reactor runs already")
        self._is_running = True
        old_now, self.now = self._clock(), clock()
        if clock is not self._clock:
            self._wheel.rebase(old_now, self.now)
            self._clock = clock

    def _end(self) -> None:
        self._is_in_pass = False
        self._is_running = False
        self._is_stopping = False
        if self._is_close_wanted:
            self.close()

    def stop(self) -> None:
        """End `run` or `run_in_trio` after the pass in hand. Any thread or signal handler may call it."""
        self._is_stopping = True
        self._wake()

    def close(self) -> None:
        """Close all registrations and the loop's own descriptors; idempotent. While running: stop, then
        close."""
        if self._is_running:
            self._is_close_wanted = True
            self.stop()
            return
        if self._epoll.closed:
            return
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for registration in list(self._registrations.values()):
            registration.close()
        self._soon.clear()
        self._dirty.clear()
        self._from_threads.clear()
        self._epoll.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        os.close(wake_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
