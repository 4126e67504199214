"""A filter in a process of its own: whatever it does, only its own calls suffer.

Calls are frames over a socket; each has a deadline. A runner that misses one, breaks the protocol or ends is
killed and started again, with pauses that grow; calls in the meantime fail at once, but those before it was
ever loaded wait for it. Bounds: `_MAX_CALLS` calls and `_MAX_WAITING_BYTES` waiting for a runner, its memory
by RLIMIT_AS. Cost: docs/filters.md.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from transport.reactor import Reactor, Registration, Timer
from waypoint.filters.wire import (
    Frames,
    bytes_of,
    frame,
    headers_of,
    outcome_of,
    request_json,
    text_of,
)
from waypoint.state.filters import FilterPolicy
from waypoint.worker.filters.host import BodyDone, Fault, RequestDone, ResponseDone, Subject, Trouble

_MAX_CALLS: Final = 1_000
_MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
_LOAD_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_READ_BYTES: Final = 256 * 1024
_ROOT: Final = Path(__file__).resolve().parents[3]
_LOAD_CALL: Final = 0

Take = Callable[[dict[str, Any] | Fault], None]


class ProcessHost:
    """Implements FilterHost. `on_loaded` is called each time when it is known whether the filter runs."""

    def __init__(self, policy: FilterPolicy, reactor: Reactor, on_loaded: Callable[[], None]) -> None:
        self.problem = ""
        self.hooks: frozenset[str] = frozenset()
        self._policy = policy
        self._reactor = reactor
        self._on_loaded = on_loaded
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._registration: Registration | None = None
        self._frames = Frames()
        self._waiting = bytearray()
        self._calls: dict[int, tuple[Take, Timer]] = {}
        self._next_call = 1
        self._is_loaded = False
        self._is_first = True  # it is not known yet whether it can be loaded
        self._early: list[tuple[Callable[[], None], Take]] = []
        self._is_closed = False
        self._failures = 0
        self._restart: Timer | None = None
        self._start()

    @property
    def is_ready(self) -> bool:
        return self._is_loaded

    @property
    def pid(self) -> int:
        """0: none runs now."""
        return self._process.pid if self._process is not None else 0

    # FilterHost

    def on_request(self, subject: Subject, done: RequestDone) -> None:
        def take(result: dict[str, Any] | Fault) -> None:
            done(result if isinstance(result, Fault) else _read(outcome_of, result))

        self._call("on_request", subject, take, request=request_json(subject.request))

    def on_response(self, subject: Subject, done: ResponseDone) -> None:
        def take(result: dict[str, Any] | Fault) -> None:
            done(result if isinstance(result, Fault) else _read(lambda m: headers_of(m["headers"]), result))

        response = subject.response
        said = {"status": response.status, "headers": list(response.headers)}
        self._call("on_response", subject, take, response=said, request=request_json(subject.request))

    def on_body(self, hook: str, subject: Subject, chunk: bytes, is_last: bool, done: BodyDone) -> None:
        def take(result: dict[str, Any] | Fault) -> None:
            done(result if isinstance(result, Fault) else _read(lambda m: bytes_of(m["chunk"]), result))

        self._call(hook, subject, take, chunk=text_of(chunk), is_last=is_last)

    def over(self, subject: Subject) -> None:
        if self._is_loaded:
            self._send({"do": "over", "id": -1, "exchange": subject.number})

    def close(self) -> None:
        self._is_closed = True
        self.problem = "it is not there any more"
        if self._restart is not None:
            self._restart.cancel()
        self._end()
        self._fail_all(Fault(Trouble.UNAVAILABLE, self.problem))
        early, self._early = self._early, []
        for _, take in early:
            take(Fault(Trouble.UNAVAILABLE, self.problem))

    # Calls

    def _call(self, what: str, subject: Subject, take: Take, **fields: Any) -> None:
        if self._is_first and len(self._early) < _MAX_CALLS:
            self._early.append((lambda: self._call(what, subject, take, **fields), take))
            return
        if not self._is_loaded:
            take(Fault(Trouble.UNAVAILABLE, self.problem or "it is not loaded yet"))
            return
        if len(self._calls) >= _MAX_CALLS or len(self._waiting) >= _MAX_WAITING_BYTES:
            take(Fault(Trouble.UNAVAILABLE, "too many calls wait for it"))
            return
        self._ask(what, take, self._policy.deadline_s, exchange=subject.number, **fields)

    def _ask(self, what: str, take: Take, deadline_s: float, **fields: Any) -> None:
        number, self._next_call = self._next_call, self._next_call + 1
        timer = self._reactor.call_later(deadline_s, lambda: self._too_slow(deadline_s))
        self._calls[number] = (take, timer)
        self._send({"do": what, "id": number, **fields})

    def _too_slow(self, deadline_s: float) -> None:
        """What waits behind a call that hangs would wait as long: the process ends, and all of them."""
        text = f"no result within {deadline_s:g} s"
        self._broken(text, Fault(Trouble.TIMED_OUT, text))

    def _send(self, message: dict[str, Any]) -> None:
        self._waiting += frame(message)
        self._write()

    # The process

    def _start(self) -> None:
        self._restart = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        command = [sys.executable, "-m", "waypoint.filters.runner", str(theirs.fileno())]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )
        except OSError as error:
            ours.close()
            self._process = None
            self._retry(f"its process cannot be started: {error.strerror or error}")
            return
        finally:
            theirs.close()
        self._sock = ours
        self._frames = Frames()
        self._waiting = bytearray()
        self._registration = self._reactor.register(ours.fileno(), self._on_readable, self._write)
        policy = self._policy
        self._ask(
            "load",
            self._on_load,
            _LOAD_S,
            source=policy.source,
            name=policy.key,
            config=dict(policy.config),
            memory_bytes=policy.memory_bytes,
        )

    def _on_load(self, result: dict[str, Any] | Fault) -> None:
        self._is_first = False
        if isinstance(result, Fault):
            if result.trouble is Trouble.FAILED:  # it said itself why not: another try would end alike
                self._end()
                self.problem = result.text
                self._on_loaded()
        else:
            self.hooks = frozenset(result.get("hooks", ()))
            self._is_loaded = True
            self.problem = ""
            self._on_loaded()
        early, self._early = self._early, []
        for again, take in early:
            if isinstance(result, Fault):
                take(Fault(Trouble.UNAVAILABLE, result.text))
            else:
                again()

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(f"its process broke off: {error.strerror or error}")
            return
        if not data:
            self._broken(self._how_it_ended())
            return
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except (ValueError, RecursionError):
            self._broken("its process does not keep to the protocol")

    def _take(self, message: dict[str, Any]) -> None:
        held = self._calls.pop(message.get("id", -1), None)
        if held is None:
            return
        take, timer = held
        timer.cancel()
        self._failures = 0
        error = message.get("error")
        take(message if error is None else Fault(Trouble.FAILED, str(error)))

    def _write(self) -> None:
        sock, registration = self._sock, self._registration
        if sock is None or registration is None:
            return
        try:
            while self._waiting:
                sent = sock.send(self._waiting)
                del self._waiting[:sent]
        except BlockingIOError:
            registration.want_write(True)
            return
        except OSError:
            return  # the read side says how it ended
        registration.want_write(False)

    def _how_it_ended(self) -> str:
        process = self._process
        if process is None:
            return "its process is gone"
        try:
            status = process.wait(0.05)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        return f"its process ended with {status}"

    def _broken(self, text: str, fault: Fault | None = None) -> None:
        self._end()
        self._fail_all(fault or Fault(Trouble.UNAVAILABLE, text))
        if not self._is_closed:
            self._retry(text)

    def _retry(self, text: str) -> None:
        self.problem = f"{text}; it is started again"
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures, 16), _LONGEST_PAUSE_S)
        self._failures += 1
        self._restart = self._reactor.call_later(pause_s, self._start)
        self._on_loaded()

    def _fail_all(self, fault: Fault) -> None:
        calls, self._calls = self._calls, {}
        for take, timer in calls.values():
            timer.cancel()
            take(fault)

    def _end(self) -> None:
        self._is_loaded = False
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def _read(read: Callable[[dict[str, Any]], Any], message: dict[str, Any]) -> Any:
    """What a runner said, or that it made no sense."""
    try:
        return read(message)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Fault(Trouble.FAILED, f"what it returned cannot be used: {error}")
