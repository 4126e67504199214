"""One connection to a Redis server on the reactor: commands go out as they come, replies arrive in order.

Nothing waits for ever: `ask` answers at once with False where there is no use in asking (no connection after
a failure, or `_MAX_ASKED` without a reply), and a reply that is late ends the connection and with it all that
was asked. After a failure nobody waits for the server: it is tried again at most every `_RETRY_S`, and asked
again once it has answered the greeting.
"""

from __future__ import annotations

import contextlib
import enum
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from dataplane.worker.log import WorkerLog
from transport.errors import MeshError
from transport.reactor import Reactor, Registration, Timer
from transport.sockets import finish_connect, start_connect
from waypoint.limits import RedisEndpoint
from waypoint.state.members import is_address
from waypoint.state.resp import NotResp, Reply, ReplyReader, RespError, encode_command
from waypoint.state.shared_limits import SCRIPT, SCRIPT_ID
from waypoint.worker.resolver import Resolver

_MAX_ASKED: Final = 1_000
_RETRY_S: Final = 1.0
_GREETING_S: Final = 2.0
_READ_BYTES: Final = 64 * 1024

Answered: TypeAlias = "Callable[[Reply | MeshError], None]"


class RedisUnusable(MeshError):
    """The server that shared limits are counted on does not answer, or not as it should."""

    code = "MYC-4630"


class _State(enum.Enum):
    AWAY = 0
    CONNECTING = 1
    GREETING = 2
    READY = 3


