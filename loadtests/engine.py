"""The generator's hot loops: one scenario in a process of its own, started by runner.py.

Why not trio here: what is measured takes 0.1-0.3 ms a round trip and up to 30,000 of them a second on the
cores that the contestants need too. A trio task costs 10-20 us at each wake-up, more than the socket calls
themselves, and would be charged to every contestant. So these loops are plain epoll, or one blocking socket
where there is only one connection, and the control around them (timing of rounds, progress, several engines,
idle tunnels, results) is trio.

Reads the scenario as JSON from standard input; writes lines to standard output: `measuring`,
`progress <operations> <bytes>`, `measured`, and last the outcome as JSON. Bulk bytes are never copied to user
space: MSG_TRUNC on the way in, sendfile from a memory file on the way out.
"""

from __future__ import annotations

import collections
import errno
import json
import mmap
import os
import select
import socket
import sys
import time
from collections.abc import Iterator

from loadtests.protocol import COUNT, Mode, encode
from loadtests.scenario import Kind, Outcome, Scenario
from loadtests.schedule import intended_times

BULK_BYTES = 4 * 1024 * 1024
RECEIVE_BYTES = 256 * 1024
PROGRESS_NS = 200_000_000
STALL_S = 15.0  # a closed loop in which nothing moves for so long has failed
GRACE_NS = 2_000_000_000  # for the open loop's last answers
MAX_OUTSTANDING = 10_000  # open loop, per connection: beyond it the contestant is saturated and the run ends
MAX_ERRORS = 200
READ, WRITE = select.EPOLLIN, select.EPOLLOUT
CONNECT_ERRORS = (ConnectionError, TimeoutError, OSError)


class LoadFailedError(Exception):
    """The load cannot go on; the text says why."""


