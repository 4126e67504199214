"""The seam: what a caller may ask of an HTTP/2 codec, whichever implementation is behind it.

A codec does no I/O and knows no time. The caller feeds received bytes in, handles the events, and sends what
take_output() gives. Peers' faults never raise; misuse by the caller does (errors.CodecMisuse).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from transport.http2.error_codes import ErrorCode
from transport.http2.events import Event, Header, Piece
from transport.http2.lean import LeanCodec
from transport.http2.settings import Http2Settings, Role

CodecKind = Literal["lean", "reference"]


class Http2Codec(Protocol):
    """One end of one HTTP/2 connection.

    After ConnectionFailed, or for a stream that ended meanwhile, sending methods do nothing, so a caller
    can work through a list of events without looking ahead. Only streams that never existed raise
    CodecMisuse.
    """

    @property
    def open_streams(self) -> int:
        """Streams that are open in at least one direction."""

    @property
    def peer_max_frame(self) -> int:
        """The largest payload the peer accepts in one frame."""

    @property
    def peer_max_streams(self) -> int:
        """How many streams the peer lets us keep open; assumed until its SETTINGS came; 0 for a server."""

    @property
    def highest_peer_stream(self) -> int:
        """The highest stream id that the peer opened."""

    @property
    def is_going_away(self) -> bool:
        """No new streams: GOAWAY was sent or seen, or the connection failed."""

    def start(self) -> None:
        """Put preface, SETTINGS and the connection's WINDOW_UPDATE into the output. Call once, first."""

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        """Take in bytes, cut anywhere. DATA comes out piece by piece; its views live until the next call."""

    def receive_data(self, data: memoryview) -> tuple[Sequence[Piece], int]:
        """Take in the whole DATA frames that `data` begins with, as far as nothing about them is special.

        Returns their payloads and where the rest begins, which is receive()'s. The quick way for many small
        messages: no event is made for any. Pieces live as long as the data of events do.
        """

    @property
    def needs_flush(self) -> bool:
        """Whether there is output."""

    def take_output(self) -> bytes | bytearray:
        """What is to be sent, in order; empty if nothing is. The caller owns it."""

    def open_stream(self, headers: Sequence[Header], end_stream: bool = False) -> int:
        """Send a request; returns its stream id. Raises StreamLimitReached or GoingAway. Clients only."""

    def send_headers(self, stream_id: int, headers: Sequence[Header], end_stream: bool = False) -> None:
        """Server: a response (any 1xx first), then trailers. Client: trailers. Trailers end the stream."""

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        """Queue a body piece, at most sendable() bytes; copied, and split at the peer's frame size."""

    def send_message(
        self, stream_id: int, read: Callable[[memoryview], int], buffer: memoryview, limit: int
    ) -> int:
        """Let `read` fill `buffer` and queue what came as send_data would; returns its size, as `read` does.

        What a small message costs in one call instead of three. More than `limit` bytes (at most a frame of
        16 KiB) are left in the buffer, within the windows, for frame_in_place. -1, and nothing read: the
        windows do not cover the whole buffer, or the stream is gone; ask sendable(). Errors of `read` pass.
        """

    def frame_in_place(
        self, stream_id: int, buffer: memoryview, payload_bytes: int, end_stream: bool = False
    ) -> int:
        """Frame a body piece where it lies; returns how many bytes of `buffer` to send (0: the stream is
        gone).

        `buffer` is laid out as [9 free][<= peer_max_frame payload][9 free][payload]...; `payload_bytes`, at
        most sendable(), counts payload only. Send take_output() before it.
        """

    def end_stream(self, stream_id: int) -> None:
        """End our side with an empty DATA frame."""

    def sendable(self, stream_id: int) -> int:
        """Body bytes the windows allow now. When less than a full frame is left, WindowOpened follows."""

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        """`flow_bytes` of DataReceived went onward: give the peer credit. Right after the stream's end too.

        A reset by either side credits all at once; later calls for that stream do nothing.
        """

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream both ways with RST_STREAM and drop what was received. No event follows."""

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; PingAcked follows. The flood guards take it as a tick of the clock."""

    def goaway(
        self, code: ErrorCode = ErrorCode.NO_ERROR, *, last_stream_id: int | None = None, debug: bytes = b""
    ) -> None:
        """Send GOAWAY; streams above `last_stream_id` (default: the highest seen) are refused from now on."""


def make_codec(role: Role, settings: Http2Settings | None = None, kind: CodecKind = "lean") -> Http2Codec:
    """A codec for one connection. `reference` imports the h2 library, `lean` does not."""
    if settings is None:
        settings = Http2Settings.for_client() if role is Role.CLIENT else Http2Settings()
    if kind == "reference":
        from transport.http2.reference import ReferenceCodec  # noqa: PLC0415 - workers do not load h2

        return ReferenceCodec(role, settings)
    return LeanCodec(role, settings)
