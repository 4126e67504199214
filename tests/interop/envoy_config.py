"""Envoy's half of a tunnel as a configuration: the smallest that does what an HBONE peer does.

Built as values and written as JSON, which Envoy reads as YAML. Every buffer, window and timer that a test
does not set is Envoy's default, because the defaults are what a peer in the field has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EXTENSIONS = "type.googleapis.com/envoy.extensions"
Config = dict[str, object]
Address = tuple[str, int]

# One line of JSON for each connection or request, from which tests learn what Envoy saw.
LOG_FIELDS = {
    "flags": "%RESPONSE_FLAGS%",
    "code": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "termination": "%CONNECTION_TERMINATION_DETAILS%",
    "transport_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "downstream_failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
    "answer": "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers:TYPED)%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "tls": "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER%",
    "protocol": "%PROTOCOL%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}
REQUEST_FIELDS = {
    "method": "%REQ(:METHOD)%",
    "scheme": "%REQ(:SCHEME)%",
    "path": "%REQ(:PATH)%",
    "authority": "%REQ(:AUTHORITY)%",
    "baggage": "%REQ(BAGGAGE)%",
    "forwarded": "%REQ(FORWARDED)%",
    "traceparent": "%REQ(TRACEPARENT)%",
    "connection": "%CONNECTION_ID%",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of one end of mutual TLS: its own certificate and the roots that it trusts."""

    chain: Path
    key: Path
    roots: Path


@dataclass(frozen=True, slots=True)
class Tls:
    """`peer`: a matcher of the other side's URI SAN, such as `{"exact": ...}`. `groups`: key exchange."""

    identity: Identity
    peer: Mapping[str, str]
    groups: Sequence[str] = ()

    def context(self) -> Config:
        identity = self.identity
        parameters: Config = {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        }
        if self.groups:
            parameters["ecdh_curves"] = list(self.groups)
        return {
            "alpn_protocols": ["h2"],
            "tls_params": parameters,
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(identity.chain)},
                    "private_key": {"filename": str(identity.key)},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(identity.roots)},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": dict(self.peer)}],
            },
        }


@dataclass(frozen=True, slots=True)
class Originate:
    """Client role: each connection to `listen` becomes one CONNECT to `authority` at `peer`.

    Entries with the same `cluster` share Envoy's connections.
    """

    name: str
    listen: Address
    authority: str
    peer: Address
    tls: Tls
    cluster: str = ""
    source_ip: str = ""
    attempts: int = 1  # how often Envoy asks for a tunnel before it gives up the application's connection
    headers: Mapping[str, str] = field(default_factory=dict)
    http2: Mapping[str, object] = field(default_factory=dict)

    def listener(self, log: Path) -> Config:
        added = [{"header": {"key": key, "value": value}} for key, value in self.headers.items()]
        proxy = _typed(
            "filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=self.name,
            cluster=self.cluster or self.name,
            max_connect_attempts=self.attempts,
            tunneling_config={
                "hostname": self.authority,
                "headers_to_add": added,
                "propagate_response_headers": True,
            },
            access_log=_access_log(self.name, log, LOG_FIELDS),
        )
        filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
        return _listener(self.name, self.listen, {"filters": filters})

    def upstream(self) -> Config:
        options = _typed(
            "upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config={"http2_protocol_options": dict(self.http2)},
        )
        tls = _typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=self.tls.context())
        more: Config = {}
        if self.source_ip:
            more["upstream_bind_config"] = {"source_address": _address((self.source_ip, 0))["socket_address"]}
        return _cluster(
            self.cluster or self.name,
            self.peer,
            **more,
            typed_extension_protocol_options={
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
            },
            transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": tls},
        )


@dataclass(frozen=True, slots=True)
class Terminate:
    """Server role: CONNECTs on `listen` are authorised by RBAC (`allowed`: matcher of the peer's URI SAN) and
    carried to `target`, whatever their authority.
    """

    name: str
    listen: Address
    target: Address
    tls: Tls
    allowed: Mapping[str, str] = field(default_factory=lambda: {"prefix": "spiffe://"})
    http2: Mapping[str, object] = field(default_factory=dict)

    def listener(self, log: Path) -> Config:
        route = {
            "match": {"connect_matcher": {}},
            "route": {
                "cluster": self.name,
                "timeout": "0s",
                "idle_timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
            },
        }
        principal = {"authenticated": {"principal_name": dict(self.allowed)}}
        rules = {
            "action": "ALLOW",
            "policies": {"peers": {"permissions": [{"any": True}], "principals": [principal]}},
        }
        filters = [
            {
                "name": "envoy.filters.http.rbac",
                "typed_config": _typed("filters.http.rbac.v3.RBAC", rules=rules),
            },
            {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")},
        ]
        manager = _typed(
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix=self.name,
            codec_type="HTTP2",
            stream_idle_timeout="0s",
            http2_protocol_options={"allow_connect": True, **self.http2},
            upgrade_configs=[{"upgrade_type": "CONNECT"}],
            route_config={"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [route]}]},
            http_filters=filters,
            access_log=_access_log(self.name, log, LOG_FIELDS | REQUEST_FIELDS),
        )
        tls = _typed(
            "transport_sockets.tls.v3.DownstreamTlsContext",
            require_client_certificate=True,
            common_tls_context=self.tls.context(),
        )
        chain = {
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }
        # A connection that fails its handshake is logged by the listener, there is no request to log.
        return _listener(self.name, self.listen, chain) | {
            "access_log": _access_log(f"{self.name} connection", log, LOG_FIELDS)
        }

    def upstream(self) -> Config:
        return _cluster(self.name, self.target)


def bootstrap(name: str, tunnels: Sequence[Originate | Terminate], admin: Address, log: Path) -> Config:
    """A whole configuration; the access log of every tunnel goes to `log`."""
    clusters = {str(made["name"]): made for made in (tunnel.upstream() for tunnel in tunnels)}
    return {
        "node": {"id": name, "cluster": "interop"},
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [tunnel.listener(log) for tunnel in tunnels],
            "clusters": list(clusters.values()),
        },
    }


def _typed(kind: str, **fields: object) -> Config:
    return {"@type": f"{EXTENSIONS}.{kind}", **fields}


def _address(address: Address) -> Config:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _listener(name: str, address: Address, chain: Mapping[str, object]) -> Config:
    return {"name": name, "address": _address(address), "filter_chains": [chain]}


def _cluster(name: str, address: Address, **more: object) -> Config:
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def _access_log(name: str, path: Path, fields: Mapping[str, str]) -> list[Config]:
    form = {"json_format": {"tunnel": name, **fields}}
    log = _typed("access_loggers.file.v3.FileAccessLog", path=str(path), log_format=form)
    return [{"name": "envoy.access_loggers.file", "typed_config": log}]
