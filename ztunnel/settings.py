"""Everything a ztunnel takes from its environment, parsed once (facts 12.4).

The variables are those of Istio's node proxy, so that its manifests work; ours begin with `MYCELIA_`. A
value that means nothing, and a wish for something that this proxy does not do, are refused with one
message that names the variable, what was found and what is allowed. Nothing below the composition root
reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from dataplane.settings import (
    DEFAULT_XDS_PORT,
    Codec,
    Endpoint,
    EnvironmentReader,
    Identity,
    InvalidSetting,
    read_identity,
)

DEFAULT_ZDS_SOCKET = "/var/run/ztunnel/ztunnel.sock"
DEFAULT_STATE_DIR = "/var/lib/mycelia/ztunnel"

# Harmless wishes of Istio's manifests that this proxy reads (and checks) without acting on them: DNS,
# the times of TCP keepalive, sharing of ports (always on), verdicts in the log (they are in the access
# log).
_WITHOUT_EFFECT = (
    "AUTHZ_POLICY_INFO_LOGGING",
    "CLUSTER_DOMAIN",
    "INPOD_PORT_REUSE",
    "ISTIO_META_DNS_CAPTURE",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "KEEPALIVE_TIME",
    "PREFERED_SERVICE_NAMESPACE",
    "USER_TIMEOUT_ENABLED",
)


@dataclass(frozen=True, slots=True)
class Keepalive:
    is_enabled: bool = True
    idle_s: float = 180.0
    interval_s: float = 180.0
    probes: int = 9
    is_user_timeout: bool = False


@dataclass(frozen=True, slots=True)
class DataPath:
    """What the workers do; `packet_mark` None is no mark, `is_spoofing` None is best effort."""

    packet_mark: int | None = 1337
    is_spoofing: bool | None = None
    is_ipv6: bool = True
    is_port_reuse: bool = True
    codec: Codec = "lean"
    pool_max_streams: int = 100
    pool_idle_s: float = 300.0
    stream_window_bytes: int = 4 * 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    frame_bytes: int = 1024 * 1024
    keepalive: Keepalive = Keepalive()
    is_localhost_app_tunnel: bool = True
    is_response_baggage: bool = True


@dataclass(frozen=True, slots=True)
class Dedicated:
    """The one workload of a proxy that works for its own network namespace."""

    namespace: str
    name: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Settings:
    identity: Identity
    # None: no control plane, only what is saved in the state directory.
    xds: Endpoint | None
    ca: Endpoint
    # A path (begins with / or ./) or the token itself; empty: the default path where it exists, else none.
    auth_token: str = ""
    secret_ttl_s: float = 86400.0
    zds_socket: str = DEFAULT_ZDS_SOCKET
    dedicated: Dedicated | None = None
    data_path: DataPath = DataPath()
    workers: int = 1
    state_dir: str = DEFAULT_STATE_DIR
    admin_port: int = 15000
    stats_port: int = 15020
    readiness_port: int = 15021
    drain_deadline_s: float = 5.0
    log_level: str = "info"
    is_log_json: bool = False
    is_policy_logged: bool = False
    # Variables that are set and change nothing here, for the operator to know.
    without_effect: tuple[str, ...] = ()


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Parse the environment; raises `InvalidSetting`."""
    reader = _Reader(environment)
    reader.refuse_unsupported()
    proxy_config = reader.proxy_config()
    dedicated = reader.dedicated()
    xds_address = environment.get("XDS_ADDRESS", proxy_config.discovery_address)
    level = reader.log_level()
    return Settings(
        identity=read_identity(reader, "ztunnel", proxy_config.metadata),
        xds=reader.endpoint("XDS", xds_address) if xds_address else None,
        ca=reader.required_endpoint("CA", xds_address),
        auth_token=environment.get("AUTH_TOKEN", ""),
        secret_ttl_s=reader.duration("SECRET_TTL", 86400.0),
        zds_socket=environment.get("INPOD_UDS") or DEFAULT_ZDS_SOCKET,
        dedicated=dedicated,
        data_path=_data_path(reader, is_dedicated=dedicated is not None),
        workers=reader.workers("ZTUNNEL_WORKER_THREADS", proxy_config.concurrency),
        state_dir=environment.get("MYCELIA_STATE_DIR", DEFAULT_STATE_DIR),
        admin_port=reader.integer("MYCELIA_ADMIN_PORT", proxy_config.admin_port, 0, 65535),
        stats_port=reader.integer("MYCELIA_STATS_PORT", proxy_config.stats_port, 0, 65535),
        readiness_port=reader.integer("MYCELIA_READINESS_PORT", 15021, 0, 65535),
        drain_deadline_s=reader.drain_deadline(),
        log_level=level,
        is_log_json=reader.choice("LOG_FORMAT", "plain", ("plain", "json")) == "json",
        is_policy_logged=reader.boolean("AUTHZ_POLICY_INFO_LOGGING", default=False),
        without_effect=tuple(sorted(name for name in _WITHOUT_EFFECT if environment.get(name))),
    )


