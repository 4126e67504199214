"""A tunnel to an application whose bytes per second are limited (pacing.py).

Towards the application, what the peer has sent waits in the relay's own buffer, for which the peer gets no
credit until it is written: the stream's window bounds it. The other way, reading the application pauses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transport.errors import MeshError
from transport.hbone.tunnel import TunnelStream
from ztunnel.worker.inbound_hbone import InboundTunnel
from ztunnel.worker.pacing import Pace
from ztunnel.worker.plans import InboundPlan

if TYPE_CHECKING:
    from ztunnel.worker.workload import WorkloadProxy


class PacedTunnel(InboundTunnel):
    __slots__ = ("_pace",)

    def __init__(
        self,
        proxy: WorkloadProxy,
        peer: tuple[str, int],
        tunnel: TunnelStream,
        plan: InboundPlan,
        pace: Pace,
    ) -> None:
        super().__init__(proxy, peer, tunnel, plan)
        self._pace = pace

    def _on_readable(self) -> None:
        tunnel, app, registration = self.tunnel, self._app, self._registration
        if tunnel is None or app is None or registration is None:
            return
        granted = self._pace.grant()
        if granted <= 0:
            registration.pause()
            self._pace.wait(self._read_turn)
            return
        budget = min(tunnel.budget(), granted)
        if budget <= 0:
            registration.pause()  # until the tunnel is writable
            return
        layout = tunnel.connection.layout
        try:
            count = app.recv_into(layout.first[: min(budget, layout.first_bytes)])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_app_broken(error)
            return
        if count == 0:
            self._on_app_end()
            return
        self._pace.take(count)
        self.from_app_bytes += count
        tunnel.send_in_place(layout, count)

    def _read_turn(self) -> None:
        if self._registration is not None and not self._is_app_ended and not self._is_over:
            self._registration.resume()
            self._on_readable()

    def on_tunnel_data(self, chunks: list[memoryview], flow_bytes: int) -> None:
        is_first = not self._pending
        self._keep(chunks, flow_bytes)
        if is_first and self._registration is not None:
            self._on_writable()

    def _on_writable(self) -> None:
        """One grant's worth of what waits; the rest when the socket or the pace allows."""
        pending, app, registration = self._pending, self._app, self._registration
        if app is None or registration is None or not pending:
            super()._on_writable()  # nothing to write: only ends are due
            return
        granted = self._pace.grant()
        if granted <= 0:
            registration.want_write(False)
            self._pace.wait(self._write_turn)
            return
        chunk = memoryview(pending[0])[:granted]
        tunnel = self.tunnel
        assert tunnel is not None
        try:
            sent = app.send(chunk)
        except (BlockingIOError, InterruptedError):
            registration.want_write(True)
            return
        except OSError as error:
            self._on_app_broken(error)
            return
        self._pace.take(sent)
        self.to_app_bytes += sent
        self._credit(tunnel, sent)
        if sent < len(pending[0]):
            pending[0] = memoryview(pending[0])[sent:]
        else:
            pending.popleft()
        if pending:
            registration.want_write(True)
        else:
            super()._on_writable()

    def _write_turn(self) -> None:
        if self._registration is not None and not self._is_over:
            self._on_writable()

    def _on_over(self, error: MeshError | None) -> None:
        self._pace.leave(self._read_turn, self._write_turn)
        super()._on_over(error)
