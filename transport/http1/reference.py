"""The reference codec: the h11 library behind the same seam, as the operator's fallback and as an oracle.

Theory of operation. h11 is milder than we are, so the border stands before it: heads are judged line by line
(border.py) and by their meaning, content by the state machine both codecs share. What passes goes to h11,
and what h11 makes of it is what the caller gets: fields, content, ends of messages. Where h11 refuses what
the border let pass, or sees a message end elsewhere, the connection fails with `refused_by_h11`. Heads,
chunks and trailers that we send are h11's too. One h11 connection lives for one exchange, so that persistence
is judged in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import h11

from transport.http1 import border
from transport.http1.errors import Fault, UnwritableHead
from transport.http1.events import Header
from transport.http1.exchange import Receiving, Sending
from transport.http1.lexing import Fields, sort_fields
from transport.http1.meaning import read_request, read_response, read_trailers
from transport.http1.receiving import ReceivingHalf
from transport.http1.settings import Http1Settings, Role
from transport.http1.writing import HeadPlan, encode_head, start_line

_NO_LIMIT: Final = 2**31
_OF_HEAD_AND_RAW: Final = frozenset(
    {Receiving.HEAD, Receiving.HELD, Receiving.NOTHING, Receiving.RAW, Receiving.IGNORED}
)


class ReferenceCodec(ReceivingHalf):
    """The second implementation of codec.Http1Codec."""

    def __init__(self, role: Role, settings: Http1Settings) -> None:
        super().__init__(role, settings)
        self._role = h11.SERVER if self._is_server else h11.CLIENT
        self._library = self._new_library()
        self._content: list[bytes] = []  # what the border saw of the step's content, beside h11
        self._trailers: list[Header] | None = None  # what it saw of the message's end

    def _new_library(self) -> h11.Connection:
        return h11.Connection(self._role, max_incomplete_event_size=_NO_LIMIT)

    # Receiving

    def _lex_request(self, head: bytes) -> tuple[bytes, bytes, Fields]:
        fields = border.check_head(head, self._settings.max_header_count, is_request=True)
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        read_request(method, target, sort_fields(fields), self._settings.scheme)
        self._library = self._new_library()
        request = self._next_after(head)
        if not isinstance(request, h11.Request):
            raise Fault("refused_by_h11")
        return request.method, request.target, _plain(request.headers)

    def _lex_response(self, head: bytes) -> tuple[int, bool, Fields]:
        fields = border.check_head(head, self._settings.max_header_count, is_request=False)
        status, is_1_0 = int(head[9:12]), head[:8] == b"HTTP/1.0"
        read_response(status, is_1_0, sort_fields(fields), is_to_head=self._is_head, offered=self._upgrade)
        response = self._next_after(head)
        if not isinstance(response, h11.Response | h11.InformationalResponse):
            raise Fault("refused_by_h11")
        return response.status_code, response.http_version == b"1.0", _plain(response.headers)

    def _step(self, view: memoryview, position: int) -> int:
        before = self._receiving
        if before in _OF_HEAD_AND_RAW:
            return super()._step(view, position)
        self._content, self._trailers = [], None
        end = super()._step(view, position)
        if end > position:
            self._compare(bytes(view[position:end]))
        return end

    def _deliver(self, piece: memoryview) -> None:
        if self._receiving in _OF_HEAD_AND_RAW:
            super()._deliver(piece)
        else:
            self._content.append(bytes(piece))

    def _end_content(self, trailers: list[Header]) -> None:
        self._trailers = trailers

    def _compare(self, octets: bytes) -> None:
        """Give h11 what the border took, and the caller what h11 made of it."""
        content, trailers = b"", None
        event = self._next_after(octets)
        while event not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                trailers = read_trailers(_plain(event.headers))
                break
            event = self._next()
        if content != b"".join(self._content) or trailers != self._trailers:
            raise Fault("refused_by_h11")
        if content:
            super()._deliver(memoryview(content))
        if trailers is not None:
            super()._end_content(trailers)

    def _next_after(self, octets: bytes) -> object:
        try:
            self._library.receive_data(octets)
        except h11.RemoteProtocolError:
            raise Fault("refused_by_h11") from None
        return self._next()

    def _next(self) -> object:
        try:
            return self._library.next_event()
        except h11.RemoteProtocolError:
            raise Fault("refused_by_h11") from None

    # Sending

    def _send(self, event: h11.Event) -> None:
        try:
            octets = self._library.send(event)
        except h11.LocalProtocolError as error:
            raise UnwritableHead(f"h11 does not send this: {error}") from error
        self._out += octets or b""

    def _write_head(self, plan: HeadPlan) -> None:
        encode_head(start_line(plan), plan.fields)  # judges the values; the octets are h11's
        try:
            self._write_events(plan)
        except h11.LocalProtocolError as error:  # an event may refuse its fields, as a value that is blank
            raise UnwritableHead(f"h11 does not write this: {error}") from error

    def _write_events(self, plan: HeadPlan) -> None:
        first, target = plan.start
        if target:
            self._library = self._new_library()
            self._send(h11.Request(method=first, target=target, headers=plan.fields))
            if plan.upgrade:
                self._send(h11.EndOfMessage())
        elif first[:1] == b"1":
            reason = start_line(plan)[13:]
            self._send(h11.InformationalResponse(status_code=int(first), headers=plan.fields, reason=reason))
        else:
            reason = start_line(plan)[13:]
            self._send(h11.Response(status_code=int(first), headers=plan.fields, reason=reason))

    def _write_data(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending == Sending.RAW:
            self._out += data
        else:
            self._send(h11.Data(data=bytes(data)))

    def _frame(self, size: int) -> tuple[bytes, bytes]:
        if self._sending == Sending.RAW:
            return b"", b""
        stand_in = cast("bytes", range(size))  # h11 passes on anything that has a length
        pieces = self._library.send_with_data_passthrough(h11.Data(data=stand_in)) or []
        return (bytes(pieces[0]), bytes(pieces[2])) if len(pieces) == 3 else (b"", b"")

    def _write_end(self, trailers: list[Header]) -> None:
        encode_head(b"0", trailers)
        self._send(h11.EndOfMessage(headers=trailers))


def _plain(headers: Sequence[Header]) -> Fields:
    return sort_fields([(bytes(name), bytes(value)) for name, value in headers])
