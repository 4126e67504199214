"""What a codec is told at birth: role, windows, sizes and the limits of its flood guards."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB

DEFAULT_WINDOW = 65_535  # RFC 9113 6.9.2: every window before SETTINGS or WINDOW_UPDATE say otherwise
MAX_WINDOW = 2**31 - 1
DEFAULT_MAX_FRAME = 16_384
MAX_MAX_FRAME = 2**24 - 1
MAX_STREAM_ID = 2**31 - 1
UNLIMITED_STREAMS = 2**31 - 1


class Role(enum.Enum):
    """Which end of the connection this codec is."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class FloodLimits:
    """Bounds on what a peer may make us do for nothing. Passing one ends the connection: ENHANCE_YOUR_CALM.

    The codec knows no time, so bounds are counts that grow with useful work (data sent and received,
    streams). Those for PING and SETTINGS also start anew whenever our own side sends a PING: the caller's
    keepalive is a clock that the peer cannot speed up.
    """

    resets: int = (
        500  # streams ended early by the peer's fault, when they are also half of all streams or more
    )
    resets_at_once: int = 500  # the same of streams that were opened in one piece of input
    control_frames: int = (
        1000  # PING and SETTINGS beyond one per data frame and per 16 KiB, between own PINGs
    )
    queued_replies: int = 1000  # acknowledgements and resets that wait in the output
    continuations: int = 64  # CONTINUATION frames in one header block
    empty_data: int = 1  # DATA frames in a row that are empty and do not end the stream
    window_updates: int = 100  # + 2 per stream, 20 per data frame sent, 1 per KiB sent
    priorities: int = 100  # x (1 + streams so far); unknown frame types count as well
    settings_entries: int = 32  # in one SETTINGS frame
    late_frames: int = 1000  # frames on streams that are gone, + 10 per stream so far


@dataclass(frozen=True, slots=True)
class Http2Settings:
    """Both roles' settings; defaults are the server's of ztunnel-facts 2.7. `for_client()` gives the
    client's.

    All sizes are bytes. `max_concurrent_streams` is advertised by servers only, `assumed_peer_streams`
    bounds a client until the peer's SETTINGS arrive.
    """

    initial_window: int = 4 * MIB
    connection_window: int = 16 * MIB
    max_frame: int = 1 * MIB
    max_header_list: int = 64 * KIB
    max_header_count: int = 100
    max_concurrent_streams: int = 200
    assumed_peer_streams: int = 100
    enable_connect_protocol: bool = False
    limits: FloodLimits = field(default_factory=FloodLimits)

    def __post_init__(self) -> None:
        if not 1 <= self.initial_window <= MAX_WINDOW:
            raise ValueError(f"initial_window must be 1..{MAX_WINDOW}, is {self.initial_window}")
        if not DEFAULT_WINDOW <= self.connection_window <= MAX_WINDOW:
            raise ValueError(
                f"connection_window must be {DEFAULT_WINDOW}..{MAX_WINDOW}, is {self.connection_window}"
            )
        if not DEFAULT_MAX_FRAME <= self.max_frame <= MAX_MAX_FRAME:
            raise ValueError(f"max_frame must be {DEFAULT_MAX_FRAME}..{MAX_MAX_FRAME}, is {self.max_frame}")
        for name in ("max_header_list", "max_header_count", "max_concurrent_streams", "assumed_peer_streams"):
            if not 1 <= getattr(self, name) <= UNLIMITED_STREAMS:
                raise ValueError(f"{name} must be 1..{UNLIMITED_STREAMS}, is {getattr(self, name)}")

    @classmethod
    def for_client(cls) -> Http2Settings:
        """The client's defaults: as the server's, but header lists up to 16 KiB."""
        return cls(max_header_list=16 * KIB)