class Window:
    """The measured stretch of a run: warm-up first, then counting until the end.

    `now_ns >= next_check_ns` tells the loop to call `check`: its own test stays one comparison.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.start_ns = time.perf_counter_ns() + int(scenario.warmup_s * 1e9)
        self.end_ns = self.start_ns + int(scenario.duration_s * 1e9)
        self.next_check_ns = self.start_ns
        self.is_measuring = False
        self.is_over = False
        self.outcome = Outcome()
        self.samples: list[int] = []
        self._opened_ns = 0

    def check(self, now_ns: int) -> None:
        """Opens or closes the window when its time has come, and reports progress; nothing after its end."""
        if self.is_over:
            return
        if not self.is_measuring:
            self.is_measuring = True
            self._opened_ns = now_ns
            self.outcome.operations = self.outcome.transferred_bytes = 0
            self.samples.clear()
            say("measuring")
        elif now_ns >= self.end_ns:
            self.is_over = True
            self.outcome.duration_s = (now_ns - self._opened_ns) / 1e9
            say("measured")
        else:
            say(f"progress {self.outcome.operations} {self.outcome.transferred_bytes}")
        self._fold()
        self.next_check_ns = min(now_ns + PROGRESS_NS, self.end_ns)

    def _fold(self) -> None:
        self.outcome.latency.record_all(self.samples)
        self.samples.clear()

    def finish(self) -> Outcome:
        self._fold()
        return self.outcome


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def connect(scenario: Scenario) -> socket.socket:
    """A blocking socket with a bound on every wait (SO_RCVTIMEO: no poll before each call)."""
    sock = socket.create_connection((scenario.host, scenario.port), timeout=10)
    sock.settimeout(None)
    limit = int(STALL_S).to_bytes(8, sys.byteorder) + bytes(8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def run(scenario: Scenario) -> Outcome:
    """Runs the scenario to its end. Raises LoadFailedError when the contestant does not carry it."""
    loops = {
        Kind.BULK_DOWN: bulk_down,
        Kind.BULK_UP: bulk_up,
        Kind.ECHO: echo if scenario.connections > 1 else lone_echo,
        Kind.OPEN_LOOP: open_loop,
        Kind.CONNECT: connect_loop,
    }
    try:
        return loops[scenario.kind](scenario)
    except BlockingIOError as error:  # SO_RCVTIMEO ran out
        raise LoadFailedError(f"nothing moved for {STALL_S:.0f} s") from error
    except CONNECT_ERRORS as error:
        raise LoadFailedError(f"{scenario.host}:{scenario.port}: {error}") from error


def bulk_down(scenario: Scenario) -> Outcome:
    """The server sends without end; what arrives within the window counts."""
    sockets = [connect(scenario) for _ in range(scenario.connections)]
    for sock in sockets:
        sock.sendall(encode(Mode.SOURCE))
    window = Window(scenario)
    waste = mmap.mmap(-1, BULK_BYTES)
    outcome = window.outcome
    for sock in ready(sockets, READ):
        received = sock.recv_into(waste, BULK_BYTES, socket.MSG_TRUNC)
        if received == 0:
            raise LoadFailedError("the stream ended early")
        outcome.transferred_bytes += received
        now = time.perf_counter_ns()
        if now >= window.next_check_ns:
            window.check(now)
            if window.is_over:
                break
    for sock in sockets:
        sock.close()
    return window.finish()


def bulk_up(scenario: Scenario) -> Outcome:
    """Sends without end; afterwards the far end's count must equal what was sent."""
    sockets = [connect(scenario) for _ in range(scenario.connections)]
    source = os.memfd_create("load-source")
    os.truncate(source, BULK_BYTES)
    for sock in sockets:
        sock.sendall(encode(Mode.SINK))
        sock.setblocking(False)
    window = Window(scenario)
    outcome = window.outcome
    sent_in_all = 0
    for sock in ready(sockets, WRITE):
        try:
            sent = os.sendfile(sock.fileno(), source, 0, BULK_BYTES)
        except BlockingIOError:
            continue
        sent_in_all += sent
        outcome.transferred_bytes += sent
        now = time.perf_counter_ns()
        if now >= window.next_check_ns:
            window.check(now)
            if window.is_over:
                break
    counted = sum(final_count(sock) for sock in sockets)
    if counted != sent_in_all:
        raise LoadFailedError(f"sent {sent_in_all} bytes, the far end counted {counted}")
    os.close(source)
    return window.finish()


def final_count(sock: socket.socket) -> int:
    """Half-closes, and waits for the sink's count."""
    sock.setblocking(True)
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while len(answer) < COUNT.size:
        data = sock.recv(COUNT.size - len(answer))
        if not data:
            raise LoadFailedError("the sink ended without its count")
        answer += data
    sock.close()
    return int(COUNT.unpack(answer)[0])


def ready(sockets: list[socket.socket], events: int) -> Iterator[socket.socket]:
    """Sockets as they become ready, without end; a lone blocking reader needs no epoll."""
    if len(sockets) == 1 and events == READ:
        while True:
            yield sockets[0]
    by_fd = {sock.fileno(): sock for sock in sockets}
    with select.epoll() as epoll:
        for fd in by_fd:
            epoll.register(fd, events)
        while True:
            batch = epoll.poll(STALL_S, 256)
            if not batch:
                raise LoadFailedError(f"nothing moved for {STALL_S:.0f} s")
            for fd, _ in batch:
                yield by_fd[fd]


def lone_echo(scenario: Scenario) -> Outcome:
    """One connection: a blocking socket is the least that a round trip can cost."""
    sock = connect(scenario)
    payload = bytes(scenario.request_bytes)
    sock.sendall(encode(Mode.ECHO) + payload)
    receive_exactly(sock, len(payload))
    window = Window(scenario)
    outcome, samples = window.outcome, window.samples
    while not window.is_over:
        started = time.perf_counter_ns()
        sock.sendall(payload)
        receive_exactly(sock, len(payload))
        now = time.perf_counter_ns()
        samples.append(now - started)
        outcome.operations += 1
        outcome.transferred_bytes += 2 * len(payload)
        if now >= window.next_check_ns:
            window.check(now)
    sock.close()
    return window.finish()


