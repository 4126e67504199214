"""Envoy as client-side tunnel, waypoint and server-side tunnel: the configuration of the middle one.

As Istio builds a waypoint: HBONE ends at one listener, its tunnels lead to an internal listener that speaks
HTTP, and requests leave through another internal listener that makes CONNECT tunnels. Retries and route
tables are the same as ours have; stats are on, the access log is off, everything else is Envoy's default.
"""

from __future__ import annotations

from pathlib import Path

from loadtests.certificates import Credentials
from loadtests.envoy.template import BACKLOG, EXTENSIONS, MAX_STREAMS, UNBOUNDED, Config, tls_context, typed
from loadtests.waypoint.routes import ROUTE_COUNTS, other_prefix
from loadtests.waypoint.site import GRPC_BACKEND, HTTP_BACKEND, Site

RETRIES = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
    "num_retries": 2,
}


def waypoint(site: Site, credentials: Credentials) -> Config:
    leaf, roots = credentials.waypoint, credentials.roots_path
    ports = [*ROUTE_COUNTS, 81]
    listeners = [_terminate(site, ports, _tls("Downstream", leaf_context(leaf, roots)))]
    clusters: list[Config] = []
    for port in ports:
        is_grpc = port == 81
        backend = f"{site.server_ip}:{GRPC_BACKEND if is_grpc else HTTP_BACKEND}"
        listeners += [_http(port, ROUTE_COUNTS.get(port, 1)), _originate(port, backend)]
        clusters += [_internal(f"main-{port}"), _app(port, is_grpc=is_grpc)]
    clusters.append(_peer(site, credentials))
    return {
        "node": {"id": "waypoint", "cluster": "bench"},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": typed("bootstrap.internal_listener.v3.InternalListener"),
            }
        ],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def leaf_context(leaf: object, roots: Path) -> Config:
    return tls_context(leaf, roots, {"prefix": "spiffe://cluster.local/"})  # type: ignore[arg-type]


def _tls(direction: str, context: Config) -> Config:
    more: Config = {"require_client_certificate": True} if direction == "Downstream" else {}
    kind = f"transport_sockets.tls.v3.{direction}TlsContext"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed(kind, common_tls_context=context, **more),
    }


def _router() -> list[Config]:
    return [{"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")}]


def _manager(name: str, hosts: list[Config], **more: object) -> Config:
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"virtual_hosts": hosts},
        http_filters=_router(),
        stream_idle_timeout="0s",
        **more,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _terminate(site: Site, ports: list[int], tls: Config) -> Config:
    def host(port: int) -> Config:
        route = {
            "cluster": f"main-{port}",
            "timeout": "0s",
            "idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        }
        return {
            "name": f"vip-{port}",
            "domains": [f"{site.vip}:{port}"],
            "routes": [{"match": {"connect_matcher": {}}, "route": route}],
        }

    manager = _manager(
        "connect_terminate",
        [host(port) for port in ports],
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True, "max_concurrent_streams": MAX_STREAMS},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
    )
    return {
        "name": "connect_terminate",
        "address": {"socket_address": {"address": site.waypoint_ip, "port_value": 15008}},
        "tcp_backlog_size": BACKLOG,
        "filter_chains": [{"transport_socket": tls, "filters": [manager]}],
    }


def _http(port: int, count: int) -> Config:
    def route(prefix: str) -> Config:
        match: Config = {"prefix": "/"} if prefix == "/" else {"path_separated_prefix": prefix}
        return {"match": match, "route": {"cluster": f"app-{port}", "timeout": "0s"}}

    routes = [route(other_prefix(number)) for number in range(count - 1)]
    host: Config = {"name": "app", "domains": ["*"], "retry_policy": RETRIES, "routes": [*routes, route("/")]}
    return {
        "name": f"main-{port}",
        "internal_listener": {},
        "filter_chains": [{"filters": [_manager(f"main-{port}", [host], codec_type="AUTO")]}],
    }


def _originate(port: int, authority: str) -> Config:
    proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=f"originate-{port}",
        cluster="hbone-peer",
        tunneling_config={"hostname": authority},
    )
    return {
        "name": f"originate-{port}",
        "internal_listener": {},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    }


def _internal(name: str, target: str = "", **more: object) -> Config:
    address = {"envoy_internal_address": {"server_listener_name": target or name, "endpoint_id": name}}
    raw = {
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": typed("transport_sockets.raw_buffer.v3.RawBuffer"),
    }
    return {
        "name": name,
        "connect_timeout": "5s",
        "type": "STATIC",
        "circuit_breakers": UNBOUNDED,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.internal_upstream",
            "typed_config": typed(
                "transport_sockets.internal_upstream.v3.InternalUpstreamTransport", transport_socket=raw
            ),
        },
        **more,
    }


def _options(protocol: str) -> Config:
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={f"{protocol}_protocol_options": {}}
    )
    return {EXTENSIONS.partition("/")[2] + ".upstreams.http.v3.HttpProtocolOptions": options}


def _app(port: int, *, is_grpc: bool) -> Config:
    protocol = "http2" if is_grpc else "http"
    return _internal(f"app-{port}", f"originate-{port}", typed_extension_protocol_options=_options(protocol))


def _peer(site: Site, credentials: Credentials) -> Config:
    context = tls_context(
        credentials.waypoint, credentials.roots_path, {"exact": credentials.server.spiffe_id}
    )
    address = {"socket_address": {"address": site.server_ip, "port_value": 15008}}
    return {
        "name": "hbone-peer",
        "connect_timeout": "5s",
        "type": "STATIC",
        "circuit_breakers": UNBOUNDED,
        "typed_extension_protocol_options": _options("http2"),
        "load_assignment": {
            "cluster_name": "hbone-peer",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "transport_socket": _tls("Upstream", context),
    }
