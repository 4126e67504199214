"""A filter in the worker itself: the fastest way, for filters that are trusted.

A hook that takes longer than its deadline is interrupted by an exception (a timer's signal), wherever Python
code or an interruptible call is running. What this cannot guarantee: a call into C that does not return,
memory that is never given back, and threads that a filter starts, harm the whole worker.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from waypoint.filters.module import FilterInvalid, FilterModule, HookFailed, TooLong
from waypoint.filters.wire import RequestOutcome
from waypoint.state.filters import FilterPolicy
from waypoint.worker.filters.host import BodyDone, Fault, RequestDone, ResponseDone, Subject, Trouble

Result = TypeVar("Result")


class WorkerHost:
    """Implements FilterHost. Loaded at once."""

    def __init__(self, policy: FilterPolicy) -> None:
        self.problem = ""
        self.hooks: frozenset[str] = frozenset()
        self._deadline_s = policy.deadline_s
        self._module: FilterModule | None = None
        try:
            self._module = _alarm.call(
                max(policy.deadline_s, 1.0),
                lambda: FilterModule(policy.source, policy.key, policy.config),
            )
        except FilterInvalid as error:
            self.problem = error.text
        except TooLong:
            self.problem = "it cannot be loaded: that takes too long"
        else:
            self.hooks = self._module.hooks

    @property
    def is_ready(self) -> bool:
        return self._module is not None

    def on_request(self, subject: Subject, done: RequestDone) -> None:
        request = subject.request

        def call(module: FilterModule) -> RequestOutcome:
            answer = module.on_request(request) if "on_request" in module.hooks else None
            return RequestOutcome(answer, request.path, request.reroute, request.headers)

        done(self._call(call))

    def on_response(self, subject: Subject, done: ResponseDone) -> None:
        if "on_response" not in self.hooks:
            done(subject.response.headers)
            return

        def call(module: FilterModule) -> None:
            module.on_response(subject.request, subject.response)

        result: Fault | None = self._call(call)
        done(result if isinstance(result, Fault) else subject.response.headers)

    def on_body(self, hook: str, subject: Subject, chunk: bytes, is_last: bool, done: BodyDone) -> None:
        def call(module: FilterModule) -> bytes:
            if hook == "on_request_body":
                return module.on_request_body(subject.request, chunk, is_last)
            return module.on_response_body(subject.request, subject.response, chunk, is_last)

        done(self._call(call))

    def over(self, subject: Subject) -> None: ...

    def close(self) -> None:
        self._module = None
        self.problem = "it is not there any more"

    def _call(self, call: Callable[[FilterModule], Result]) -> Result | Fault:
        module = self._module
        if module is None:
            return Fault(Trouble.UNAVAILABLE, self.problem)
        try:
            return _alarm.call(self._deadline_s, lambda: call(module))
        except HookFailed as error:
            return Fault(Trouble.FAILED, str(error))
        except TooLong:
            return Fault(Trouble.TIMED_OUT, f"no result within {self._deadline_s:g} s")


class _Alarm:
    """The timer's signal. Only the main thread can be interrupted; a worker's reactor runs there."""

    def __init__(self) -> None:
        self._is_installed = False
        self._is_armed = False

    def call(self, seconds: float, call: Callable[[], Result]) -> Result:
        """Raises TooLong."""
        if threading.current_thread() is not threading.main_thread():
            return call()
        if not self._is_installed:
            signal.signal(signal.SIGALRM, self._ring)
            self._is_installed = True
        self._is_armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return call()
        finally:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal's
        if self._is_armed:
            raise TooLong


_alarm = _Alarm()
