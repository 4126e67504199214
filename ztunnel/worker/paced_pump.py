"""A plain connection whose bytes per second are limited (pacing.py): copied, never spliced."""

from __future__ import annotations

import socket
from collections.abc import Callable

from transport.errors import MeshError
from transport.reactor import Reactor
from ztunnel.worker.pacing import Pace
from ztunnel.worker.tcp_pump import PipeStock, TcpPump, _Direction


class PacedPump(TcpPump):
    __slots__ = ("_pace",)

    def __init__(
        self,
        reactor: Reactor,
        downstream: socket.socket,
        upstream: socket.socket,
        on_over: Callable[[MeshError | None], None],
        *,
        buffer: memoryview,
        pipes: PipeStock,
        pace: Pace,
        is_reset_kept: bool = True,
    ) -> None:
        self._pace = pace
        super().__init__(
            reactor, downstream, upstream, on_over, buffer=buffer, pipes=pipes, is_reset_kept=is_reset_kept
        )

    def move(self, direction: _Direction) -> None:
        if self._is_over or not direction.is_clear or direction.is_end_read:
            return
        granted = self._pace.grant()
        if granted <= 0:
            direction.source.registration.pause()
            self._pace.wait(self._up_turn if direction is self._up else self._down_turn)
            return
        before = direction.moved_bytes
        direction.full_reads = 0  # a pipe would take more than is granted
        try:
            self._copy(direction, self._buffer[:granted])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken(error)
            return
        waiting = len(direction.pending) if direction.pending is not None else 0
        self._pace.take(direction.moved_bytes - before + waiting)

    def close(self, error: MeshError | None = None, *, is_reset: bool = False) -> None:
        self._pace.leave(self._up_turn, self._down_turn)
        super().close(error, is_reset=is_reset)

    def _up_turn(self) -> None:
        self._turn(self._up)

    def _down_turn(self) -> None:
        self._turn(self._down)

    def _turn(self, direction: _Direction) -> None:
        if not self._is_over and direction.is_clear and not direction.is_end_read:
            direction.source.registration.resume()
            self.move(direction)
