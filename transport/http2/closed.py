"""The little that is kept of streams that are gone, to judge frames that come late (RFC 9113 5.1, 5.1.1)."""

from __future__ import annotations

from typing import Final

_REMEMBERED_STREAMS: Final = 128
_REMEMBERED_GAPS: Final = 16


class ClosedStreams:
    """Bounded memory: at the bound the oldest is forgotten, which costs at most one needless RST_STREAM."""

    __slots__ = ("_gaps", "_streams")

    def __init__(self) -> None:
        self._streams: dict[int, bool] = {}  # id -> we have sent RST_STREAM; oldest first
        self._gaps: list[range] = []

    def remember(self, stream_id: int, *, is_reset_by_us: bool) -> None:
        """This stream is gone."""
        streams = self._streams
        if len(streams) >= _REMEMBERED_STREAMS:
            del streams[next(iter(streams))]
        streams[stream_id] = is_reset_by_us

    def is_reset_by_us(self, stream_id: int) -> bool:
        """The peer may not have seen our RST_STREAM yet: what it sends is to be ignored."""
        return self._streams.get(stream_id, False)

    def note_opened(self, stream_id: int, *, after: int) -> None:
        """The peer opened this stream; ids that it skipped since `after` are closed from now on (5.1.1)."""
        expected = after + 2 if after else 1
        if stream_id != expected:
            if len(self._gaps) >= _REMEMBERED_GAPS:
                del self._gaps[0]
            self._gaps.append(range(expected, stream_id, 2))

    def was_skipped(self, stream_id: int) -> bool:
        """Whether this id was never used: using it now is an error of the connection."""
        return any(stream_id in gap for gap in self._gaps)
