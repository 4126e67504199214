"""What complete header blocks mean to the lean codec, and how its streams end early (RFC 9113 5.4.2, 8)."""

from __future__ import annotations

from transport.http2 import frames
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault, protocol_error
from transport.http2.events import HeadersReceived, HeadersRejected, StreamReset
from transport.http2.headers import HeadFault, RequestHead, ResponseHead, check_request, check_response
from transport.http2.hpack.decoder import Decoder, HeaderBlock
from transport.http2.hpack.table import HpackError
from transport.http2.lean_sending import SendingHalf
from transport.http2.settings import Http2Settings, Role
from transport.http2.stream import Stream, trailers_fault


class MessageHalf(SendingHalf):
    """Turns header blocks into messages, or into the end of their streams."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        super().__init__(role, settings)
        self._decoder = Decoder(settings.max_header_list, settings.max_header_count)
        self._data_stream: Stream | None = None  # whose DATA is being delivered; None: it is skipped
        self._is_settings_acked = False

    def _stream_error(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """5.4.2: the peer's fault ends this stream only."""
        self._out += frames.rst_stream(stream.id, code)
        if self._data_stream is stream:
            self._data_stream = None
        self._forget(stream, was_reset=True)
        self._events.append(StreamReset(stream.id, code, is_local=True, reason=reason))
        self._guard.reply()
        self._guard.early_end()

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        if self._data_stream is not None and self._data_stream.id == stream_id:
            self._data_stream = None
        super().reset(stream_id, code)

    def _answer_late(self, stream_id: int) -> None:
        """DATA or HEADERS on a stream that is gone (5.1): RST_STREAM once, unless we reset it ourselves."""
        if not self._closed.is_reset_by_us(stream_id):
            self._out += frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED)
            self._closed.remember(stream_id, is_reset_by_us=True)
            self._guard.reply()

    def _close_remote(self, stream: Stream) -> None:
        stream.body_left = 0
        super()._close_remote(stream)

    def _on_block(self, stream_id: int, encoded: bytes, ends: bool) -> None:
        """A complete header block. It is decoded whatever becomes of it: the tables must stay in step."""
        try:
            block = self._decoder.decode(encoded)
        except HpackError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header_block_undecodable") from None
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_server and stream_id > self.highest_peer_stream:
                self._on_request(stream_id, block, ends)
            else:
                self._on_late_headers(stream_id)
        elif stream.is_remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "headers_after_end_of_stream")
        elif stream.has_head:
            self._on_trailers(stream, block, ends)
        else:
            self._on_response(stream, block, ends)

    def _on_late_headers(self, stream_id: int) -> None:
        if not self._was_opened(stream_id):
            raise protocol_error("headers_on_idle_stream")
        if self._closed.was_skipped(stream_id):
            raise protocol_error("stream_id_not_increasing")
        self._answer_late(stream_id)
        self._guard.late_frame()

    def _on_request(self, stream_id: int, block: HeaderBlock, ends: bool) -> None:
        self._closed.note_opened(stream_id, after=self.highest_peer_stream)
        self.highest_peer_stream = stream_id
        self._guard.streams += 1
        has_said_goodbye = self._goaway_sent is not None and stream_id > self._goaway_sent
        if has_said_goodbye or len(self._streams) >= self._settings.max_concurrent_streams:
            self._refuse(stream_id)
            return
        try:
            request = self._judge_request(block, ends)
        except HeadFault as fault:
            self._reject(stream_id, fault, ends)
            return
        stream = Stream(stream_id, request, self._peer_initial_window, self._stream_window)
        stream.has_head = True
        stream.is_tunnel = request.is_connect
        stream.body_left = request.content_length
        self._streams[stream_id] = stream
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream_id, block.headers, ends, is_trailers=False))

    def _judge_request(self, block: HeaderBlock, ends: bool) -> RequestHead:
        """check_request, remembered with a cached block."""
        verdict = block.request
        if verdict is not None and verdict[0] is ends:
            return verdict[1]
        if block.excess:
            raise HeadFault(431, block.excess)
        request = check_request(
            block.headers,
            end_stream=ends,
            is_connect_protocol_enabled=self._settings.enable_connect_protocol,
        )
        block.request = (ends, request)
        return request

    def _refuse(self, stream_id: int) -> None:
        """5.1.2: more streams than we advertise, or after our GOAWAY. The client may safely try elsewhere."""
        self._out += frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM)
        self._closed.remember(stream_id, is_reset_by_us=True)
        self._guard.reply()
        if self._is_settings_acked:  # before, it could not know
            self._guard.early_end()

    def _reject(self, stream_id: int, fault: HeadFault, ends: bool) -> None:
        """Answer a request that nobody is to see: with its status, or RST_STREAM."""
        if fault.status:
            self._write_headers(stream_id, [(b":status", b"%d" % fault.status)], end_stream=True)
            if not ends:
                self._out += frames.rst_stream(stream_id, ErrorCode.NO_ERROR)
        else:
            self._out += frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        self._closed.remember(stream_id, is_reset_by_us=True)
        self._events.append(HeadersRejected(stream_id, fault.status, fault.reason))
        self._guard.reply()
        self._guard.early_end()

    def _on_response(self, stream: Stream, block: HeaderBlock, ends: bool) -> None:
        if block.excess:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, block.excess)
            return
        try:
            head = self._judge_response(block, ends, stream.request)
        except HeadFault as fault:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, fault.reason)
            return
        if head.is_informational:
            self._guard.control_frame(self._in_credit - self._in_window)
        else:
            stream.has_head = True
            stream.body_left = head.content_length
            stream.is_tunnel = stream.request.is_connect and head.status < 300
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream.id, block.headers, ends, is_trailers=False))

    def _judge_response(self, block: HeaderBlock, ends: bool, request: RequestHead) -> ResponseHead:
        """check_response, remembered with a cached block."""
        verdict = block.response
        if verdict is not None and verdict[0] is ends and verdict[1] is request:
            return verdict[2]
        head = check_response(block.headers, end_stream=ends, request=request)
        block.response = (ends, request, head)
        return head

    def _on_trailers(self, stream: Stream, block: HeaderBlock, ends: bool) -> None:
        reason = trailers_fault(stream, block.headers, block.excess, ends)
        if reason:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, reason)
            return
        self._close_remote(stream)
        self._events.append(HeadersReceived(stream.id, block.headers, end_stream=True, is_trailers=True))
