"""gRPC's message framing, sans-IO: one flag byte, four length bytes, the message.

Invariant: a message longer than the limit is refused at its length, before any of it is kept.
"""

from __future__ import annotations

import struct

from transport.grpc.status import GrpcError, GrpcStatus

PREFIX = struct.Struct(">BI")


def encode(message: bytes) -> bytes:
    return PREFIX.pack(0, len(message)) + message


class MessageDecoder:
    """Bytes of a stream in, whole messages out.

    `partial_bytes` counts what is held of the message that is not complete yet, prefix included.
    """

    __slots__ = ("_buffer", "_max_bytes", "_wanted")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._wanted: int | None = None

    @property
    def partial_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Raises GrpcError: RESOURCE_EXHAUSTED over the limit, INTERNAL for compression nobody agreed on."""
        self._buffer += data
        messages: list[bytes] = []
        start = 0
        while True:
            if self._wanted is None:
                if len(self._buffer) - start < PREFIX.size:
                    break
                self._wanted = self._read_prefix(start)
            end = start + PREFIX.size + self._wanted
            if len(self._buffer) < end:
                break
            messages.append(bytes(memoryview(self._buffer)[start + PREFIX.size : end]))
            start, self._wanted = end, None
        if start:
            del self._buffer[:start]
        return messages

    def _read_prefix(self, offset: int) -> int:
        flag, length = PREFIX.unpack_from(self._buffer, offset)
        if flag != 0:
            raise GrpcError(GrpcStatus.INTERNAL, "compressed message without an agreed encoding")
        if length > self._max_bytes:
            raise GrpcError(
                GrpcStatus.RESOURCE_EXHAUSTED,
                f"message of {length} bytes is larger than the limit of {self._max_bytes}",
            )
        return int(length)
