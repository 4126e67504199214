"""The seam: what a caller may ask of an HTTP/1.1 codec, whichever implementation is behind it.

A codec does no I/O and knows no time. The caller feeds received octets in, handles the events, and sends what
take_output() gives. Peers' faults never raise; misuse by the caller does (errors.py). The methods are those
of http2.codec where both protocols have them; here at most one stream is open at a time, and the end of a
connection may be part of a message. So after each call the caller also looks at three flags:

* `is_held`: input waits for the end of this exchange. Stop reading; call resume() once the response (or a
  101) was sent; read on if the flag is clear again.
* `is_output_ended`: once the output is sent, shut the write side down; go on reading until is_finished.
* `is_finished`: once the output is sent, close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from transport.http1.events import Event, Header
from transport.http1.lean import LeanCodec
from transport.http1.settings import Http1Settings, Role

CodecKind = Literal["lean", "reference"]


class Http1Codec(Protocol):
    """One end of one HTTP/1.1 connection.

    After ConnectionFailed, or for an exchange that has ended, sending methods do nothing, so a caller can
    work through a list of events without looking ahead. Only streams that never were raise CodecMisuse.
    """

    is_held: bool
    is_output_ended: bool
    is_finished: bool

    @property
    def is_idle(self) -> bool:
        """No exchange is on, none has begun to arrive, and the next may come: a pool may use or close it."""

    @property
    def current_stream(self) -> int:
        """The exchange that is on, or the last one; 0 before the first."""

    @property
    def open_streams(self) -> int:
        """1 while an exchange is on, else 0."""

    @property
    def is_going_away(self) -> bool:
        """No new exchange after this one: an end was announced, seen or forced."""

    @property
    def awaits_continue(self) -> bool:
        """The request's content waits for a 100 (`expect` is in the header list), and none came yet."""

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        """Take in octets, cut anywhere. Content comes piece by piece; its views live until the next call."""

    @property
    def is_in_head(self) -> bool:
        """A message has begun, and its head is not complete."""

    def time_out_head(self) -> list[Event]:
        """Server: the head takes too long; it is answered with 408, and the connection is over."""

    def receive_eof(self) -> list[Event]:
        """The peer will send nothing more: the end of some messages, the failure of others."""

    def resume(self) -> list[Event]:
        """Read what was held; does nothing while the exchange is still on."""

    @property
    def needs_flush(self) -> bool:
        """Whether there is output, or the end of the connection or held input to deal with after it."""

    def take_output(self) -> bytes | bytearray:
        """What is to be sent, in order; empty if nothing is. The caller owns it."""

    def open_stream(self, headers: Sequence[Header], end_stream: bool = False) -> int:
        """Send a request; returns its stream id. Clients only.

        Raises ExchangeInProgress, ConnectionSpent or UnwritableHead. With `upgrade` in the list, the
        stream stays open and nothing may be sent before the answer.
        """

    def send_headers(self, stream_id: int, headers: Sequence[Header], end_stream: bool = False) -> None:
        """Server: a response (any 1xx first, or a 101), then trailers. Client: trailers.

        Trailers end the stream. What is about the connection is dropped from the list and written anew.
        Content is framed by a content-length in the list, else by chunks; only these have trailers.
        """

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        """Queue a body piece; copied. Content of a response that has none (HEAD, 204, 304) is dropped."""

    def frame_around(self, stream_id: int, payload_bytes: int) -> tuple[bytes, bytes] | None:
        """What goes before and after a body piece that the caller writes itself, uncopied; None: drop it.

        Write take_output() before it. To end the message, call end_stream() afterwards.
        """

    def end_stream(self, stream_id: int) -> None:
        """End our side's message. On a connection that changed its protocol: end our direction."""

    def sendable(self, stream_id: int) -> int:
        """Body octets that may be sent now: none before a 101 or a response's head, else any number."""

    def goaway(self) -> None:
        """This exchange is the last one (a response then says `connection: close`); idle: finished."""

    def reset(self, stream_id: int, code: int = 0) -> None:
        """Give up an exchange, and so the connection: only the close can tell the peer. No event follows.

        The close must be a reset where the content ends with the connection, or the peer takes it as whole.
        """

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        """Does nothing; HTTP/1 has no windows: who cannot take more stops reading."""


def make_codec(role: Role, settings: Http1Settings | None = None, kind: CodecKind = "lean") -> Http1Codec:
    """A codec for one connection. `reference` imports the h11 library, `lean` does not."""
    if settings is None:
        settings = Http1Settings()
    if kind == "reference":
        from transport.http1.reference import ReferenceCodec  # noqa: PLC0415 - workers do not load h11

        return ReferenceCodec(role, settings)
    return LeanCodec(role, settings)
