"""Guards against a peer that makes us work for nothing (authz-cases 11). Counts only; no time.

Each guard compares what the peer did with an allowance that grows with useful work, and raises
ConnectionFault (ENHANCE_YOUR_CALM, one of the `Flood` names) when the allowance is passed. The codec owns
the counters of work and calls the guard only for frames that are not DATA with content, so the hot path
pays nothing.
"""

from __future__ import annotations

import enum

from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault
from transport.http2.settings import FloodLimits


class Flood(enum.StrEnum):
    """The names of the floods, as they stand in ConnectionFailed.reason."""

    RAPID_RESET = "rapid_reset_flood"
    CONTROL = "ping_or_settings_flood"
    REPLIES = "reply_queue_full"
    CONTINUATION = "continuation_flood"
    HEADER_BLOCK = "header_block_too_large"
    EMPTY_DATA = "empty_data_flood"
    WINDOW_UPDATE = "window_update_flood"
    PRIORITY = "priority_flood"
    SETTINGS_ENTRIES = "settings_too_long"
    LATE_FRAMES = "late_frame_flood"


def flooded(flood: Flood) -> ConnectionFault:
    """The fault that ends a connection for this flood."""
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, flood.value)


class FloodGuard:
    """Counters of one connection. `streams` and `data_frames_sent` are kept up to date by the codec."""

    __slots__ = (
        "_control",
        "_control_base",
        "_early_ends",
        "_early_ends_at_once",
        "_late",
        "_limits",
        "_priorities",
        "_streams_before",
        "_updates",
        "data_frames_sent",
        "empty_run",
        "queued_replies",
        "streams",
    )

    def __init__(self, limits: FloodLimits) -> None:
        self._limits = limits
        self.streams = 0
        self.data_frames_sent = 0
        self.queued_replies = 0  # set to 0 when the output is taken
        self._control = 0
        self._control_base = 0
        self._early_ends = 0
        self._early_ends_at_once = 0
        self._streams_before = 0
        self.empty_run = 0
        self._late = 0
        self._priorities = 0
        self._updates = 0

    def begin_input(self) -> None:
        """A piece of input comes: what it does to streams that it opens itself is also judged alone."""
        self._early_ends_at_once = 0
        self._streams_before = self.streams

    def early_end(self) -> None:
        """A stream ended before it was of use: reset by the peer, or by us for the peer's fault."""
        self._early_ends_at_once += 1
        opened = self.streams - self._streams_before
        if self._limits.resets_at_once < self._early_ends_at_once <= opened:
            raise flooded(Flood.RAPID_RESET)
        self._early_ends += 1
        if self._early_ends > self._limits.resets and self._early_ends * 2 >= self.streams:
            raise flooded(Flood.RAPID_RESET)

    def control_frame(self, bytes_received: int) -> None:
        """A PING or SETTINGS that asks for an answer, or an answer that we did not ask for."""
        self._control += 1
        allowance = self._limits.control_frames + self._work(bytes_received) - self._control_base
        if self._control > allowance:
            raise flooded(Flood.CONTROL)

    def renew_control(self, bytes_received: int) -> None:
        """Our own keepalive ticked."""
        self._control = 0
        self._control_base = self._work(bytes_received)

    def _work(self, bytes_received: int) -> int:
        return self.data_frames_sent + bytes_received // 16_384

    def reply(self) -> None:
        """One more frame in the output that the peer caused."""
        self.queued_replies += 1
        if self.queued_replies > self._limits.queued_replies:
            raise flooded(Flood.REPLIES)

    def continuation(self, count: int) -> None:
        """The count-th CONTINUATION of one block."""
        if count > self._limits.continuations:
            raise flooded(Flood.CONTINUATION)

    def empty_data(self) -> None:
        """DATA without content and without END_STREAM."""
        self.empty_run += 1
        if self.empty_run > self._limits.empty_data:
            raise flooded(Flood.EMPTY_DATA)

    def content(self) -> None:
        """Something of use came: a run of empty DATA is over."""
        self.empty_run = 0

    def window_update(self, bytes_sent: int) -> None:
        """One WINDOW_UPDATE, judged against what we sent."""
        self._updates += 1
        allowance = self._limits.window_updates + 2 * self.streams + 20 * self.data_frames_sent
        if self._updates > allowance + bytes_sent // 1024:
            raise flooded(Flood.WINDOW_UPDATE)

    def priority(self) -> None:
        """PRIORITY or a frame of unknown type."""
        self._priorities += 1
        if self._priorities > self._limits.priorities * (1 + self.streams):
            raise flooded(Flood.PRIORITY)

    def settings_entries(self, count: int) -> None:
        """The entries of one SETTINGS frame."""
        if count > self._limits.settings_entries:
            raise flooded(Flood.SETTINGS_ENTRIES)

    def late_frame(self) -> None:
        """HEADERS or RST_STREAM on a stream that is gone."""
        self._late += 1
        if self._late > self._limits.late_frames + 2 * self.streams:
            raise flooded(Flood.LATE_FRAMES)
