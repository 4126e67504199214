"""The wire between a ztunnel's control process and its data workers: framing only, no socket.

Each message of proto/mycelia/worker.proto goes as a 4-byte big-endian length and its bytes over a
stream socket. An AddWorkload brings one descriptor as SCM_RIGHTS with the bytes of its frame;
descriptors queue in order of arrival and each AddWorkload takes the oldest. Everything is bounded: a
frame by MAX_MESSAGE_BYTES, descriptors that wait for their message by MAX_WAITING_DESCRIPTORS; at
either bound the channel is broken, because what follows cannot be trusted.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from proto.mycelia import worker_pb2 as pb
from transport.errors import Blame, MeshError

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_WAITING_DESCRIPTORS = 1024
# The most descriptors that one sendmsg carries (SCM_MAX_FD); the receiver makes room for as many.
MAX_DESCRIPTORS_PER_READ = 253

_LENGTH = struct.Struct("!I")


class IpcBroken(MeshError):
    """The channel between control process and worker carries something that is not our protocol."""

    code = "MYC-4501"
    blame = Blame.LOCAL


def encode(message: pb.ToWorker | pb.ToControl) -> bytes:
    """One framed message. The caller sends the descriptor of an AddWorkload with the frame's first byte."""
    body = message.SerializeToString()
    if len(body) > MAX_MESSAGE_BYTES:
        raise IpcBroken(f"a message of {len(body)} bytes is above the limit of {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


Message = TypeVar("Message", pb.ToWorker, pb.ToControl)


class MessageReader(Generic[Message]):
    """Turns received bytes and descriptors into messages.

    A returned descriptor belongs to the caller. `close` closes those that no message has claimed.
    """

    def __init__(self, message_type: type[Message]) -> None:
        self._message_type: type[Message] = message_type
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(
        self, data: bytes | bytearray | memoryview, descriptors: Iterable[int] = ()
    ) -> list[tuple[Message, int | None]]:
        """All messages completed by `data`, in order. Raises IpcBroken; the reader is then of no
        further use.
        """
        self._descriptors.extend(descriptors)
        if len(self._descriptors) > MAX_WAITING_DESCRIPTORS:
            raise IpcBroken(f"more than {MAX_WAITING_DESCRIPTORS} descriptors wait for their message")
        buffer = self._buffer
        buffer += data
        messages: list[tuple[Message, int | None]] = []
        position = 0
        while len(buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > MAX_MESSAGE_BYTES:
                raise IpcBroken(f"a message announces {length} bytes, above the limit of {MAX_MESSAGE_BYTES}")
            end = position + _LENGTH.size + length
            if len(buffer) < end:
                break
            messages.append(self._parse(bytes(buffer[position + _LENGTH.size : end])))
            position = end
        del buffer[:position]
        return messages

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _parse(self, body: bytes) -> tuple[Message, int | None]:
        message: Message = self._message_type()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise IpcBroken(f"a frame is not a {self._message_type.__name__} message: {error}") from error
        if message.WhichOneof("message") != "add_workload":
            return message, None
        if not self._descriptors:
            raise IpcBroken("an AddWorkload came without its namespace descriptor")
        return message, self._descriptors.popleft()
