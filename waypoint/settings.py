"""Everything a waypoint takes from its environment, parsed once.

The variables are those of Istio's proxies where they have one, ours begin with `MYCELIA_`; the common part
is in dataplane/settings.py. `MYCELIA_WAYPOINT=namespace/gateway` says whose replica this is; its identity is
that of `SERVICE_ACCOUNT` (by default the gateway's name) in the gateway's namespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, cast
from urllib.parse import urlsplit

from dataplane.settings import (
    DEFAULT_XDS_PORT,
    Codec,
    Endpoint,
    EnvironmentReader,
    Identity,
    InvalidSetting,
    read_identity,
)
from transport.http1 import grammar
from transport.spiffe import SpiffeId
from waypoint.limits import RedisEndpoint, RequestLimits, Underscores

DEFAULT_STATE_DIR: Final = "/var/lib/mycelia/waypoint"
HBONE_PORT: Final = 15008
MAX_CONNECTIONS: Final = 100_000
# What a worker holds before it has met anybody: a limit below it would let nobody in.
_MIN_MEMORY_MIB: Final = 128
# Istio's waypoints drain for so long by default (terminationDrainDuration).
_DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`namespace` and `gateway` name the Gateway; `spiffe_id` is what it shows to both sides."""

    namespace: str
    gateway: str
    spiffe_id: SpiffeId
    identity: Identity
    xds: Endpoint | None
    ca: Endpoint
    # The waypoint's own addresses, the first for what it says of itself; empty: not known.
    addresses: tuple[str, ...] = ()
    bind_address: str = ""
    hbone_port: int = HBONE_PORT
    auth_token: str = ""
    secret_ttl_s: float = 86400.0
    workers: int = 1
    # Bounds of each worker: clients' connections (tunnels: 100 each), and resident memory, 0 for no limit.
    max_connections: int = MAX_CONNECTIONS
    max_resident_bytes: int = 0
    http_codec: Codec = "lean"
    http2_codec: Codec = "lean"
    state_dir: str = DEFAULT_STATE_DIR
    admin_port: int = 15000
    stats_port: int = 15020
    readiness_port: int = 15021
    drain_deadline_s: float = _DRAIN_S
    limits: RequestLimits = field(default_factory=RequestLimits)
    redis: RedisEndpoint | None = None
    log_level: str = "info"
    is_log_json: bool = False
    # Requests on standard output: off, text or json.
    access_log: str = "off"


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Parse the environment; raises `InvalidSetting`."""
    reader = EnvironmentReader(environment)
    namespace, gateway = _waypoint(environment)
    identity = _identity(reader, namespace, gateway)
    address = environment.get("XDS_ADDRESS", f"https://localhost:{DEFAULT_XDS_PORT}")
    return Settings(
        namespace=namespace,
        gateway=gateway,
        spiffe_id=_spiffe_id(identity, namespace),
        identity=identity,
        xds=reader.endpoint("XDS", address) if address else None,
        ca=reader.required_endpoint("CA", address),
        addresses=_addresses(environment.get("INSTANCE_IP", "")),
        bind_address=environment.get("MYCELIA_BIND_ADDRESS", ""),
        hbone_port=reader.integer("MYCELIA_HBONE_PORT", HBONE_PORT, 1, 65535),
        auth_token=environment.get("AUTH_TOKEN", ""),
        secret_ttl_s=reader.duration("SECRET_TTL", 86400.0),
        workers=reader.workers("MYCELIA_WAYPOINT_WORKERS"),
        max_connections=reader.integer("MYCELIA_WAYPOINT_MAX_CONNECTIONS", MAX_CONNECTIONS, 1, 1_000_000),
        max_resident_bytes=_memory_limit(reader),
        http_codec=cast("Codec", reader.choice("MYCELIA_HTTP_CODEC", "lean", ("lean", "reference"))),
        http2_codec=cast("Codec", reader.choice("MYCELIA_HTTP2_CODEC", "lean", ("lean", "reference"))),
        state_dir=environment.get("MYCELIA_STATE_DIR", DEFAULT_STATE_DIR),
        admin_port=reader.integer("MYCELIA_ADMIN_PORT", 15000, 0, 65535),
        stats_port=reader.integer("MYCELIA_STATS_PORT", 15020, 0, 65535),
        readiness_port=reader.integer("MYCELIA_READINESS_PORT", 15021, 0, 65535),
        drain_deadline_s=reader.drain_deadline(),
        limits=_limits(reader, environment),
        redis=_redis(reader, environment),
        log_level=reader.log_level(),
        access_log=reader.choice("MYCELIA_ACCESS_LOG", "off", ("off", "text", "json")),
        is_log_json=reader.choice("LOG_FORMAT", "plain", ("plain", "json")) == "json",
    )


def _redis(reader: EnvironmentReader, environment: Mapping[str, str]) -> RedisEndpoint | None:
    """`redis://[USER@]HOST[:PORT][/DATABASE]`; the password never stands in a variable."""
    text = environment.get("MYCELIA_RATE_LIMIT_REDIS", "").strip()
    if not text:
        return None
    try:
        url = urlsplit(text)
        port = url.port or 6379
    except ValueError as error:
        raise InvalidSetting(f"MYCELIA_RATE_LIMIT_REDIS is {text!r}", next_step=_REDIS_FORM) from error
    if url.password is not None:
        raise InvalidSetting(
            "MYCELIA_RATE_LIMIT_REDIS has a password in it",
            next_step="put it into a file and name that in MYCELIA_RATE_LIMIT_REDIS_PASSWORD_FILE",
        )
    if url.scheme == "rediss":
        raise InvalidSetting(
            "MYCELIA_RATE_LIMIT_REDIS is a rediss:// address: TLS to Redis is not supported",
            next_step="use redis:// on a network of your own, or through a TLS proxy beside the waypoint",
        )
    database = url.path.removeprefix("/") or "0"
    is_plain = not url.query and not url.fragment and database.isdecimal() and len(database) < 4
    if url.scheme != "redis" or not url.hostname or not is_plain:
        raise InvalidSetting(f"MYCELIA_RATE_LIMIT_REDIS is {text!r}", next_step=_REDIS_FORM)
    timeout_ms = reader.integer("MYCELIA_RATE_LIMIT_REDIS_TIMEOUT_MS", 100, 10, 10_000)
    return RedisEndpoint(
        url.hostname,
        port,
        url.username or "",
        int(database),
        environment.get("MYCELIA_RATE_LIMIT_REDIS_PASSWORD_FILE", ""),
        timeout_ms / 1000,
    )


_REDIS_FORM: Final = "allowed: redis://[USER@]HOST[:PORT][/DATABASE]"
_TAKEN: Final = frozenset({"host", "content-length", "content-type", "authorization", "cookie"})


def _limits(reader: EnvironmentReader, environment: Mapping[str, str]) -> RequestLimits:
    kib = 1024
    return RequestLimits(
        max_target_bytes=reader.integer("MYCELIA_MAX_TARGET_BYTES", 16 * kib, 256, 1024 * kib),
        max_head_bytes=reader.integer("MYCELIA_MAX_HEADER_BYTES", 60 * kib, 1 * kib, 1024 * kib),
        max_header_count=reader.integer("MYCELIA_MAX_HEADERS", 100, 10, 1000),
        max_body_bytes=reader.integer("MYCELIA_MAX_BODY_BYTES", 0, 0, 1 << 40),
        head_time_s=float(reader.integer("MYCELIA_HEADER_TIMEOUT", 30, 1, 3600)),
        underscores=cast(
            "Underscores",
            reader.choice("MYCELIA_HEADERS_WITH_UNDERSCORES", "allow", ("allow", "drop", "reject")),
        ),
        caller_header=_caller_header(environment.get("MYCELIA_CALLER_IDENTITY_HEADER", "")),
    )


def _caller_header(text: str) -> str:
    """A name that means nothing else, in small letters."""
    name = text.strip().lower()
    means_something = name in _TAKEN or name.encode() in grammar.LOOKED_AT or name.startswith("x-envoy-")
    if name and (means_something or "_" in name or not grammar.is_token(name.encode())):
        raise InvalidSetting(
            f"MYCELIA_CALLER_IDENTITY_HEADER is {text!r}",
            next_step="give a header name of your own without underscore, such as x-mycelia-caller",
        )
    return name


def _addresses(text: str) -> tuple[str, ...]:
    """From a list with commas, in canonical text."""
    try:
        return tuple(str(ipaddress.ip_address(each.strip())) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise InvalidSetting(
            f"INSTANCE_IP is {text!r}",
            next_step="give the waypoint's own addresses, with commas between them",
        ) from error


def _memory_limit(reader: EnvironmentReader) -> int:
    """In bytes, from MiB."""
    name = "MYCELIA_WAYPOINT_MEMORY_LIMIT"
    return (reader.optional_integer(name, None, _MIN_MEMORY_MIB, 1 << 20) or 0) << 20


def _waypoint(environment: Mapping[str, str]) -> tuple[str, str]:
    text = environment.get("MYCELIA_WAYPOINT", "")
    namespace, slash, gateway = text.partition("/")
    if not slash or not namespace or not gateway or "/" in gateway:
        found = f"MYCELIA_WAYPOINT is {text!r}" if text else "MYCELIA_WAYPOINT is not set"
        raise InvalidSetting(found, next_step="name the Gateway: NAMESPACE/NAME")
    return namespace, gateway


def _identity(reader: EnvironmentReader, namespace: str, gateway: str) -> Identity:
    found = read_identity(reader, "waypoint", {"GATEWAY": f"{namespace}/{gateway}"})
    first = found.instance_ip.partition(",")[0].strip()
    return replace(
        found,
        pod_name=found.pod_name or gateway,
        pod_namespace=found.pod_namespace or namespace,
        service_account=found.service_account or gateway,
        instance_ip=first,
    )


def _spiffe_id(identity: Identity, namespace: str) -> SpiffeId:
    text = f"spiffe://{identity.trust_domain}/ns/{namespace}/sa/{identity.service_account}"
    found = SpiffeId.try_parse(text)
    if found is None:
        raise InvalidSetting(
            f"{text} is no identity", next_step="look at TRUST_DOMAIN, SERVICE_ACCOUNT and MYCELIA_WAYPOINT"
        )
    return found
