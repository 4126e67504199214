"""The state both codecs share: which exchange is on, how far each direction of it is, what comes after it.

One exchange at a time. What a client sends ahead (pipelined requests, or octets after a request to change the
protocol) is held, unread, until the response has ended; then resume() reads on. After an upgrade, the held
octets are the new protocol's; if it was refused, they are HTTP again.
"""

from __future__ import annotations

from typing import Final

from transport.http1.errors import CodecMisuse
from transport.http1.events import Event
from transport.http1.settings import Http1Settings, Role


class Receiving:
    """What the next octet of the peer belongs to. Numbers: an enum costs the hot path 10 %."""

    NOTHING: Final = 0  # client: no request is out, so nothing may come
    HEAD: Final = 1
    LENGTH: Final = 2
    CHUNK_FIRST: Final = 3  # a chunk-size line
    CHUNK_NEXT: Final = 4  # the end of a chunk's data, then a chunk-size line
    CHUNK_DATA: Final = 5
    TRAILERS: Final = 6
    UNTIL_CLOSE: Final = 7
    RAW: Final = 8
    HELD: Final = 9  # server: the request is complete, its response is not
    IGNORED: Final = 10  # the connection's part of it is over


class Sending:
    """What we may send next."""

    NOTHING: Final = 0  # nothing until there is a next exchange
    HEAD: Final = 1  # server: the final response's head (1xx before it)
    LENGTH: Final = 2
    CHUNKED: Final = 3
    RAW: Final = 4
    UNWANTED: Final = 5  # server: content of a response that has none; it is dropped
    BEFORE_101: Final = 6  # client: an upgrade is asked for, and nothing may be sent before its answer
    ENDED: Final = 7


class Exchange:
    """Counts exchanges and decides when the connection is free, or at its end."""

    def __init__(self, role: Role, settings: Http1Settings) -> None:
        self._is_server = role is Role.SERVER
        self._settings = settings
        self._out = bytearray()
        self._events: list[Event] = []
        self._input = bytearray()  # an incomplete head or line, or what is held
        self._stream = 0
        self._receiving: int = Receiving.HEAD if self._is_server else Receiving.NOTHING
        self._sending: int = Sending.NOTHING
        self._send_left = 0
        self._keeps_alive = True
        self._has_peer_ended = False
        self._is_head = False
        self._upgrade: tuple[bytes, ...] = ()
        self._awaits_continue = False
        self._informational = 0
        self.is_held = False
        self.is_output_ended = False
        self.is_finished = False

    @property
    def current_stream(self) -> int:
        """The exchange that is on, or the last one; 0 before the first."""
        return self._stream

    @property
    def is_idle(self) -> bool:
        """No exchange is on, none has begun to arrive, and the next may come."""
        if self.is_finished or self.is_output_ended or self._input:
            return False
        between = Receiving.HEAD if self._is_server else Receiving.NOTHING
        return self._receiving == between and self._sending == Sending.NOTHING

    @property
    def open_streams(self) -> int:
        """1 while an exchange is on, else 0."""
        return int(not self.is_finished and self._sending != Sending.NOTHING)

    @property
    def is_going_away(self) -> bool:
        """No new exchange after this one."""
        return not self._keeps_alive or self._has_peer_ended

    @property
    def awaits_continue(self) -> bool:
        """The peer (or, for a client, our request) waits for a 100 before its content is sent."""
        return self._awaits_continue

    @property
    def needs_flush(self) -> bool:
        """Whether there is output, or the end of the connection or held input to deal with after it."""
        return bool(self._out) or self.is_held or self.is_output_ended

    def take_output(self) -> bytes | bytearray:
        """What is to be sent, in order; empty if nothing is. The caller owns it."""
        if not self._out:
            return b""
        out, self._out = self._out, bytearray()
        return out

    def goaway(self) -> None:
        """This exchange is the last one; without one, the connection is finished."""
        self._keeps_alive = False
        if self.is_idle:
            self._finish()

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        """HTTP/1 has no windows: who cannot take more stops reading."""

    def reset(self, stream_id: int, code: int = 0) -> None:  # noqa: ARG002 - the peer cannot be told
        """Give up an exchange, and so the connection: only the close can tell the peer. No event follows."""
        if not self._is_gone(stream_id):
            self._finish()

    def _is_gone(self, stream_id: int) -> bool:
        """Whether what is to be sent on this stream comes too late. Raises CodecMisuse if it never was."""
        if stream_id == self._stream and self._sending != Sending.NOTHING and not self.is_finished:
            return False
        if not 0 < stream_id <= self._stream:
            raise CodecMisuse(f"exchange {stream_id} never was; the last is {self._stream}")
        return True

    def _begin_exchange(self) -> None:
        self._stream += 1
        self._informational = 0

    def _received_all(self) -> None:
        """The peer's message is complete."""
        self._awaits_continue = False
        if self._sending in (Sending.NOTHING, Sending.ENDED):
            self._end_exchange()
        elif not self._is_server and not self._keeps_alive:
            self._finish()  # the server will not read the rest of our request
        else:
            self._receiving = Receiving.HELD if self._is_server else Receiving.NOTHING

    def _sent_all(self) -> None:
        """Our message is complete."""
        self._sending = Sending.ENDED
        if self._receiving in (Receiving.HELD, Receiving.NOTHING):
            self._end_exchange()
        elif self._is_server and not self._keeps_alive:
            self.is_output_ended = True

    def _end_exchange(self) -> None:
        if not self._keeps_alive or (self._has_peer_ended and not self._input):
            self._finish()
            return
        self._sending = Sending.NOTHING
        self._receiving = Receiving.HEAD if self._is_server else Receiving.NOTHING

    def _finish(self) -> None:
        """Nothing more is read or written; what is in the output still goes out."""
        self._receiving, self._sending = Receiving.IGNORED, Sending.ENDED
        self._keeps_alive = False
        self._awaits_continue = False
        self._input.clear()
        self.is_held = False
        self.is_output_ended = self.is_finished = True
