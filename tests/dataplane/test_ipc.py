"""Framing between control process and worker: cut anywhere, descriptors in order, everything bounded."""

from __future__ import annotations

import contextlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.ipc import MAX_MESSAGE_BYTES, MAX_WAITING_DESCRIPTORS, IpcBroken, MessageReader, encode
from proto.mycelia import worker_pb2 as pb


def drain(deadline_s: float) -> pb.ToWorker:
    return pb.ToWorker(drain=pb.Drain(deadline_s=deadline_s))


def add(uid: str) -> pb.ToWorker:
    return pb.ToWorker(add_workload=pb.AddWorkload(uid=uid))


@given(st.lists(st.floats(0, 1000), max_size=8), st.data())
def test_messages_survive_any_cut(deadlines: list[float], data: st.DataObject) -> None:
    stream = b"".join(encode(drain(deadline)) for deadline in deadlines)
    reader = MessageReader(pb.ToWorker)
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert [message.drain.deadline_s for message, _ in found] == deadlines


def test_each_added_workload_takes_the_oldest_descriptor() -> None:
    reader = MessageReader(pb.ToWorker)
    stream = encode(add("a")) + encode(drain(1)) + encode(add("b"))
    found = reader.feed(stream, [101, 102])
    assert [descriptor for _, descriptor in found] == [101, None, 102]


def test_a_workload_without_descriptor_breaks_the_channel() -> None:
    with pytest.raises(IpcBroken, match="without its namespace descriptor"):
        MessageReader(pb.ToWorker).feed(encode(add("a")))


def test_unclaimed_descriptors_are_closed_with_the_reader() -> None:
    reader = MessageReader(pb.ToWorker)
    one, other = os.pipe()
    reader.feed(b"", [one, other])
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one)


def test_waiting_descriptors_are_bounded() -> None:
    with pytest.raises(IpcBroken, match="descriptors wait"):
        MessageReader(pb.ToWorker).feed(b"", range(MAX_WAITING_DESCRIPTORS + 1))


def test_a_frame_above_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(IpcBroken, match="limit"):
        MessageReader(pb.ToControl).feed(struct.pack("!I", MAX_MESSAGE_BYTES + 1))
    with pytest.raises(IpcBroken, match="limit"):
        encode(pb.ToControl(dump=pb.Dump(json="x" * (MAX_MESSAGE_BYTES + 1))))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits(garbage: bytes) -> None:
    with contextlib.suppress(IpcBroken):
        MessageReader(pb.ToControl).feed(garbage)
