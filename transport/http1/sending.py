"""The sending half of both codecs: who may send what when; the octets are made by the four _write methods."""

from __future__ import annotations

from collections.abc import Sequence

from transport.http1 import writing
from transport.http1.errors import CodecMisuse, ConnectionSpent, ExchangeInProgress
from transport.http1.events import Header
from transport.http1.exchange import Exchange, Receiving, Sending
from transport.http1.meaning import CHUNKED
from transport.http1.writing import HeadPlan

_UNBOUNDED = 2**31 - 1
_WITH_CONTENT = (Sending.LENGTH, Sending.CHUNKED, Sending.RAW)
_LAST_CHUNK = b"0\r\n\r\n"


class SendingHalf(Exchange):
    """Requests or responses, their content and trailers."""

    def open_stream(self, headers: Sequence[Header], end_stream: bool = False) -> int:
        """Send a request; returns its stream id. Or ExchangeInProgress, ConnectionSpent, UnwritableHead."""
        if self._is_server:
            raise CodecMisuse("a server does not open streams")
        if not self.is_idle:
            if self.is_finished or self.is_output_ended or not self._keeps_alive:
                raise ConnectionSpent("the connection takes no further request", next_step="open another")
            raise ExchangeInProgress("the exchange before has not ended both ways yet")
        plan = self._write_request(headers, end_stream)
        self._begin_exchange()
        self._is_head = plan.start[0] == b"HEAD"
        self._upgrade = plan.upgrade
        self._awaits_continue = not end_stream and any(name == b"expect" for name, _ in plan.fields)
        self._receiving = Receiving.HEAD
        if plan.upgrade:
            self._sending = Sending.BEFORE_101
        elif end_stream:
            self._sending = Sending.ENDED
        else:
            self._send_content(plan.content)
        return self._stream

    def send_headers(self, stream_id: int, headers: Sequence[Header], end_stream: bool = False) -> None:
        """Server: a response (any 1xx first), then trailers. Client: trailers. Trailers end the stream."""
        if self._is_gone(stream_id):
            return
        if self._sending != Sending.HEAD:
            self._send_trailers(headers)
            return
        if headers and headers[0][1][:1] == b"1":
            self._send_informational(headers, end_stream)
            return
        plan = self._write_response(headers, end_stream)
        status = plan.start[0]
        self._awaits_continue = False
        self._upgrade = ()
        if end_stream:
            self._sent_all()
        elif self._is_head or status in (b"204", b"304"):
            self._sending = Sending.UNWANTED
        else:
            self._send_content(plan.content)

    def _send_content(self, content: int) -> None:
        self._send_left = content
        self._sending = Sending.CHUNKED if content == CHUNKED else Sending.LENGTH

    def _send_informational(self, headers: Sequence[Header], end_stream: bool) -> None:
        if end_stream:
            raise CodecMisuse("an informational response does not end a stream")
        plan = self._plan_response(headers, end_stream)
        if plan.start[0] == b"101":
            if not plan.upgrade or not {*plan.upgrade} <= {*self._upgrade}:
                raise CodecMisuse(f"101 names {plan.upgrade}, the request offered {self._upgrade}")
            self._keeps_alive = False
            self._sending, self._receiving = Sending.RAW, Receiving.RAW
        self._awaits_continue = False
        self._write_head(plan)

    def _send_trailers(self, headers: Sequence[Header]) -> None:
        if self._sending == Sending.CHUNKED:
            self._write_end(writing.plan_trailers(headers))
            self._sent_all()
        elif self._sending in (Sending.LENGTH, Sending.UNWANTED):
            self._end_message()  # no place for them here; they may be dropped (RFC 9110 6.5)
        elif self._sending != Sending.ENDED:
            raise CodecMisuse("headers in the middle of a connection that changed its protocol")

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        """Queue a body piece; copied."""
        if self._is_gone(stream_id):
            return
        size = len(data)
        if size and self._admit_data(size):
            self._write_data(data)
        if end_stream:
            self._end_message()

    def frame_around(self, stream_id: int, payload_bytes: int) -> tuple[bytes, bytes] | None:
        """What goes before and after a body piece that the caller writes itself, uncopied; None: drop it.

        Write take_output() before it. To end the message, call end_stream() afterwards.
        """
        if self._is_gone(stream_id) or not payload_bytes or not self._admit_data(payload_bytes):
            return None
        return self._frame(payload_bytes)

    def _admit_data(self, size: int) -> bool:
        """Account for content; False if it is to be dropped."""
        state = self._sending
        if state == Sending.LENGTH:
            if size > self._send_left:
                self._finish()
                raise CodecMisuse("content is longer than its content-length")
            self._send_left -= size
        elif state in (Sending.UNWANTED, Sending.ENDED):
            return False
        elif state not in _WITH_CONTENT:
            raise CodecMisuse("content before the response's head, or before the 101")
        return True

    def end_stream(self, stream_id: int) -> None:
        """End our side's message. On a connection that changed its protocol: end our direction."""
        if not self._is_gone(stream_id):
            self._end_message()

    def _end_message(self) -> None:
        match self._sending:
            case Sending.CHUNKED:
                self._write_end([])
            case Sending.LENGTH:
                if self._send_left:
                    self._finish()
                    raise CodecMisuse(f"content ends {self._send_left} octets before its content-length")
                self._write_end([])
            case Sending.UNWANTED:
                self._write_end([])
            case Sending.RAW:
                self.is_output_ended = True
            case Sending.ENDED:
                return
            case _:
                raise CodecMisuse("the end of a message that has not begun, or before its 101")
        self._sent_all()

    def sendable(self, stream_id: int) -> int:
        """Body octets that may be sent now: none before a 101 or a response's head, else any number."""
        if self._is_gone(stream_id) or self._sending not in _WITH_CONTENT:
            return 0
        return self._send_left if self._sending == Sending.LENGTH else _UNBOUNDED

    # The octets

    def _write_request(self, headers: Sequence[Header], end_stream: bool) -> HeadPlan:
        plan = writing.plan_request(headers, end_stream=end_stream)
        self._write_head(plan)
        return plan

    def _write_response(self, headers: Sequence[Header], end_stream: bool) -> HeadPlan:
        plan = self._plan_response(headers, end_stream)
        self._write_head(plan)
        return plan

    def _plan_response(self, headers: Sequence[Header], end_stream: bool) -> HeadPlan:
        return writing.plan_response(
            headers, end_stream=end_stream, is_to_head=self._is_head, is_last=not self._keeps_alive
        )

    def _write_head(self, plan: HeadPlan) -> None:
        self._out += writing.encode_head(writing.start_line(plan), plan.fields)

    def _write_data(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending == Sending.CHUNKED:
            self._out += b"%x\r\n" % len(data)
            self._out += data
            self._out += b"\r\n"
        else:
            self._out += data

    def _frame(self, size: int) -> tuple[bytes, bytes]:
        if self._sending == Sending.CHUNKED:
            return b"%x\r\n" % size, b"\r\n"
        return b"", b""

    def _write_end(self, trailers: list[Header]) -> None:
        if self._sending == Sending.CHUNKED:
            self._out += writing.encode_head(b"0", trailers) if trailers else _LAST_CHUNK
