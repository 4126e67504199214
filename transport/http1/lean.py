"""The default codec: both halves with the patterns of lexing.py and the writers of writing.py, and a memory.

Peers repeat themselves: a client's requests differ in little more than their path, an application's answers
in nothing but the second. So heads that were judged good are remembered with what they mean, and header lists
that were written with their octets, for all connections of a process. What a head means depends on its octets
and the settings alone; a response's on the request too, so those to HEAD and to an offered upgrade are judged
each time. A request's last field is left out of what is remembered: there a proxy puts the request's id.
Heads with a secret in them are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from transport.http1 import writing
from transport.http1.events import DataReceived, Event, Header, HeadersReceived
from transport.http1.exchange import Receiving
from transport.http1.meaning import RequestHead, ResponseHead
from transport.http1.receiving import ReceivingHalf
from transport.http1.settings import Http1Settings, Role
from transport.http1.writing import HeadPlan
from transport.http2.events import SECRETS, HeaderList

_MAX_KNOWN: Final = 512  # heads of each kind; at the bound all are forgotten
_MAX_HEAD_BYTES: Final = 1024
_Head = TypeVar("_Head", RequestHead, ResponseHead)
_Written = dict[tuple[object, ...], tuple[HeadPlan, bytes]]


class _Known:
    """What was judged under the same settings."""

    __slots__ = ("requests", "responses")

    def __init__(self) -> None:
        self.requests: dict[bytes, RequestHead] = {}
        self.responses: dict[bytes, ResponseHead] = {}


_known: dict[Http1Settings, _Known] = {}  # a process has a few settings
_written_requests: _Written = {}  # without the last field and the blank line
_written_responses: _Written = {}


class LeanCodec(ReceivingHalf):
    """The first implementation of codec.Http1Codec."""

    def __init__(self, role: Role, settings: Http1Settings) -> None:
        super().__init__(role, settings)
        self._known = _known.get(settings) or _known.setdefault(settings, _Known())

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        # A known head that comes alone, or with all of a short content: the long way would say the same.
        if len(data) <= _MAX_HEAD_BYTES and self._receiving == Receiving.HEAD and not self._input:
            octets = bytes(data)
            end = octets.find(b"\r\n\r\n") + 4
            found = self._receive_request(octets) if self._is_server else self._receive_response(octets, end)
            if found is not None:
                return found
        return super().receive(data)

    def _receive_request(self, octets: bytes) -> list[Event] | None:
        request = self._known.requests.get(octets)
        if request is None or request.content or request.upgrade:
            return None
        return [self._begin_request(request)]

    def _receive_response(self, octets: bytes, end: int) -> list[Event] | None:
        if self._is_head or self._upgrade:
            return None
        response = self._known.responses.get(octets[:end])
        if response is None or response.status < 200 or response.content != len(octets) - end:
            return None
        self._begin_response(response)
        stream, content = self._stream, response.content
        events: list[Event] = [HeadersReceived(stream, response.headers, not content, is_trailers=False)]
        if content:
            events.append(DataReceived(stream, memoryview(octets)[end:], content, end_stream=True))
        self._received_all()
        return events

    def _read_request(self, head: bytes) -> RequestHead:
        known = self._known.requests
        return known.get(head) or _remember(known, head, super()._read_request(head))

    def _read_response(self, head: bytes) -> ResponseHead:
        if self._is_head or self._upgrade:
            return super()._read_response(head)
        known = self._known.responses
        return known.get(head) or _remember(known, head, super()._read_response(head))

    def _write_request(self, headers: Sequence[Header], end_stream: bool) -> HeadPlan:
        last = headers[-1]
        if not writing.is_plain(last[0]):
            return super()._write_request(headers, end_stream)
        key = (end_stream, *headers[:-1])
        found = _written_requests.get(key)
        if found is None:
            plan = writing.plan_request(headers[:-1], end_stream=end_stream)
            found = plan, writing.encode_without_end(plan)
            _remember_written(_written_requests, key, found)
        self._out += found[1] + writing.encode_last(last)
        return found[0]

    def _write_response(self, headers: Sequence[Header], end_stream: bool) -> HeadPlan:
        key = (end_stream, self._is_head, self._keeps_alive, *headers)
        found = _written_responses.get(key)
        if found is None:
            plan = self._plan_response(headers, end_stream)
            found = plan, writing.encode_head(writing.start_line(plan), plan.fields)
            _remember_written(_written_responses, key, found)
        self._out += found[1]
        return found[0]


def _remember(known: dict[bytes, _Head], head: bytes, meaning: _Head) -> _Head:
    if len(head) <= _MAX_HEAD_BYTES and not _has_secret(meaning.headers):
        _make_room(known)
        meaning.headers = HeaderList(meaning.headers)
        known[head] = meaning
    return meaning


def _remember_written(known: _Written, key: tuple[object, ...], found: tuple[HeadPlan, bytes]) -> None:
    plan, octets = found
    if len(octets) <= _MAX_HEAD_BYTES and not _has_secret(plan.fields):
        _make_room(known)
        known[key] = found


def _make_room(known: dict[bytes, _Head] | _Written) -> None:
    if len(known) >= _MAX_KNOWN:
        known.clear()


def _has_secret(headers: Iterable[Header]) -> bool:
    return any(name in SECRETS for name, _ in headers)
