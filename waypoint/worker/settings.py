"""What a data worker of a waypoint is told once, in Configure."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.worker.settings import read_settings, write_settings
from transport.hbone.connection import HboneSettings
from transport.hbone.pool import PoolSettings
from transport.http2.codec import CodecKind
from waypoint.limits import RedisEndpoint, RequestLimits, Underscores


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Sizes in bytes, times in seconds. `address` is the waypoint's own; empty: not known."""

    namespace: str = ""
    gateway: str = ""
    identity: str = ""
    address: str = ""
    node: str = ""
    network: str = ""
    cluster_id: str = "Kubernetes"
    workers: int = 1  # of this replica, all alike

    bind_address: str = ""
    hbone_port: int = 15008
    # The port that nodes' proxies take HBONE on; differs only on loopback.
    peer_hbone_port: int = 15008

    http_codec: CodecKind = "lean"
    http2_codec: CodecKind = "lean"
    stream_window_bytes: int = 4 * 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    max_frame_bytes: int = 1024 * 1024
    max_peer_streams: int = 100  # waypoint-facts 1.1
    pool_max_streams: int = 100
    pool_idle_s: float = 3600.0  # mesh hboneIdleTimeout
    client_idle_s: float = 3600.0

    max_target_bytes: int = 16 * 1024
    max_head_bytes: int = 60 * 1024
    max_header_count: int = 100
    max_body_bytes: int = 0
    head_time_s: float = 30.0
    underscores: Underscores = "allow"
    caller_header: str = ""

    # Where shared rate limits are counted; no host: nowhere.
    redis_host: str = ""
    redis_port: int = 6379
    redis_user: str = ""
    redis_database: int = 0
    redis_password_file: str = ""
    redis_timeout_s: float = 0.1

    max_connections: int = 100_000
    max_resident_bytes: int = 0  # 0: no limit
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
            codec=self.http2_codec,
            stream_window_bytes=self.stream_window_bytes,
            connection_window_bytes=self.connection_window_bytes,
            max_frame_bytes=self.max_frame_bytes,
            max_peer_streams=self.max_peer_streams,
            assumed_peer_streams=self.pool_max_streams,
        )

    def limits(self) -> RequestLimits:
        return RequestLimits(
            max_target_bytes=self.max_target_bytes,
            max_head_bytes=self.max_head_bytes,
            max_header_count=self.max_header_count,
            max_body_bytes=self.max_body_bytes,
            head_time_s=self.head_time_s,
            underscores=self.underscores,
            caller_header=self.caller_header,
        )

    def redis(self) -> RedisEndpoint | None:
        if not self.redis_host:
            return None
        return RedisEndpoint(
            self.redis_host,
            self.redis_port,
            self.redis_user,
            self.redis_database,
            self.redis_password_file,
            self.redis_timeout_s,
        )

    def pool(self) -> PoolSettings:
        return PoolSettings(idle_s=self.pool_idle_s, hbone=self.hbone())