def receive_exactly(sock: socket.socket, wanted: int) -> None:
    while wanted > 0:
        data = sock.recv(wanted)
        if not data:
            raise LoadFailedError("the connection ended early")
        wanted -= len(data)


def echo(scenario: Scenario) -> Outcome:
    """Closed loop on many connections: each sends its next request when its answer is complete."""
    payload = bytes(scenario.request_bytes)
    size = len(payload)
    sockets = {sock.fileno(): sock for sock in (connect(scenario) for _ in range(scenario.connections))}
    missing = dict.fromkeys(sockets, size)
    started = {}
    clock = time.perf_counter_ns
    window = Window(scenario)
    outcome, samples = window.outcome, window.samples
    with select.epoll() as epoll:
        for fd, sock in sockets.items():
            epoll.register(fd, READ)
            started[fd] = clock()
            sock.sendall(encode(Mode.ECHO) + payload)
        while not window.is_over:
            batch = epoll.poll(STALL_S, 256)
            if not batch:
                raise LoadFailedError(f"nothing moved for {STALL_S:.0f} s")
            for fd, _ in batch:
                sock = sockets[fd]
                received = len(sock.recv(RECEIVE_BYTES))
                if received == 0:
                    raise LoadFailedError("the connection ended early")
                missing[fd] -= received
                if missing[fd]:
                    continue
                now = clock()
                samples.append(now - started[fd])
                outcome.operations += 1
                outcome.transferred_bytes += 2 * size
                missing[fd] = size
                started[fd] = now
                sock.sendall(payload)
                if now >= window.next_check_ns:
                    window.check(now)
    for sock in sockets.values():
        sock.close()
    return window.finish()


