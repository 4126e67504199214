"""The one buffer that a reactor reads applications' bytes into, laid out so that HTTP/2 headers fit in
between.

A read of an application lands behind a 9-byte gap; the codec writes the frame header into the gap and the
whole goes to TLS in one call, without a copy in between. For a peer with a small MAX_FRAME_SIZE the buffer is
cut into several payloads with a gap before each, filled by one scattering read. The first payload starts 64
bytes into a page: copies from addresses just above a page boundary are several times slower on some
processors.

The buffer is free again as soon as the bytes were handed to TLS, so idle connections own no buffer.
"""

from __future__ import annotations

import mmap

FRAME_HEADER_BYTES = 9
DEFAULT_BUFFER_BYTES = 256 * 1024
_ALIGNMENT = 64


class Layout:
    """How the buffer is cut for one frame size.

    `region` starts at the first gap; `payloads` are the places between gaps, `first` is the first of them;
    `capacity` is the sum of their lengths.
    """

    __slots__ = ("capacity", "first", "first_bytes", "payloads", "region")

    def __init__(self, memory: memoryview, capacity: int, max_frame: int) -> None:
        self.region = memory[_ALIGNMENT - FRAME_HEADER_BYTES :]
        self.payloads: list[memoryview] = []
        self.capacity = capacity
        position, left = _ALIGNMENT, capacity
        while left:
            size = min(max_frame, left)
            self.payloads.append(memory[position : position + size])
            position += size + FRAME_HEADER_BYTES
            left -= size
        self.first = self.payloads[0]
        self.first_bytes = len(self.first)

    def limited(self, size: int) -> list[memoryview]:
        """Payloads that take at most `size` bytes in all (`size` > 0)."""
        views: list[memoryview] = []
        for view in self.payloads:
            if size <= len(view):
                views.append(view[:size])
                break
            views.append(view)
            size -= len(view)
        return views


class FrameBuffer:
    """Page-aligned memory of one reactor; layouts for the frame sizes met are kept."""

    _MAX_LAYOUTS = 16

    def __init__(self, capacity: int = DEFAULT_BUFFER_BYTES) -> None:
        self.capacity = capacity
        # Room for the gaps of the smallest MAX_FRAME_SIZE that HTTP/2 allows (16 KiB).
        gaps = (capacity // 16384 + 2) * FRAME_HEADER_BYTES
        self._memory = memoryview(mmap.mmap(-1, _ALIGNMENT + capacity + gaps))
        self._layouts: dict[int, Layout] = {}
        self.plain = self._memory[_ALIGNMENT : _ALIGNMENT + capacity]

    def layout(self, max_frame: int) -> Layout:
        """The layout for a peer that takes frames of up to `max_frame` bytes (at least 16 KiB)."""
        size = min(max_frame, self.capacity)
        layout = self._layouts.get(size)
        if layout is None:
            if len(self._layouts) >= self._MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[size] = Layout(self._memory, self.capacity, size)
        return layout
