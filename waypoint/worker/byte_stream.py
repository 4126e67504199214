"""The inner seam: a stream of bytes both ways, whatever carries it (a tunnel, or a socket).

Invariants that every implementation keeps:
- `write` never blocks and never fails; what the carrier does not take is kept, counted by `backlog_bytes`.
  A writer stops when `is_congested` and goes on at `on_drained`: so the backlog is bounded by the high water
  mark and one write.
- After `pause`, no `on_data` until `resume`; what the carrier still brings is bounded by its own window.
- `on_lost` is the last call, exactly once, unless this side ended it with `close` or `abort`: then none.
"""

from __future__ import annotations

from typing import Final, Protocol

from transport.errors import MeshError

HIGH_WATER_BYTES: Final = 256 * 1024
LOW_WATER_BYTES: Final = 64 * 1024


class StreamHandler(Protocol):
    """Who reads the stream."""

    def on_data(self, data: memoryview) -> None:
        """Bytes, valid during the call only."""

    def on_eof(self) -> None:
        """The other end sends no more; the way to it stays open."""

    def on_drained(self) -> None:
        """The backlog has fallen below the low water mark, having been above the high one."""

    def on_lost(self, error: MeshError | None) -> None:
        """Both directions are over. None: in order."""


class ByteStream(Protocol):
    """One end of a byte stream. Inert until `start`."""

    @property
    def backlog_bytes(self) -> int:
        """What was written and the carrier has not taken."""

    @property
    def is_congested(self) -> bool:
        """The backlog is above the high water mark: write no more for now. Then `on_drained` follows."""

    def start(self, handler: StreamHandler) -> None:
        """Deliver to `handler` from now on; a later call hands the stream to another handler."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, after all that was written before. A memoryview is copied where it has to be kept."""

    def end(self) -> None:
        """Send no more after what was written (half-close); idempotent."""

    def close(self) -> None:
        """Close both directions once what was written is sent; nothing is delivered any more."""

    def abort(self) -> None:
        """Close at once, as a reset where the carrier has one; nothing is delivered any more."""

    def pause(self) -> None:
        """Deliver nothing until `resume`."""

    def resume(self) -> None:
        """Deliver again."""


class NobodyHandler:
    """Stands in when a stream's handler is gone."""

    def on_data(self, data: memoryview) -> None: ...

    def on_eof(self) -> None: ...

    def on_drained(self) -> None: ...

    def on_lost(self, error: MeshError | None) -> None: ...


NOBODY: Final = NobodyHandler()
