"""What a data worker of a ztunnel is told once, in Configure."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.worker.settings import read_settings, write_settings
from transport.hbone.connection import HboneSettings
from transport.hbone.pool import PoolSettings
from transport.http2.codec import CodecKind


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Defaults are ztunnel's (facts 1, 2.7, 2.8, 2.10, 12.4). Sizes in bytes, times in seconds."""

    node: str = ""
    network: str = ""
    cluster_id: str = "Kubernetes"

    # Sockets. `is_spoofing`: None = where it can be had, True = required, False = never.
    bind_address: str = "::"
    is_ipv6: bool = True
    packet_mark: int | None = 1337
    is_spoofing: bool | None = None
    is_keepalive_on: bool = True
    outbound_port: int = 15001
    inbound_port: int = 15006
    hbone_port: int = 15008
    # The port that other nodes' proxies take HBONE on; differs from `hbone_port` only on loopback.
    peer_hbone_port: int = 15008
    # Of this node, all alike: each has its share of every limit.
    workers: int = 1
    illegal_ports: tuple[int, ...] = (15001, 15006, 15008)
    # Which of the three listeners to open: "outbound", "inbound", "hbone".
    listeners: tuple[str, ...] = ("outbound", "inbound", "hbone")
    # Benchmarks on loopback, where nothing is redirected: every captured connection is taken as going here.
    static_destination: str = ""

    # HBONE.
    codec: CodecKind = "lean"
    stream_window_bytes: int = 4 * 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    max_frame_bytes: int = 1024 * 1024
    max_peer_streams: int = 200
    pool_max_streams: int = 100
    pool_idle_s: float = 300.0
    pool_max_waiters: int = 10_000
    connect_timeout_s: float = 10.0
    handshake_timeout_s: float = 10.0
    answer_timeout_s: float = 30.0
    h2_keepalive_interval_s: float = 10.0
    h2_keepalive_timeout_s: float = 20.0
    is_localhost_app_tunnel: bool = True
    is_response_baggage_on: bool = True
    is_reset_kept: bool = True

    # Bounds.
    max_connections: int = 100_000
    max_waiting_for_state: int = 4096
    state_wait_s: float = 5.0
    credential_wait_s: float = 10.0
    max_queued_flows: int = 10_000
    is_access_log_on: bool = True
    log_level: str = "info"

    def to_json(self) -> str:
        return write_settings(self)

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        """Raises SettingsRejected."""
        return read_settings(cls, text)

    def hbone(self) -> HboneSettings:
        return HboneSettings(
            keepalive_interval_s=self.h2_keepalive_interval_s,
            keepalive_timeout_s=self.h2_keepalive_timeout_s,
            handshake_timeout_s=self.handshake_timeout_s,
            codec=self.codec,
            stream_window_bytes=self.stream_window_bytes,
            connection_window_bytes=self.connection_window_bytes,
            max_frame_bytes=self.max_frame_bytes,
            max_peer_streams=self.max_peer_streams,
            assumed_peer_streams=self.pool_max_streams,
        )

    def pool(self) -> PoolSettings:
        return PoolSettings(
            connect_timeout_s=self.connect_timeout_s,
            answer_timeout_s=self.answer_timeout_s,
            idle_s=self.pool_idle_s,
            max_waiters=self.pool_max_waiters,
            hbone=self.hbone(),
        )
