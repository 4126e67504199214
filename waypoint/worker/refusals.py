"""Clients that got nowhere at port 15008: counted, and logged as often as a log bears."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.worker.log import WorkerLog
from transport.errors import MeshError
from transport.hbone.connect import socket_text


@dataclass(slots=True)
class Refusals:
    """Implements IngressObserver. Both counts only grow."""

    log: WorkerLog
    refused_tunnels: int = 0
    failed_handshakes: int = 0

    def on_refused(self, peer: tuple[str, int], status: int, reason: str) -> None:
        self.refused_tunnels += 1
        # A request that is no well-formed HTTP/2 gets no status.
        self.log.limited(
            "warn", "tunnel_refused", peer=socket_text(*peer), answer=status or "reset", reason=reason
        )

    def on_failed_handshake(self, peer: tuple[str, int], error: MeshError) -> None:
        self.failed_handshakes += 1
        self.log.limited("warn", "handshake_failed", peer=socket_text(*peer), reason=error.text)