class Pipelined:
    """One connection of the open loop: requests go out when due, answered or not."""

    __slots__ = ("intended", "owed", "received", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.intended: collections.deque[int] = collections.deque()
        self.owed = b""
        self.received = 0

    def send(self, payload: bytes) -> None:
        data = self.owed + payload
        try:
            taken = self.sock.send(data)
        except BlockingIOError:
            taken = 0
        self.owed = data[taken:]


def open_loop(scenario: Scenario) -> Outcome:
    """Requests at the scheduled times, round robin over the connections; latency counts from the schedule.

    select() on the epoll descriptor waits with microseconds where epoll itself rounds up to milliseconds.
    """
    payload = bytes(scenario.request_bytes)
    epoll = select.epoll()
    lanes = []
    for _ in range(scenario.connections):
        sock = connect(scenario)
        sock.sendall(encode(Mode.ECHO))
        sock.setblocking(False)
        lanes.append(Pipelined(sock))
    by_fd = {lane.sock.fileno(): lane for lane in lanes}
    for fd in by_fd:
        epoll.register(fd, READ)
    window = Window(scenario)
    begin = time.perf_counter_ns()
    due_times = intended_times(scenario.rate_per_s, begin, window.end_ns, seed=scenario.seed)
    due = next(due_times, None)
    turn = outstanding = 0
    now = begin
    while due is not None or (outstanding and now < window.end_ns + GRACE_NS):
        wake = due if due is not None else window.end_ns + GRACE_NS
        select.select(
            [epoll.fileno()], [], [], max(0.0, min(wake, window.next_check_ns + PROGRESS_NS) - now) / 1e9
        )
        outstanding -= take_answers(epoll, by_fd, window, len(payload))
        now = time.perf_counter_ns()
        while due is not None and due <= now:
            lane = lanes[turn % len(lanes)]
            turn += 1
            lane.intended.append(due)
            lane.send(payload)
            if lane.owed:
                epoll.modify(lane.sock.fileno(), READ | WRITE)
            outstanding += 1
            if len(lane.intended) > MAX_OUTSTANDING:
                raise LoadFailedError(
                    f"saturated: {outstanding} requests unanswered at {scenario.rate_per_s:.0f}/s"
                )
            due = next(due_times, None)
        if now >= window.next_check_ns and not window.is_over:
            window.check(now)
    if not window.is_over:
        window.check(max(now, window.end_ns))
    for lane in lanes:
        window.outcome.unanswered += len(lane.intended)
        window.samples.extend(now - at for at in lane.intended)
        lane.sock.close()
    epoll.close()
    return window.finish()


def take_answers(epoll: select.epoll, lanes: dict[int, Pipelined], window: Window, size: int) -> int:
    """Reads what has come; returns the number of complete answers."""
    answers = 0
    for fd, events in epoll.poll(0, 256):
        lane = lanes[fd]
        if events & WRITE or lane.owed:
            lane.send(b"")
            epoll.modify(fd, READ | WRITE if lane.owed else READ)
        if not events & ~WRITE:
            continue
        data = lane.sock.recv(RECEIVE_BYTES)
        if not data:
            raise LoadFailedError("the connection ended early")
        lane.received += len(data)
        now = time.perf_counter_ns()
        while lane.received >= size and lane.intended:
            lane.received -= size
            at = lane.intended.popleft()
            answers += 1
            if at >= window.start_ns:
                window.samples.append(now - at)
                window.outcome.operations += 1
                window.outcome.transferred_bytes += 2 * size
    return answers


class Slot:
    """One place of the connect loop: a connection being made, waiting for its answer."""

    __slots__ = ("is_sent", "sock", "started_ns")

    def __init__(self, sock: socket.socket, started_ns: int) -> None:
        self.sock = sock
        self.started_ns = started_ns
        self.is_sent = False


def connect_loop(scenario: Scenario) -> Outcome:
    """Connect, one request, one answer, close; `connections` of them in flight at any time."""
    request = encode(Mode.ECHO) + bytes(scenario.request_bytes)
    size = scenario.request_bytes
    window = Window(scenario)
    outcome, samples = window.outcome, window.samples
    slots: dict[int, Slot] = {}
    with select.epoll() as epoll:
        for _ in range(scenario.connections):
            begin_slot(scenario, epoll, slots)
        while not window.is_over:
            batch = epoll.poll(STALL_S, 256)
            if not batch:
                raise LoadFailedError(f"nothing moved for {STALL_S:.0f} s")
            for fd, _ in batch:
                slot = slots[fd]
                try:
                    if not slot.is_sent:
                        slot.sock.send(request)
                        slot.is_sent = True
                        epoll.modify(fd, READ)
                        continue
                    if len(slot.sock.recv(size)) < size:
                        raise ConnectionResetError(errno.ECONNRESET, "ended early")
                except OSError as error:
                    outcome.fail(str(error))
                    if outcome.errors > MAX_ERRORS:
                        raise LoadFailedError(
                            f"{outcome.errors} connections failed, first: {outcome.first_error}"
                        ) from error
                else:
                    now = time.perf_counter_ns()
                    samples.append(now - slot.started_ns)
                    outcome.operations += 1
                    outcome.transferred_bytes += 2 * size
                    if now >= window.next_check_ns:
                        window.check(now)
                del slots[fd]
                slot.sock.close()
                begin_slot(scenario, epoll, slots)
    for slot in slots.values():
        slot.sock.close()
    return window.finish()


def begin_slot(scenario: Scenario, epoll: select.epoll, slots: dict[int, Slot]) -> None:
    family = socket.AF_INET6 if ":" in scenario.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    slot = Slot(sock, time.perf_counter_ns())
    code = sock.connect_ex((scenario.host, scenario.port))
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    slots[sock.fileno()] = slot
    epoll.register(sock.fileno(), WRITE)


def main() -> int:
    try:
        outcome = run(Scenario.from_json(sys.stdin.read()))
    except LoadFailedError as error:
        say(f"failed {error}")
        return 1
    say("outcome " + json.dumps(outcome.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
