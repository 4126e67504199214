"""The shared read buffer: gaps where frame headers go, alignment, bounds."""

from __future__ import annotations

import pytest

from transport.hbone.frame_buffer import FRAME_HEADER_BYTES, FrameBuffer


@pytest.mark.parametrize("max_frame", [16384, 16385, 100_000, 256 * 1024, 1024 * 1024])
def test_each_payload_has_a_gap_before_it_and_nothing_overlaps(max_frame: int) -> None:
    buffer = FrameBuffer()
    layout = buffer.layout(max_frame)
    assert sum(len(view) for view in layout.payloads) == layout.capacity == buffer.capacity
    assert all(len(view) <= max_frame for view in layout.payloads)
    for number, view in enumerate(layout.payloads):
        view[:] = bytes([number + 1]) * len(view)
    position = 0
    for number, view in enumerate(layout.payloads):
        position += FRAME_HEADER_BYTES
        assert bytes(layout.region[position : position + len(view)]) == bytes([number + 1]) * len(view)
        position += len(view)


def test_a_limited_layout_takes_exactly_the_budget() -> None:
    layout = FrameBuffer().layout(16384)
    for budget in (1, 16383, 16384, 16385, 50_000, layout.capacity):
        views = layout.limited(budget)
        assert sum(len(view) for view in views) == budget


def test_layouts_are_kept_but_bounded() -> None:
    buffer = FrameBuffer()
    assert buffer.layout(16384) is buffer.layout(16384)
    assert buffer.layout(256 * 1024) is buffer.layout(1024 * 1024)
    for size in range(16384, 16384 + 100):
        buffer.layout(size)
    assert len(buffer._layouts) <= 16
