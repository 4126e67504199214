"""RST_STREAM, WINDOW_UPDATE, SETTINGS, PING, GOAWAY and PRIORITY in the lean codec (RFC 9113 6)."""

from __future__ import annotations

from transport.http2 import frames
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault, protocol_error
from transport.http2.events import GoAwayReceived, PeerSettings, PingAcked, StreamReset, WindowOpened
from transport.http2.lean_messages import MessageHalf
from transport.http2.settings import MAX_STREAM_ID, MAX_WINDOW, Http2Settings, Role
from transport.http2.stream import Stream


class ControlHalf(MessageHalf):
    """Takes in control frames whose size and place in the sequence are checked already."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        super().__init__(role, settings)
        self._has_peer_settings = False
        self._peer_goaway_last = MAX_STREAM_ID
        self._peer_max_header_list: int | None = None
        self._is_peer_connect_protocol = False

    def _on_rst_stream(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise protocol_error("rst_stream_on_idle_stream")
            self._guard.late_frame()
            return
        has_received = stream.in_window != self._stream_window or stream.in_pending
        is_early = not (stream.has_responded and (stream.has_sent_data or has_received))
        self._forget(stream, was_reset=True, is_by_peer=True)
        self._events.append(StreamReset(stream_id, code))
        if is_early and self._is_server:
            self._guard.early_end()

    def _on_window_update(self, stream_id: int, increment: int) -> None:
        self._guard.window_update(self._out_credit - self._out_window)
        if stream_id == 0:
            if not increment:
                raise protocol_error("window_increment_0")
            was_low = self._out_window < self.peer_max_frame
            self._out_window += increment
            self._out_credit += increment
            if self._out_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overflow")
            if was_low and self._out_window > 0 and self._streams:
                self._events.append(WindowOpened(0))
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise protocol_error("window_update_on_idle_stream")
            return
        if not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "window_increment_0")
            return
        if stream.out_window + increment > MAX_WINDOW:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow")
        else:
            self._open_window(stream, increment)

    def _open_window(self, stream: Stream, increment: int) -> None:
        was_low = stream.out_window < self.peer_max_frame
        stream.out_window += increment
        if was_low and stream.out_window > 0 and not stream.is_local_closed:
            self._events.append(WindowOpened(stream.id))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("settings_on_a_stream")
        if flags & frames.ACK:
            self._on_settings_ack()
            return
        if not self._has_peer_settings:
            self._has_peer_settings = True
            self._set_peer_streams(None)
        else:
            self._guard.control_frame(self._in_credit - self._in_window)
        for setting, value in frames.parse_settings(payload):
            self._apply_setting(setting, value)
        self._out += frames.SETTINGS_ACK
        self._guard.reply()
        self._events.append(
            PeerSettings(
                self._peer_initial_window,
                self.peer_max_frame,
                self.peer_max_streams,
                self._peer_max_header_list,
                self._is_peer_connect_protocol,
            )
        )

    def _apply_setting(self, setting: int, value: int) -> None:
        match setting:
            case frames.SETTING_HEADER_TABLE_SIZE:
                self._encoder.limit_table(value)
            case frames.SETTING_ENABLE_PUSH if value and not self._is_server:
                raise protocol_error("server_enabled_push")
            case frames.SETTING_MAX_CONCURRENT_STREAMS:
                self._set_peer_streams(value)
            case frames.SETTING_INITIAL_WINDOW_SIZE:
                self._change_out_windows(value - self._peer_initial_window)
                self._peer_initial_window = value
            case frames.SETTING_MAX_FRAME_SIZE:
                self.peer_max_frame = value
            case frames.SETTING_MAX_HEADER_LIST_SIZE:
                self._peer_max_header_list = value
            case frames.SETTING_ENABLE_CONNECT_PROTOCOL:
                if self._is_peer_connect_protocol and not value:  # RFC 8441 3
                    raise protocol_error("connect_protocol_withdrawn")
                self._is_peer_connect_protocol = value == 1

    def _change_out_windows(self, delta: int) -> None:
        """6.9.2: a new initial window moves the window of every open stream; it may become negative."""
        for stream in self._streams.values():
            if stream.out_window + delta > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow")
            if delta > 0:
                self._open_window(stream, delta)
            else:
                stream.out_window += delta

    def _on_settings_ack(self) -> None:
        if self._is_settings_acked:
            self._guard.control_frame(self._in_credit - self._in_window)
            return
        self._is_settings_acked = True
        delta = self._settings.initial_window - self._stream_window
        if self._is_server and delta:
            self._stream_window += delta
            for stream in self._streams.values():
                stream.in_window += delta

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("ping_on_a_stream")
        if flags & frames.ACK and payload in self._open_pings:
            self._open_pings.remove(payload)
            self._events.append(PingAcked(payload))
            return
        self._guard.control_frame(self._in_credit - self._in_window)
        if not flags & frames.ACK:
            self._out += frames.ping(payload, is_ack=True)
            self._guard.reply()

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("goaway_on_a_stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
        if self._has_peer_goaway:
            self._guard.control_frame(self._in_credit - self._in_window)
        last = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        self._has_peer_goaway = True
        self._peer_goaway_last = last = min(last, self._peer_goaway_last)
        self._events.append(GoAwayReceived(last, int.from_bytes(payload[4:8], "big"), payload[8:]))
        if self._is_server:
            return
        for stream in [each for each in self._streams.values() if each.id > last]:
            self._forget(stream, was_reset=True)
            self._events.append(StreamReset(stream.id, ErrorCode.REFUSED_STREAM, reason="goaway"))

    def _on_priority(self, stream_id: int, size: int) -> None:
        """Deprecated and without effect (5.3.2); 6.3 still asks for its size and stream."""
        if not stream_id:
            raise protocol_error("priority_on_stream_0")
        self._guard.priority()
        if size != 5:
            stream = self._streams.get(stream_id)
            if stream is None:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._stream_error(stream, ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
