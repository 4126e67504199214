"""What a data worker is told once, in Configure: a plain value with a JSON form, no validation library.

The control process makes it from its own settings; `from_json` refuses unknown keys and wrong types, because
a worker that silently ignores half of its settings would be hard to find.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from transport.errors import Blame, MeshError
from transport.hbone.connection import HboneSettings
from transport.hbone.pool import PoolSettings
from transport.http2.codec import CodecKind


class SettingsRejected(MeshError):
    """The settings in Configure are not those of this version of the worker."""

    code = "MYC-4502"
    blame = Blame.LOCAL


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
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        """Raises SettingsRejected."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SettingsRejected(f"the settings are not JSON: {error}") from error
        if not isinstance(values, dict):
            raise SettingsRejected("the settings are not a JSON object")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in defaults:
                raise SettingsRejected(f"unknown setting {name!r}")
            values[name] = _checked(name, value, defaults[name])
        return cls(**values)

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


def _checked(name: str, value: Any, default: object) -> Any:
    """`value` in the type of its default; JSON has no tuples and writes 10.0 as 10."""
    if name in ("packet_mark", "is_spoofing") and value is None:
        return None
    if name == "packet_mark":
        expected: type = int
    elif name == "is_spoofing":
        expected = bool
    else:
        expected = type(default)
    if expected is float and type(value) is int:
        return float(value)
    if expected is tuple and isinstance(value, list):
        return tuple(value)
    if name == "codec" and value not in ("lean", "reference"):
        raise SettingsRejected(f"there is no codec {value!r}: lean, reference")
    if type(value) is not expected:
        raise SettingsRejected(f"setting {name!r} is a {type(value).__name__}, not a {expected.__name__}")
    return value
