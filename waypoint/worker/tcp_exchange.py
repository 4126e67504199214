"""One connection that is no HTTP: from its first bytes to both directions' ends.

Phases: read the server name if the decision needs it, decide (the plan), connect to an endpoint or the next,
relay. Invariants: the plan and the observer hear of the end once; at `abort` nothing is left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transport.errors import MeshError
from transport.reactor import Timer
from waypoint.state.hosts import Endpoint
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.client_hello import Peeked, server_name
from waypoint.worker.dial import Dial
from waypoint.worker.errors import IdleTooLong, NameNotResolved, OpenTooLong
from waypoint.worker.plan import Source, TcpOutcome, TcpPlan
from waypoint.worker.tcp_relay import TcpRelay

if TYPE_CHECKING:
    from waypoint.worker.proxy import Proxy


class TcpExchange:
    """Owns the client's stream. Implements StreamHandler until the relay takes over."""

    def __init__(self, proxy: Proxy, stream: ByteStream, source: Source) -> None:
        self._proxy = proxy
        self._stream = stream
        self._source = source
        self._began = proxy.reactor.now
        self._first = bytearray()
        self._has_client_ended = False
        self._plan: TcpPlan | None = None
        self._tried: list[Endpoint] = []
        self._dial: Dial | None = None
        self._relay: TcpRelay | None = None
        self._timers: list[Timer] = []
        self._seen_bytes = -1
        self._is_over = False
        self.outcome = TcpOutcome()

    def start(self, first: bytes | bytearray = b"") -> None:
        self._first += first
        if self._proxy.decider.wants_server_name(self._source):
            self._stream.start(self)
            self._stream.resume()
            self._look()
        else:
            self._choose(None)

    @property
    def sent_bytes(self) -> int:
        """From the client to the upstream so far."""
        return 0 if self._relay is None else self._relay.sent_bytes

    @property
    def received_bytes(self) -> int:
        return 0 if self._relay is None else self._relay.received_bytes

    def abort(self) -> None:
        """End it at once."""
        if self._relay is not None:
            self._relay.abort()
        else:
            self._stream.abort()
            self._finish(None)

    # StreamHandler, while the server name is awaited

    def on_data(self, data: memoryview) -> None:
        self._first += data
        self._look()

    def on_eof(self) -> None:
        self._has_client_ended = True
        self._look()

    def on_drained(self) -> None: ...

    def on_lost(self, error: MeshError | None) -> None:
        self._finish(error)

    def _look(self) -> None:
        found = server_name(self._first)
        if found is not Peeked.MORE or self._has_client_ended:
            self._stream.pause()
            self._choose(found if isinstance(found, str) else None)

    # The way

    def _choose(self, name: str | None) -> None:
        self.outcome.server_name = name or ""
        decider = self._proxy.decider
        why = self.outcome.policy = decider.refuse_tcp(self._source, name)
        if why:
            self.abort()
            return
        plan = self._plan = decider.choose_tcp(self._source, name)
        if plan is None:
            self.outcome.flag = "NR"
            self.abort()
            return
        if plan.longest_s is not None:
            self._timers.append(self._proxy.reactor.call_later(plan.longest_s, self._on_too_long))
        self._try(None)

    def _try(self, error: MeshError | None) -> None:
        plan = self._plan
        assert plan is not None
        endpoint = plan.pick(self._tried)
        if endpoint is None:
            self.outcome.flag = "UH"
            if error is not None:
                self.outcome.flag = "DF" if isinstance(error, NameNotResolved) else "UF"
                self.outcome.flag += ",URX"  # there is no further connect
            self._stream.abort()
            self._finish(error)
            return
        self._tried.append(endpoint)
        self.outcome.upstream = endpoint
        self._dial = self._proxy.dialler.dial(endpoint, self._on_dialled)

    def _on_dialled(self, result: ByteStream | MeshError) -> None:
        self._dial = None
        plan = self._plan
        assert plan is not None
        if isinstance(result, MeshError):
            plan.on_try_over(self._tried[-1], result)
            self._try(result)
            return
        relay = self._relay = TcpRelay(self._stream, result, self._on_over)
        if plan.idle_s is not None:
            self._timers.append(self._proxy.reactor.call_later(plan.idle_s, self._on_idle))
        plan.on_connected(self.outcome)
        self._proxy.observer.on_tcp_open(self, self._source)
        relay.start(self._first)
        if self._has_client_ended:
            relay.end_client()

    def _on_idle(self) -> None:
        plan, relay = self._plan, self._relay
        assert plan is not None
        assert plan.idle_s is not None
        assert relay is not None
        seen = relay.sent_bytes + relay.received_bytes
        if seen == self._seen_bytes:
            relay.abort(IdleTooLong(f"no byte for {plan.idle_s:g} s"))
            return
        self._seen_bytes = seen
        self._timers.append(self._proxy.reactor.call_later(plan.idle_s, self._on_idle))
        del self._timers[:-2]  # those before have fired

    def _on_too_long(self) -> None:
        plan = self._plan
        assert plan is not None
        self.outcome.flag = "DT"
        error = OpenTooLong(f"open for {plan.longest_s:g} s, the limit")
        if self._relay is not None:
            self._relay.abort(error)
        else:
            self._stream.abort()
            self._finish(error)

    # The end

    def _on_over(self, sent_bytes: int, received_bytes: int, error: MeshError | None) -> None:
        self.outcome.sent_bytes, self.outcome.received_bytes = sent_bytes, received_bytes
        assert self._plan is not None
        self._plan.on_try_over(self._tried[-1], None)
        self._finish(error)

    def _finish(self, error: MeshError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        for timer in self._timers:
            timer.cancel()
        dial, self._dial = self._dial, None
        plan = self._plan
        if dial is not None:
            dial.cancel()
            assert plan is not None
            plan.on_try_over(self._tried[-1], None)
        outcome = self.outcome
        outcome.error = error
        outcome.duration_s = self._proxy.reactor.now - self._began
        if plan is not None:
            plan.on_over(outcome)
        self._proxy.on_tcp_over(self, self._source)
