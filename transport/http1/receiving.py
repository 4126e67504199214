"""The receiving half of both codecs: cuts the input into heads, content, trailers and what is held.

Theory of operation. receive() walks over the input by steps. A step belongs to one state, takes a whole piece
(a head, a chunk-size line, as much content as there is) and returns where it ended; if it ends where it
began, the rest waits in `_input` for more. So each octet is judged exactly as it would be in one piece,
however the input was cut. Content is handed out as views of the input; runs of tiny chunks are put together.
"""

from __future__ import annotations

from typing import Final

from transport.http1 import border, grammar, lexing
from transport.http1.errors import Fault
from transport.http1.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    Header,
    HeadersReceived,
    HeadersRejected,
)
from transport.http1.exchange import Receiving, Sending
from transport.http1.meaning import (
    CHUNKED,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    read_request,
    read_response,
    read_trailers,
)
from transport.http1.sending import SendingHalf
from transport.http1.settings import Http1Settings, Role
from transport.http1.writing import error_answer
from transport.http2.error_codes import ErrorCode

_TINY: Final = 1024
_MOST_TINY: Final = 1024  # views weigh more than what they show: chunks of one octet are put together in time
_EMPTY: Final = memoryview(b"")
_CRLF: Final = b"\r\n"


class ReceivingHalf(SendingHalf):
    """From octets to events."""

    def __init__(self, role: Role, settings: Http1Settings) -> None:
        super().__init__(role, settings)
        self._looked_at = 0  # octets of an incomplete head or trailer section in `_input` that were checked
        self._left = 0  # octets of content or of the chunk
        self._extension_bytes = 0
        self._tiny: list[memoryview] = []  # content of this receive() that is no event yet

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        """Take in octets, cut anywhere. Views in the events live until the next call."""
        if self._receiving == Receiving.IGNORED:
            return []
        events = self._events = []
        try:
            self._walk(data)
        except Fault as fault:
            self._fail(fault.reason, fault.status)
        if self._tiny:
            self._flush_tiny()
        self._events = []
        return events

    def resume(self) -> list[Event]:
        """Read what was held; call it when a response has ended or a 101 was sent and `is_held` is set."""
        if not self.is_held or self._receiving == Receiving.HELD:
            return []
        self.is_held = False
        events = self.receive(b"")
        if self._has_peer_ended and not self.is_held:
            events += self.receive_eof()
        return events

    def receive_eof(self) -> list[Event]:
        """The peer will send nothing more. A message that lacks its end is a failed connection."""
        self._has_peer_ended = True
        if self.is_held:
            return []  # resume() comes back to it
        events = self._events = []
        match self._receiving:
            case Receiving.IGNORED:
                pass
            case Receiving.UNTIL_CLOSE:
                events.append(DataReceived(self._stream, _EMPTY, 0, end_stream=True))
                self._finish()
            case Receiving.RAW:
                events.append(DataReceived(self._stream, _EMPTY, 0, end_stream=True))
                self._receiving = Receiving.NOTHING
                if self._sending == Sending.ENDED:
                    self._finish()
            case Receiving.HELD:
                self.is_held = bool(self._upgrade)  # after a 101 it is the end of the new protocol's octets
                self._keeps_alive = False
            case Receiving.HEAD if self._input:
                self._give_up("eof_in_head")
            case Receiving.HEAD if not self._is_server:
                self._give_up("eof_before_response")
            case Receiving.HEAD | Receiving.NOTHING:
                self._finish()
            case _:
                self._give_up("eof_in_content")
        self._events = []
        return events

    @property
    def is_in_head(self) -> bool:
        """A message has begun, and its head is not complete."""
        return self._receiving == Receiving.HEAD and bool(self._input)

    def time_out_head(self) -> list[Event]:
        """Server: the head takes too long. It is answered with 408, and the connection is over."""
        if not self.is_in_head:
            return []
        events = self._events = []
        self._fail("head_took_too_long", 408)
        self._events = []
        return events

    def _give_up(self, reason: str) -> None:
        self._events.append(ConnectionFailed(ErrorCode.CANCEL, reason))
        self._finish()

    def _fail(self, reason: str, status: int) -> None:
        """The peer broke the protocol: one answer if a server still can give one, and the end."""
        if self._tiny:
            self._flush_tiny()
        if self._is_server:
            if self._receiving == Receiving.HEAD:
                self._begin_exchange()
                self._events.append(HeadersRejected(self._stream, status, reason))
                self._out += error_answer(status)
            elif self._sending == Sending.HEAD:
                self._out += error_answer(status)
        self._events.append(ConnectionFailed(ErrorCode.PROTOCOL_ERROR, reason))
        self._finish()

    def _walk(self, data: memoryview | bytes | bytearray) -> None:
        waiting = self._input
        if waiting:
            waiting += data
            if self._still_waits(waiting):
                return
            data = bytes(waiting)
            waiting.clear()
        view = memoryview(data)
        position, size = 0, len(view)
        while position < size:
            if self._receiving == Receiving.HEAD:
                end = self._take_head(view, position)
            else:
                end = self._step(view, position)
            if end == position:
                self._input += view[position:]
                if self._receiving == Receiving.HEAD:
                    self._wait_for_head(self._input)
                return
            self._looked_at = 0
            position = end

    def _still_waits(self, waiting: bytearray) -> bool:
        """Whether what came does not complete what is waited for; looks only at what is new."""
        state = self._receiving
        if state == Receiving.HELD:
            self._hold(len(waiting))
            return True
        if state not in (Receiving.HEAD, Receiving.TRAILERS):
            return False
        if waiting.find(b"\r\n\r\n", max(self._looked_at - 3, 0)) >= 0:
            return False
        if state == Receiving.HEAD:
            self._wait_for_head(waiting)
            return True
        if waiting[:2] == _CRLF:
            return False
        self._wait_for_trailers(waiting)
        return True

    def _step(self, view: memoryview, position: int) -> int:
        """Take one piece; returns its end, or `position` if more must come first."""
        match self._receiving:
            case Receiving.LENGTH:
                return self._take_length(view, position)
            case Receiving.CHUNK_DATA:
                return self._take_chunk_data(view, position)
            case Receiving.CHUNK_NEXT:
                return self._take_chunk_line(view, position, len(_CRLF))
            case Receiving.CHUNK_FIRST:
                return self._take_chunk_line(view, position, 0)
            case Receiving.TRAILERS:
                return self._take_trailers(view, position)
            case Receiving.UNTIL_CLOSE | Receiving.RAW:
                self._deliver(view[position:])
            case Receiving.HELD:
                self._hold(len(view) - position)
                return position
            case Receiving.NOTHING:
                raise Fault("octets_without_request")
            case _:
                pass
        return len(view)

    def _hold(self, size: int) -> None:
        if size > self._settings.max_held:
            raise Fault("held_input_too_long")
        self.is_held = True

    # Heads

    def _wait_for_head(self, waiting: bytearray) -> None:
        """Judge what there is of a head, and remember how far."""
        limit = self._settings.max_head
        start = waiting if len(waiting) <= limit else waiting[:limit]
        border.check_start(start, self._looked_at, is_request=self._is_server)
        if len(waiting) >= limit:
            raise Fault("head_too_large", 431)
        self._looked_at = len(waiting)

    def _take_head(self, view: memoryview, position: int) -> int:
        blank = grammar.blank_line(view, position)
        if blank is None:
            return position
        end = blank.end()
        limit = self._settings.max_head
        if end - position > limit:
            border.check_start(bytes(view[position : position + limit]), 0, is_request=self._is_server)
            raise Fault("head_too_large", 431)
        head = bytes(view[position:end])
        if self._is_server:
            self._on_request(head)
        else:
            self._on_response(head)
        return end

    def _on_request(self, head: bytes) -> None:
        self._events.append(self._begin_request(self._read_request(head)))

    def _begin_request(self, request: RequestHead) -> HeadersReceived:
        self._begin_exchange()
        self._is_head = request.is_head
        self._upgrade = request.upgrade
        if not request.keeps_alive:
            self._keeps_alive = False
        self._sending = Sending.HEAD
        content = request.content
        self._awaits_continue = request.expects_continue and content != 0
        ends = content == 0 and not request.upgrade
        if content == 0:
            self._receiving = Receiving.HELD
        else:
            self._begin_content(content)
        return HeadersReceived(self._stream, request.headers, ends, is_trailers=False)

    def _on_response(self, head: bytes) -> None:
        response = self._read_response(head)
        if response.status < 200:
            self._awaits_continue = False
            self._on_informational(response.status, response.headers)
            return
        self._begin_response(response)
        ends = response.content == 0
        self._events.append(HeadersReceived(self._stream, response.headers, ends, is_trailers=False))
        if ends:
            self._received_all()
        else:
            self._begin_content(response.content)

    def _begin_response(self, response: ResponseHead) -> None:
        self._awaits_continue = False
        if not response.keeps_alive:
            self._keeps_alive = False
        if self._sending == Sending.BEFORE_101:
            self._sending = Sending.ENDED

    def _on_informational(self, status: int, headers: list[Header]) -> None:
        self._informational += 1
        if self._informational > self._settings.max_informational:
            raise Fault("too_many_informational_responses")
        self._events.append(HeadersReceived(self._stream, headers, end_stream=False, is_trailers=False))
        if status == 101:
            self._keeps_alive = False
            self._receiving, self._sending = Receiving.RAW, Sending.RAW

    def _begin_content(self, content: int) -> None:
        self._left = content
        if content == CHUNKED:
            self._receiving = Receiving.CHUNK_FIRST
            self._extension_bytes = 0
        else:
            self._receiving = Receiving.UNTIL_CLOSE if content == UNTIL_CLOSE else Receiving.LENGTH

    # Content

    def _take_length(self, view: memoryview, position: int) -> int:
        end = min(position + self._left, len(view))
        self._left -= end - position
        self._deliver(view[position:end])
        if not self._left:
            self._end_content([])
        return end

    def _take_chunk_data(self, view: memoryview, position: int) -> int:
        end = min(position + self._left, len(view))
        self._left -= end - position
        self._deliver(view[position:end])
        if not self._left:
            self._receiving = Receiving.CHUNK_NEXT
        return end

    def _take_chunk_line(self, view: memoryview, position: int, before: int) -> int:
        """A chunk-size line; `before` is the length of the CRLF that ends the chunk before it."""
        found = (grammar.next_chunk if before else grammar.first_chunk)(view, position)
        limit = self._settings.max_chunk_line
        if found is None or found.end() - position - before > limit:
            self._refuse_chunk_line(bytes(view[position : position + before + limit]), before)
            return position
        size, extensions = found.groups()
        if extensions:
            self._extension_bytes += len(extensions)
            if self._extension_bytes > self._settings.max_chunk_extensions:
                raise Fault("chunk_extensions_too_long")
        self._left = int(size, 16)
        self._receiving = Receiving.CHUNK_DATA if self._left else Receiving.TRAILERS
        return found.end()

    def _refuse_chunk_line(self, start: bytes, before: int) -> None:
        """Say what is wrong with a chunk's end and the next size line, unless it only is incomplete."""
        if before and not _CRLF.startswith(start[:2]):
            raise Fault("chunk_data_longer_than_its_size")
        line = start[before:]
        end = line.find(b"\n")
        if end >= 0:
            raise Fault("chunk_line_malformed" if line[end - 1 : end] == b"\r" else "bare_line_feed")
        if len(line) >= self._settings.max_chunk_line:
            raise Fault("chunk_line_too_long")

    def _take_trailers(self, view: memoryview, position: int) -> int:
        limit = self._settings.max_trailers
        start = bytes(view[position : position + limit])
        if start[:2] == _CRLF:
            self._end_content([])
            return position + 2
        blank = start.find(b"\r\n\r\n")
        section = start if blank < 0 else start[: blank + 4]
        if blank >= 0:
            self._end_content(read_trailers(lexing.lex_trailers(section, self._settings.max_header_count)))
            return position + blank + 4
        self._wait_for_trailers(section)
        return position

    def _wait_for_trailers(self, waiting: bytes | bytearray) -> None:
        limit = self._settings.max_trailers
        border.check_line_ends(waiting if len(waiting) <= limit else waiting[:limit], self._looked_at)
        if len(waiting) >= limit:
            raise Fault("trailers_too_large", 431)
        self._looked_at = len(waiting)

    def _end_content(self, trailers: list[Header]) -> None:
        if self._tiny:
            self._flush_tiny()
        if trailers:
            self._events.append(HeadersReceived(self._stream, trailers, end_stream=True, is_trailers=True))
        else:
            last = self._events[-1] if self._events else None
            if type(last) is DataReceived and last.stream_id == self._stream:
                last.end_stream = True
            else:
                self._events.append(DataReceived(self._stream, _EMPTY, 0, end_stream=True))
        self._received_all()

    def _deliver(self, piece: memoryview) -> None:
        self._awaits_continue = False
        if len(piece) < _TINY:
            self._tiny.append(piece)
            if len(self._tiny) >= _MOST_TINY:
                self._flush_tiny()
            return
        if self._tiny:
            self._flush_tiny()
        self._events.append(DataReceived(self._stream, piece, len(piece), end_stream=False))

    def _flush_tiny(self) -> None:
        pieces = self._tiny
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        self._tiny = []
        self._events.append(DataReceived(self._stream, data, len(data), end_stream=False))

    # The parts that an implementation may do its own way

    def _read_request(self, head: bytes) -> RequestHead:
        method, target, fields = self._lex_request(head)
        return read_request(method, target, fields, self._settings.scheme)

    def _read_response(self, head: bytes) -> ResponseHead:
        status, is_1_0, fields = self._lex_response(head)
        return read_response(status, is_1_0, fields, is_to_head=self._is_head, offered=self._upgrade)

    def _lex_request(self, head: bytes) -> tuple[bytes, bytes, lexing.Fields]:
        return lexing.lex_request(head, self._settings.max_header_count)

    def _lex_response(self, head: bytes) -> tuple[int, bool, lexing.Fields]:
        return lexing.lex_response(head, self._settings.max_header_count)
