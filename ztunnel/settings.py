"""Everything a ztunnel takes from its environment, parsed once (facts 12.4).

The variables are those of Istio's node proxy, so that its manifests work; ours begin with `MYCELIA_`. A
value that means nothing, and a wish for something that this proxy does not do, are refused with one
message that names the variable, what was found and what is allowed. Nothing below the composition root
reads the environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar, cast

from telemetry.errors import InvalidLogLevel
from telemetry.logging import LogLevels
from transport.errors import Blame, MeshError

DEFAULT_XDS_PORT = 15012
DEFAULT_ROOT_CA = "./var/run/secrets/istio/root-cert.pem"
DEFAULT_TOKEN = "./var/run/secrets/tokens/istio-token"  # noqa: S105 - a path
DEFAULT_ZDS_SOCKET = "/var/run/ztunnel/ztunnel.sock"
DEFAULT_STATE_DIR = "/var/lib/mycelia/ztunnel"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
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
_Value = TypeVar("_Value")

Codec = Literal["lean", "reference"]


class InvalidSetting(MeshError):
    """A variable of the environment or a flag has a value that cannot be used."""

    code: ClassVar[str] = "MYC-4101"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service of the control plane is and how it is trusted. `roots` is a path, PEM text or
    `SYSTEM`.
    """

    host: str
    port: int
    is_tls: bool = True
    roots: str = DEFAULT_ROOT_CA
    alternative_name: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this ztunnel is to the control plane."""

    node: str = ""
    network: str = ""
    cluster_id: str = "Kubernetes"
    pod_name: str = ""
    pod_namespace: str = ""
    service_account: str = ""
    instance_ip: str = ""
    trust_domain: str = "cluster.local"
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def node_id(self) -> str:
        """The xDS node id (facts 5.3)."""
        ip = self.instance_ip or "1.1.1.1"
        namespace = self.pod_namespace
        return f"ztunnel~{ip}~{self.pod_name}.{namespace}~{namespace}.svc.cluster.local"


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
        identity=_identity(reader, proxy_config),
        xds=reader.endpoint("XDS", xds_address) if xds_address else None,
        ca=reader.required_endpoint("CA", xds_address),
        auth_token=environment.get("AUTH_TOKEN", ""),
        secret_ttl_s=reader.duration("SECRET_TTL", 86400.0),
        zds_socket=environment.get("INPOD_UDS") or DEFAULT_ZDS_SOCKET,
        dedicated=dedicated,
        data_path=_data_path(reader, is_dedicated=dedicated is not None),
        workers=reader.workers(proxy_config.concurrency),
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


def _identity(reader: _Reader, proxy_config: _ProxyConfig) -> Identity:
    environment = reader.environment
    metadata: dict[str, object] = {
        key.removeprefix("ISTIO_META_"): value for key, value in proxy_config.metadata.items()
    }
    for key, value in environment.items():
        if key.startswith("ISTIO_META_"):
            metadata[key.removeprefix("ISTIO_META_")] = value
        elif key.startswith("ISTIO_METAJSON_"):
            metadata[key.removeprefix("ISTIO_METAJSON_")] = reader.json(key)
    return Identity(
        node=environment.get("NODE_NAME", ""),
        network=environment.get("NETWORK", ""),
        cluster_id=environment.get("ISTIO_META_CLUSTER_ID") or environment.get("CLUSTER_ID") or "Kubernetes",
        pod_name=environment.get("POD_NAME", ""),
        pod_namespace=environment.get("POD_NAMESPACE", ""),
        service_account=environment.get("SERVICE_ACCOUNT", ""),
        instance_ip=environment.get("INSTANCE_IP", ""),
        trust_domain=environment.get("TRUST_DOMAIN") or "cluster.local",
        metadata=metadata,
    )


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


class _Reader:
    """Typed access to the environment with errors that name the variable."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    # What Istio's node proxy can be told and this one does not do. Silence would weaken what the
    # operator asked for.
    _UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "CRL_PATH": "certificate revocation lists",
        "LOCAL_XDS": "static configuration",
        "LOCAL_XDS_PATH": "static configuration",
        "COMPLIANCE_POLICY": "compliance policies",
    }
    _UNSUPPORTED_WHEN_TRUE: ClassVar[Mapping[str, str]] = {
        "XDS_ON_DEMAND": "on-demand xDS",
        "FAKE_CA": "a self-made certificate authority",
        "TLS12_ENABLED": "TLS 1.2",
        "UNSTABLE_ENABLE_SOCKS5": "SOCKS5",
    }

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

    def _get(self, name: str, parse: Callable[[str], _Value | None], default: _Value, allowed: str) -> _Value:
        text = self.environment.get(name, "").strip()
        if not text:
            return default
        value = parse(text)
        if value is None:
            raise InvalidSetting(f"{name} is {text!r}", next_step=f"allowed: {allowed}")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        return self._get(name, _parse_bool, default, "true or false")

    def tristate(self, name: str) -> bool | None:
        return self._get(name, _parse_bool, None, "true, false or unset")

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        return self._get(name, lambda text: _parse_int(text, low, high), default, f"a number {low} to {high}")

    def optional_integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        return self._get(name, lambda text: _parse_int(text, low, high), default, f"a number {low} to {high}")

    def duration(self, name: str, default: float) -> float:
        return self._get(name, parse_duration, default, "a duration such as 10s, 5m or 1h30m")

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        return self._get(name, lambda text: text if text in allowed else None, default, " or ".join(allowed))

    def json(self, name: str) -> object:
        try:
            return json.loads(self.environment[name])
        except ValueError as error:
            raise InvalidSetting(f"{name} is not JSON: {error}") from error

    def log_level(self) -> str:
        """RUST_LOG for compatibility; MYCELIA_LOG wins."""
        name = "MYCELIA_LOG" if self.environment.get("MYCELIA_LOG") else "RUST_LOG"
        text = self.environment.get(name) or "info"
        try:
            LogLevels(text)
        except InvalidLogLevel as error:
            raise InvalidSetting(f"{name}: {error.text}", next_step=error.next_step) from error
        return text

    def workers(self, concurrency: int | None) -> int:
        """A number, `N%` of the cores, or 0 for all of them."""
        text = self.environment.get("ZTUNNEL_WORKER_THREADS", "").strip() or str(concurrency or "1")
        cores = len(os.sched_getaffinity(0))
        is_share = text.endswith("%")
        number = _parse_int(text.rstrip("%"), 0, 100 if is_share else 1024)
        if number is None:
            raise InvalidSetting(
                f"ZTUNNEL_WORKER_THREADS is {text!r}", next_step="allowed: a number, N% or 0 for all cores"
            )
        if is_share:
            return max(1, -(-cores * number // 100))
        return number or cores

    def drain_deadline(self) -> float:
        """CONNECTION_TERMINATION_DEADLINE, else from the pod's grace period (facts 12.3)."""
        if self.environment.get("CONNECTION_TERMINATION_DEADLINE", "").strip():
            return self.duration("CONNECTION_TERMINATION_DEADLINE", 5.0)
        grace = self.optional_integer("TERMINATION_GRACE_PERIOD_SECONDS", None, 0, 86400)
        if grace is None:
            return 5.0
        return float(max(1, grace - 5 if grace > 10 else grace - 1))

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

    def required_endpoint(self, prefix: str, default: str) -> Endpoint:
        address = self.environment.get(f"{prefix}_ADDRESS", default)
        if not address:
            raise InvalidSetting(f"{prefix}_ADDRESS is empty", next_step="give host:port")
        return self.endpoint(prefix, address)

    def endpoint(self, prefix: str, address: str) -> Endpoint:
        host, port, is_tls = _parse_address(f"{prefix}_ADDRESS", address)
        header = f"{prefix}_HEADER_"
        return Endpoint(
            host=host,
            port=port,
            is_tls=is_tls,
            roots=self.environment.get(f"{prefix}_ROOT_CA") or DEFAULT_ROOT_CA,
            alternative_name=self.environment.get(f"ALT_{prefix}_HOSTNAME", ""),
            headers=tuple(
                (key.removeprefix(header).lower(), value)
                for key, value in sorted(self.environment.items())
                if key.startswith(header)
            ),
        )

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
                metadata={str(key): str(value) for key, value in (found.get("proxyMetadata") or {}).items()},
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidSetting(f"PROXY_CONFIG: {error}") from error


def parse_duration(text: str) -> float | None:
    """`10s`, `1h30m`, `250ms` in seconds; None where it is none. `0` needs no unit."""
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(text):
        match = _DURATION.match(text, position)
        if match is None:
            return None
        total += float(match.group(1)) * _SECONDS[match.group(2)]
        position = match.end()
    return total if position else None


def _parse_bool(text: str) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())


def _parse_int(text: str, low: int, high: int) -> int | None:
    try:
        number = int(text, 0)
    except ValueError:
        return None
    return number if low <= number <= high else None


def _parse_address(name: str, address: str) -> tuple[str, int, bool]:
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "https", address
    host, colon, port_text = rest.rstrip("/").rpartition(":")
    if not colon or "]" in port_text:
        host, port_text = rest.rstrip("/"), str(DEFAULT_XDS_PORT)
    port = _parse_int(port_text, 1, 65535)
    host = host.strip("[]")
    if scheme not in ("https", "http") or port is None or not host or "/" in host:
        raise InvalidSetting(
            f"{name} is {address!r}", next_step="give host:port, https:// or http:// before it"
        )
    return host, port, scheme == "https"
