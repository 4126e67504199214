"""Configurations of the Envoy pair: TCP to HTTP/2 CONNECT over mutual TLS, and back, as two ztunnels do it.

Built as values and written as JSON, which Envoy reads as YAML. Only what an HBONE tunnel behind redirection
needs is set; every buffer, window and thread setting is Envoy's default.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.certificates import Leaf
from loadtests.redirect import MARK

EXTENSIONS = "type.googleapis.com/envoy.extensions"
Config = dict[str, object]
UNBOUNDED = {
    "thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}]
}
BACKLOG = 4096
MAX_STREAMS = 10_000


def outbound(
    *,
    listen: tuple[str, int],
    peer: tuple[str, int],
    authority: str,
    leaf: Leaf,
    roots: Path,
    peer_id: str,
    is_original_destination: bool = False,
) -> Config:
    """The client side: every connection to `listen` becomes one CONNECT to `authority` at `peer`.

    With `is_original_destination` the listener takes on the address that the client dialled, for an authority
    with Envoy's substitutions.
    """
    proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="outbound",
        cluster="hbone",
        tunneling_config={
            "hostname": authority,
            "headers_to_add": [
                {"header": {"key": "baggage", "value": "k8s.namespace.name=default,k8s.pod.name=client"}},
                {"header": {"key": "forwarded", "value": "for=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
            ],
        },
    )
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": {"max_concurrent_streams": MAX_STREAMS}},
    )
    tls = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=tls_context(leaf, roots, {"exact": peer_id}),
    )
    return _bootstrap(
        "outbound",
        _listener(
            listen,
            {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]},
            filters=_original_destination() if is_original_destination else (),
        ),
        _cluster(
            "hbone",
            peer,
            typed_extension_protocol_options={
                EXTENSIONS.partition("/")[2] + ".upstreams.http.v3.HttpProtocolOptions": options
            },
            transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": tls},
        ),
    )


def inbound(
    *,
    listen: tuple[str, int],
    target: tuple[str, int],
    leaf: Leaf,
    roots: Path,
    trusted_prefix: str,
    others: Sequence[tuple[str, int]] = (),
) -> Config:
    """The server side: terminates HBONE, checks the peer's identity as a policy does, dials `target`, or
    one of `others`, by the authority.
    """
    targets = (target, *others)
    names = [f"{host}:{port}" for host, port in targets]
    rbac = typed(
        "filters.http.rbac.v3.RBAC",
        rules={
            "action": "ALLOW",
            "policies": {
                "mesh": {
                    "permissions": [{"any": True}],
                    "principals": [{"authenticated": {"principal_name": {"prefix": trusted_prefix}}}],
                }
            },
        },
    )
    # The server sees its client's address, as behind a ztunnel.
    original_source = typed("filters.http.original_src.v3.OriginalSrc", mark=MARK)
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options={"allow_connect": True, "max_concurrent_streams": MAX_STREAMS},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": [_connect_host(name) for name in names]},
        http_filters=[
            {"name": "envoy.filters.http.rbac", "typed_config": rbac},
            {"name": "envoy.filters.http.original_src", "typed_config": original_source},
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")},
        ],
    )
    tls = typed(
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=tls_context(leaf, roots, {"prefix": trusted_prefix}),
    )
    chain = {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
    }
    clusters = [_cluster(name, each) for name, each in zip(names, targets, strict=True)]
    return _bootstrap("inbound", _listener(listen, chain), *clusters)


def _connect_host(authority: str) -> Config:
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": authority,
            "timeout": "0s",
            "idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    return {"name": authority, "domains": [authority], "routes": [route]}


def _original_destination() -> list[Config]:
    kind = "filters.listener.original_dst.v3.OriginalDst"
    return [{"name": "envoy.filters.listener.original_dst", "typed_config": typed(kind)}]


def typed(kind: str, **fields: object) -> Config:
    return {"@type": f"{EXTENSIONS}.{kind}", **fields}


def _address(address: tuple[str, int]) -> Config:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _listener(
    address: tuple[str, int], chain: Mapping[str, object], filters: Sequence[Config] = ()
) -> Config:
    return {
        "name": "tunnel",
        "address": _address(address),
        "listener_filters": list(filters),
        "tcp_backlog_size": BACKLOG,
        "filter_chains": [chain],
    }


def _cluster(name: str, address: tuple[str, int], **more: object) -> Config:
    endpoint = {"endpoint": {"address": _address(address)}}
    mark = {"level": socket.SOL_SOCKET, "name": socket.SO_MARK, "int_value": MARK, "state": "STATE_PREBIND"}
    return {
        "name": name,
        "connect_timeout": "5s",
        "type": "STATIC",
        "upstream_bind_config": {
            "source_address": {"address": "0.0.0.0", "port_value": 0},
            "socket_options": [mark],
        },
        "circuit_breakers": UNBOUNDED,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def tls_context(leaf: Leaf, roots: Path, identity: Mapping[str, str]) -> Config:
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(leaf.chain_path)},
                "private_key": {"filename": str(leaf.key_path)},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(roots)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": dict(identity)}],
        },
    }


def _bootstrap(name: str, listener: Config, *clusters: Config) -> Config:
    return {
        "node": {"id": name, "cluster": "bench"},
        "static_resources": {"listeners": [listener], "clusters": list(clusters)},
    }
