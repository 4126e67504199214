"""What a peer's bytes mean. Plain slotted records: they are made once per frame on the hot path.

Events come in wire order. By the time a caller looks at one, the codec has already taken in the whole
input, so a stream may have ended meanwhile; what a caller then sends on it is dropped without harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

# Headers whose values nobody keeps for longer than their message.
SECRETS: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"})


class HeaderList(list[Header]):
    """A list that its codec hands out again for the same octets: whoever gets it leaves it as it is.

    `about` is its readers': what one concludes from the fields it need not conclude again.
    """

    __slots__ = ("about",)

    def __init__(self, headers: Iterable[Header]) -> None:
        super().__init__(headers)
        self.about: object = None


@dataclass(slots=True)
class HeadersReceived:
    """A complete, checked header list, perhaps a HeaderList: a request, a response (1xx too) or trailers."""

    stream_id: int
    headers: list[Header]
    end_stream: bool
    is_trailers: bool


@dataclass(slots=True)
class DataReceived:
    """A piece of a stream's body. `data` views the input and is valid until the next receive().

    `flow_bytes` is to be given back by consumed() once the piece was written onward.
    """

    stream_id: int
    data: memoryview
    flow_bytes: int
    end_stream: bool


# Stream, payload and its size, all of which consumed() is to give back: DATA without an event around it.
Piece: TypeAlias = tuple[int, memoryview, int]


@dataclass(slots=True)
class StreamReset:
    """The stream is over. By the peer, or (`is_local`) by this codec for the reason given.

    GOAWAY makes one with REFUSED_STREAM for each of our streams that the peer did not process.
    """

    stream_id: int
    code: int
    is_local: bool = False
    reason: str = ""


@dataclass(slots=True)
class HeadersRejected:
    """A request that the codec turned away before anyone saw it; nothing is left to do but to log it.

    `status` says how: 431 or 400 was answered, 0 means RST_STREAM without an answer.
    """

    stream_id: int
    status: int
    reason: str


@dataclass(slots=True)
class WindowOpened:
    """A window that was below a full frame has grown: ask sendable() of this stream (0: of every) again."""

    stream_id: int


@dataclass(slots=True)
class PeerSettings:
    """The peer's settings as they now stand, after each SETTINGS frame."""

    initial_window: int
    max_frame: int
    max_streams: int
    max_header_list: int | None
    is_connect_protocol_enabled: bool


@dataclass(slots=True)
class PingAcked:
    """The peer answered our PING of this payload."""

    payload: bytes


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no new streams. Those up to `last_stream_id` go on."""

    last_stream_id: int
    code: int
    debug: bytes


@dataclass(slots=True)
class ConnectionFailed:
    """The peer broke the protocol or flooded us; a GOAWAY is already in the output.

    Only take_output() has an effect afterwards. `reason` is one snake_case name out of a bounded set.
    """

    code: int
    reason: str


Event: TypeAlias = (
    HeadersReceived
    | DataReceived
    | StreamReset
    | HeadersRejected
    | WindowOpened
    | PeerSettings
    | PingAcked
    | GoAwayReceived
    | ConnectionFailed
)
