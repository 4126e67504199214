"""Records on their way to the control process's log: a bounded queue, sent in batches.

When the control process is slow the newest records are lost and counted, never waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from proto.mycelia import worker_pb2 as pb
from transport.reactor import Reactor

_FLUSH_S = 0.1
_BATCH = 256

# Makes a message of encoded records and the number of lost ones.
Pack = Callable[[list[bytes], int], pb.ToControl]


class RecordQueue:
    """`send` gets each batch and says whether there was room for it."""

    def __init__(
        self,
        reactor: Reactor,
        send: Callable[[pb.ToControl], bool],
        pack: Pack,
        *,
        limit: int,
        is_on: bool,
    ) -> None:
        self._reactor = reactor
        self._send = send
        self._pack = pack
        self._limit = limit
        self._records: list[bytes] = []
        self._dropped = 0
        self._is_flush_due = False
        self.is_on = is_on

    def put(self, record: bytes) -> None:
        """An encoded record; lost if the queue is full."""
        if len(self._records) >= self._limit:
            self._dropped += 1
            return
        self._records.append(record)
        self._plan_flush()

    @property
    def has_room(self) -> bool:
        """Whether the next record will be kept; one that will not need not be made. Counts as asked for."""
        if len(self._records) < self._limit:
            return True
        self._dropped += 1
        return False

    def flush(self) -> None:
        """Send what there is, as far as the control process takes it."""
        self._is_flush_due = False
        records = self._records
        while records:
            if not self._send(self._pack(records[:_BATCH], self._dropped)):
                break
            self._dropped = 0
            del records[:_BATCH]
        if records:
            self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._reactor.call_later(_FLUSH_S, self.flush)


def joined(records: list[bytes]) -> bytes:
    """The wire form of a message whose field 1 repeats the records: a concatenation of its fields."""
    pieces: list[bytes] = []
    for record in records:
        pieces.append(b"\x0a" + _varint(len(record)))  # field 1, length-delimited
        pieces.append(record)
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