class RedisClient:
    """Built inert; connects at the first question."""

    def __init__(self, reactor: Reactor, endpoint: RedisEndpoint, resolver: Resolver, log: WorkerLog) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._resolver = resolver
        self._log = log
        self._state = _State.AWAY
        self._has_failed = False
        self._retry_at = 0.0
        self._sock: socket.socket | None = None
        self._registration: Registration | None = None
        self._timer: Timer | None = None  # for the greeting, then for the oldest question
        self._reader = ReplyReader()
        self._unsent = bytearray()
        self._greetings = 0
        self._asked: deque[tuple[float, Answered]] = deque()  # -> until when, and who asked
        self._attempt = 0

    def ask(self, command: bytes, answered: Answered) -> bool:
        """`answered` is called later and once, with the reply or why there is none. False: not asked."""
        if self._state is _State.AWAY:
            if self._reactor.now < self._retry_at:
                return False
            self._connect()
        if (self._has_failed and self._state is not _State.READY) or len(self._asked) >= _MAX_ASKED:
            return False
        self._asked.append((self._reactor.now + self._endpoint.timeout_s, answered))
        self._unsent += command
        if self._state is _State.READY:
            self._flush()
        if self._timer is None and self._state is not _State.AWAY:
            self._watch()
        return True

    def close(self) -> None:
        self._retry_at = float("inf")
        self._end(RedisUnusable("the worker ends"))

    # Connecting

    def _connect(self) -> None:
        self._state = _State.CONNECTING
        self._attempt += 1
        attempt = self._attempt
        # The first time requests wait for it; after a failure none does.
        delay_s = _GREETING_S if self._has_failed else self._endpoint.timeout_s
        self._timer = self._reactor.call_later(delay_s, self._greeting_late)
        if is_address(self._endpoint.host):
            self._reactor.call_soon(lambda: self._dial(attempt, self._endpoint.host))
            return

        def resolved(found: object) -> None:
            if isinstance(found, MeshError):
                self._failed(attempt, found.text)
            else:
                assert isinstance(found, list | tuple)
                self._dial(attempt, str(found[0]))

        self._resolver.resolve(self._endpoint.host, resolved)

    def _dial(self, attempt: int, address: str) -> None:
        if attempt != self._attempt or self._state is not _State.CONNECTING:
            return
        try:
            sock, _ = start_connect((address, self._endpoint.port))
        except MeshError as error:
            self._failed(attempt, error.text)
            return
        self._sock = sock
        self._registration = self._reactor.register(
            sock.fileno(), self._on_readable, self._on_writable, reading=False
        )
        self._registration.want_write(True)

    def _greet(self) -> None:
        assert self._registration is not None
        endpoint = self._endpoint
        commands = []
        if endpoint.password_file:
            password = Path(endpoint.password_file).read_bytes().strip()
            user = (endpoint.user.encode(),) if endpoint.user else ()
            commands.append(encode_command(b"AUTH", *user, password))
        if endpoint.database:
            commands.append(encode_command(b"SELECT", b"%d" % endpoint.database))
        commands.append(encode_command(b"SCRIPT", b"LOAD", SCRIPT))
        self._greetings = len(commands)
        self._state = _State.GREETING
        waiting = bytes(self._unsent)
        self._unsent = bytearray(b"".join(commands))
        self._registration.resume()
        self._flush()
        self._unsent += waiting

    def _greeting_late(self) -> None:
        self._timer = None
        self._end(RedisUnusable("no greeting in time"))

    def _greeted(self, reply: Reply) -> None:
        if isinstance(reply, RespError):
            raise NotResp(reply.text)
        self._greetings -= 1
        if self._greetings:
            return
        if reply != SCRIPT_ID:
            raise NotResp("it took another script than it was given")
        self._state = _State.READY
        if self._has_failed:
            self._has_failed = False
            self._log.write("info", "rate_limit_redis_answers_again", address=self._title)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()
        self._watch()

    # Bytes

    def _on_writable(self) -> None:
        registration, sock = self._registration, self._sock
        assert registration is not None
        assert sock is not None
        if self._state is _State.CONNECTING:
            try:
                finish_connect(sock)
                registration.want_write(False)
                self._greet()
            except (MeshError, OSError) as error:
                self._failed(self._attempt, error.text if isinstance(error, MeshError) else str(error))
            return
        self._flush()

    def _flush(self) -> None:
        sock, registration = self._sock, self._registration
        if not self._unsent or sock is None or registration is None:
            return
        try:
            sent = sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            problem = str(error)  # the caller is in the midst of asking: tell it later
            attempt = self._attempt
            self._reactor.call_soon(lambda: self._failed(attempt, problem))
            return
        del self._unsent[:sent]
        registration.want_write(bool(self._unsent))

    def _on_readable(self) -> None:
        sock = self._sock
        assert sock is not None
        try:
            data = sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(self._attempt, str(error))
            return
        if not data:
            self._failed(self._attempt, "it closed the connection")
            return
        attempt = self._attempt
        try:
            for reply in self._reader.feed(data):
                self._take(reply)
                if attempt != self._attempt or self._sock is not sock:
                    return
        except NotResp as error:
            self._failed(attempt, str(error))

    def _take(self, reply: Reply) -> None:
        if self._state is _State.GREETING:
            self._greeted(reply)
            return
        if not self._asked:
            raise NotResp("a reply that nobody asked for")
        _, answered = self._asked.popleft()
        if isinstance(reply, RespError):
            # The script is gone, or there is no memory: a new connection finds out.
            answered(RedisUnusable(reply.text))
            raise NotResp(reply.text)
        answered(reply)

    # Time

    def _watch(self) -> None:
        if self._timer is None and self._asked and self._state is _State.READY:
            delay_s = max(self._asked[0][0] - self._reactor.now, 0.0)
            self._timer = self._reactor.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._asked and self._asked[0][0] <= self._reactor.now:
            self._end(RedisUnusable(f"no answer within {self._endpoint.timeout_s * 1000:g} ms"))
        else:
            self._watch()

    # The end of a connection

    @property
    def _title(self) -> str:
        return f"{self._endpoint.host}:{self._endpoint.port}"

    def _failed(self, attempt: int, why: str) -> None:
        if attempt == self._attempt and self._state is not _State.AWAY:
            self._end(RedisUnusable(why))

    def _end(self, error: RedisUnusable) -> None:
        self._state = _State.AWAY
        self._attempt += 1
        self._has_failed = True
        self._retry_at = max(self._retry_at, self._reactor.now + _RETRY_S)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.close()
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
        self._reader = ReplyReader()
        self._unsent.clear()
        asked, self._asked = self._asked, deque()
        self._log.limited("warn", "rate_limit_redis_unusable", address=self._title, reason=error.text)
        for _, answered in asked:
            answered(error)