@dataclass(frozen=True, slots=True)
class _ProxyConfig:
    discovery_address: str
    admin_port: int = 15000
    stats_port: int = 15020
    concurrency: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def _data_path(reader: _Reader, *, is_dedicated: bool) -> DataPath:
    mark = None if is_dedicated else 1337
    return DataPath(
        packet_mark=reader.optional_integer("PACKET_MARK", mark, 0, 0xFFFFFFFF),
        is_spoofing=reader.tristate("ENABLE_ORIG_SRC"),
        is_ipv6=reader.boolean("IPV6_ENABLED", default=True),
        is_port_reuse=reader.boolean("INPOD_PORT_REUSE", default=True),
        codec=cast("Codec", reader.choice("MYCELIA_HTTP2_CODEC", "lean", ("lean", "reference"))),
        pool_max_streams=reader.integer("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, 1_000_000),
        pool_idle_s=reader.duration("POOL_UNUSED_RELEASE_TIMEOUT", 300.0),
        stream_window_bytes=reader.integer("HTTP2_STREAM_WINDOW_SIZE", 4 << 20, 65535, 2**31 - 1),
        connection_window_bytes=reader.integer("HTTP2_CONNECTION_WINDOW_SIZE", 16 << 20, 65535, 2**31 - 1),
        frame_bytes=reader.integer("HTTP2_FRAME_SIZE", 1 << 20, 16384, 2**24 - 1),
        keepalive=Keepalive(
            is_enabled=reader.boolean("KEEPALIVE_ENABLED", default=True),
            idle_s=reader.duration("KEEPALIVE_TIME", 180.0),
            interval_s=reader.duration("KEEPALIVE_INTERVAL", 180.0),
            probes=reader.integer("KEEPALIVE_RETRIES", 9, 1, 127),
            is_user_timeout=reader.boolean("USER_TIMEOUT_ENABLED", default=False),
        ),
        is_localhost_app_tunnel=reader.boolean("LOCALHOST_APP_TUNNEL", default=True),
        is_response_baggage=reader.boolean("ENABLE_RESPONSE_BAGGAGE", default=True),
    )


class _Reader(EnvironmentReader):
    """What only a node proxy is told."""

    def refuse_unsupported(self) -> None:
        for name, what in self._UNSUPPORTED.items():
            if self.environment.get(name):
                raise InvalidSetting(
                    f"{name} is set, but {what} are not supported", next_step=f"unset {name}"
                )
        for name, what in self._UNSUPPORTED_WHEN_TRUE.items():
            if self.boolean(name, default=False):
                raise InvalidSetting(f"{name} is on, but {what} is not supported", next_step=f"unset {name}")
        if not self.boolean("ENABLE_PROXY", default=True):
            raise InvalidSetting("ENABLE_PROXY is off: nothing would be left to do", next_step="unset it")

    def dedicated(self) -> Dedicated | None:
        mode = self.choice("PROXY_MODE", "shared", ("shared", "dedicated"))
        if mode == "shared":
            return None
        text = self.environment.get("PROXY_WORKLOAD_INFO", "")
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise InvalidSetting(
                f"PROXY_MODE is dedicated and PROXY_WORKLOAD_INFO is {text!r}",
                next_step="give namespace/name/service-account",
            )
        return Dedicated(*parts)

    def proxy_config(self) -> _ProxyConfig:
        """The YAML of PROXY_CONFIG; the library is loaded only where the variable is set."""
        in_kubernetes = bool(self.environment.get("KUBERNETES_SERVICE_HOST"))
        default = "istiod.istio-system.svc" if in_kubernetes else "localhost"
        address = f"https://{default}:{DEFAULT_XDS_PORT}"
        text = self.environment.get("PROXY_CONFIG", "")
        if not text.strip():
            return _ProxyConfig(address)
        import yaml  # noqa: PLC0415 - 2 MB that only this rare variable needs

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidSetting("PROXY_CONFIG is not YAML") from error
        if not isinstance(found, dict):
            raise InvalidSetting("PROXY_CONFIG is not a YAML mapping")
        try:
            concurrency = found.get("concurrency")
            return _ProxyConfig(
                discovery_address=str(found.get("discoveryAddress", address)),
                admin_port=int(found.get("proxyAdminPort", 15000)),
                stats_port=int(found.get("statsPort", 15020)),
                concurrency=None if concurrency is None else int(concurrency),
                metadata={
                    str(key).removeprefix("ISTIO_META_"): str(value)
                    for key, value in (found.get("proxyMetadata") or {}).items()
                },
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidSetting(f"PROXY_CONFIG: {error}") from error
