"""What both data planes take from their environment: typed access, the control plane's addresses, identity.

The variables are those of Istio's node proxy, so that its manifests work; ours begin with `MYCELIA_`. A value
that means nothing is refused with one message that names the variable, what was found and what is allowed.
Nothing below a composition root reads the environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

from telemetry.errors import InvalidLogLevel
from telemetry.logging import LogLevels
from transport.errors import Blame, MeshError

DEFAULT_XDS_PORT = 15012
DEFAULT_ROOT_CA = "./var/run/secrets/istio/root-cert.pem"
DEFAULT_TOKEN = "./var/run/secrets/tokens/istio-token"  # noqa: S105 - a path

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
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
    """Who this proxy is to the control plane; `kind` is the first word of the xDS node id."""

    kind: str = "ztunnel"
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
        return f"{self.kind}~{ip}~{self.pod_name}.{namespace}~{namespace}.svc.cluster.local"


class EnvironmentReader:
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

    def workers(self, name: str, concurrency: int | None = None) -> int:
        """A number, `N%` of the cores, or 0 for all of them."""
        text = self.environment.get(name, "").strip() or str(concurrency or "1")
        cores = len(os.sched_getaffinity(0))
        is_share = text.endswith("%")
        number = _parse_int(text.rstrip("%"), 0, 100 if is_share else 1024)
        if number is None:
            raise InvalidSetting(f"{name} is {text!r}", next_step="allowed: a number, N% or 0 for all cores")
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


def read_identity(reader: EnvironmentReader, kind: str, metadata: Mapping[str, object]) -> Identity:
    """Names, network and metadata; ISTIO_META_* and ISTIO_METAJSON_* add to `metadata`."""
    environment = reader.environment
    metadata = dict(metadata)
    for key, value in environment.items():
        if key.startswith("ISTIO_META_"):
            metadata[key.removeprefix("ISTIO_META_")] = value
        elif key.startswith("ISTIO_METAJSON_"):
            metadata[key.removeprefix("ISTIO_METAJSON_")] = reader.json(key)
    return Identity(
        kind=kind,
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
