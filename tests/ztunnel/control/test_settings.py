"""Facts 12.4: defaults, every variable's effect, and one clear message for what cannot be meant."""

from __future__ import annotations

import os

import pytest

from dataplane.settings import InvalidSetting, parse_duration
from ztunnel.settings import Dedicated, Settings, settings_from


def parsed(**environment: str) -> Settings:
    return settings_from(environment)


def test_defaults() -> None:
    settings = parsed()
    assert settings.xds is not None
    assert (settings.xds.host, settings.xds.port, settings.xds.is_tls) == ("localhost", 15012, True)
    assert settings.ca == settings.xds
    assert settings.xds.roots == "./var/run/secrets/istio/root-cert.pem"
    assert settings.identity.cluster_id == "Kubernetes"
    assert settings.identity.trust_domain == "cluster.local"
    assert settings.zds_socket == "/var/run/ztunnel/ztunnel.sock"
    assert settings.data_path.packet_mark == 1337
    assert settings.data_path.is_spoofing is None
    assert settings.data_path.is_ipv6
    assert (settings.data_path.pool_max_streams, settings.data_path.pool_idle_s) == (100, 300.0)
    windows = settings.data_path.stream_window_bytes, settings.data_path.connection_window_bytes
    assert windows == (4 << 20, 16 << 20)
    assert settings.data_path.frame_bytes == 1 << 20
    assert (settings.workers, settings.drain_deadline_s, settings.secret_ttl_s) == (1, 5.0, 86400.0)
    assert (settings.admin_port, settings.stats_port, settings.readiness_port) == (15000, 15020, 15021)
    assert settings.dedicated is None


def test_in_kubernetes_the_control_plane_is_istiod() -> None:
    settings = parsed(KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert settings.xds is not None
    assert settings.xds.host == "istiod.istio-system.svc"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("cp:15012", ("cp", 15012, True)),
        ("https://cp:1", ("cp", 1, True)),
        ("http://127.0.0.1:15010", ("127.0.0.1", 15010, False)),
        ("cp", ("cp", 15012, True)),
        ("[::1]:15012", ("::1", 15012, True)),
        ("https://[fd00::1]", ("fd00::1", 15012, True)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int, bool]) -> None:
    xds = parsed(XDS_ADDRESS=address).xds
    assert xds is not None
    assert (xds.host, xds.port, xds.is_tls) == expected


def test_ca_follows_xds_unless_set() -> None:
    assert parsed(XDS_ADDRESS="cp:1").ca.host == "cp"
    assert parsed(XDS_ADDRESS="cp:1", CA_ADDRESS="ca:2").ca.host == "ca"
    only_ca = parsed(XDS_ADDRESS="", CA_ADDRESS="ca:2")
    assert only_ca.xds is None
    assert only_ca.ca.host == "ca"


def test_trust_and_headers() -> None:
    settings = parsed(
        XDS_ROOT_CA="/x.pem", CA_ROOT_CA="SYSTEM", ALT_XDS_HOSTNAME="alt", XDS_HEADER_X_A="1", CA_HEADER_B="2"
    )
    assert settings.xds is not None
    assert (settings.xds.roots, settings.xds.alternative_name) == ("/x.pem", "alt")
    assert settings.xds.headers == (("x_a", "1"),)
    assert (settings.ca.roots, settings.ca.headers) == ("SYSTEM", (("b", "2"),))


def test_node_identity() -> None:
    identity = parsed(
        NODE_NAME="n1",
        NETWORK="net",
        CLUSTER_ID="c1",
        ISTIO_META_CLUSTER_ID="c2",
        POD_NAME="zt",
        POD_NAMESPACE="istio-system",
        INSTANCE_IP="10.0.0.1",
        ISTIO_META_DNS_CAPTURE="true",
        ISTIO_METAJSON_LABELS='{"a": [1]}',
        PROXY_CONFIG="{proxyMetadata: {ISTIO_META_X: fromfile, DNS_CAPTURE: overridden}}",
    ).identity
    assert (identity.node, identity.network, identity.cluster_id) == ("n1", "net", "c2")
    assert identity.node_id == "ztunnel~10.0.0.1~zt.istio-system~istio-system.svc.cluster.local"
    assert identity.metadata == {
        "X": "fromfile",
        "DNS_CAPTURE": "true",
        "CLUSTER_ID": "c2",
        "LABELS": {"a": [1]},
    }


def test_proxy_config() -> None:
    text = "{discoveryAddress: 'cp:1', proxyAdminPort: 1, statsPort: 2, concurrency: 3}"
    settings = parsed(PROXY_CONFIG=text)
    assert settings.xds is not None
    assert (settings.xds.host, settings.admin_port, settings.stats_port, settings.workers) == ("cp", 1, 2, 3)
    over = parsed(
        PROXY_CONFIG=text, XDS_ADDRESS="other:1", MYCELIA_ADMIN_PORT="9", ZTUNNEL_WORKER_THREADS="1"
    )
    assert over.xds is not None
    assert (over.xds.host, over.admin_port, over.workers) == ("other", 9, 1)


def test_data_path() -> None:
    data_path = parsed(
        PACKET_MARK="0x539",
        ENABLE_ORIG_SRC="false",
        IPV6_ENABLED="false",
        INPOD_PORT_REUSE="0",
        KEEPALIVE_ENABLED="false",
        KEEPALIVE_TIME="10s",
        KEEPALIVE_INTERVAL="250ms",
        KEEPALIVE_RETRIES="3",
        USER_TIMEOUT_ENABLED="true",
        POOL_MAX_STREAMS_PER_CONNECTION="7",
        POOL_UNUSED_RELEASE_TIMEOUT="1m30s",
        HTTP2_FRAME_SIZE="16384",
        LOCALHOST_APP_TUNNEL="false",
        ENABLE_RESPONSE_BAGGAGE="false",
        MYCELIA_HTTP2_CODEC="reference",
    ).data_path
    assert (data_path.packet_mark, data_path.is_spoofing, data_path.is_ipv6) == (1337, False, False)
    assert (data_path.is_port_reuse, data_path.codec) == (False, "reference")
    keepalive = data_path.keepalive
    assert (keepalive.is_enabled, keepalive.idle_s, keepalive.interval_s) == (False, 10.0, 0.25)
    assert (keepalive.probes, keepalive.is_user_timeout) == (3, True)
    assert (data_path.pool_max_streams, data_path.pool_idle_s) == (7, 90.0)
    assert (data_path.frame_bytes, data_path.is_localhost_app_tunnel) == (16384, False)
    assert not data_path.is_response_baggage


def test_dedicated_mode_has_no_mark_unless_told() -> None:
    settings = parsed(PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="ns/name/sa")
    assert settings.dedicated == Dedicated("ns", "name", "sa")
    assert settings.data_path.packet_mark is None
    marked = parsed(PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="ns/name/sa", PACKET_MARK="1")
    assert marked.data_path.packet_mark == 1


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("text", "workers"), [("3", 3), ("0", CORES), ("100%", CORES), ("1%", 1), ("", 1)])
def test_worker_count(text: str, workers: int) -> None:
    assert parsed(ZTUNNEL_WORKER_THREADS=text).workers == workers


@pytest.mark.parametrize(
    ("environment", "deadline_s"),
    [
        ({}, 5.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "7s"}, 7.0),
    ],
)
def test_drain_deadline(environment: dict[str, str], deadline_s: float) -> None:
    assert settings_from(environment).drain_deadline_s == deadline_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("1.5m", 90.0), ("1h30m", 5400.0), ("250ms", 0.25), ("2d", 172800.0), ("0", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "10x", "-1s", "1s 2s", "s10"])
def test_wrong_durations(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPV6_ENABLED", "yes"),
        ("ENABLE_ORIG_SRC", "maybe"),
        ("PACKET_MARK", "-1"),
        ("PACKET_MARK", "x"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("HTTP2_FRAME_SIZE", "100"),
        ("HTTP2_STREAM_WINDOW_SIZE", "4294967296"),
        ("KEEPALIVE_TIME", "180"),
        ("SECRET_TTL", "soon"),
        ("ZTUNNEL_WORKER_THREADS", "many"),
        ("ZTUNNEL_WORKER_THREADS", "101%"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "loud"),
        ("PROXY_MODE", "sidecar"),
        ("MYCELIA_ADMIN_PORT", "70000"),
        ("MYCELIA_HTTP2_CODEC", "fast"),
        ("XDS_ADDRESS", "ftp://x"),
        ("XDS_ADDRESS", "cp:99999"),
        ("XDS_ADDRESS", "https://:15012"),
        ("CA_ADDRESS", ""),
        ("ISTIO_METAJSON_X", "{"),
        ("PROXY_CONFIG", "{"),
        ("PROXY_CONFIG", "[]"),
        ("PROXY_CONFIG", "{statsPort: x}"),
        ("CRL_PATH", "/crl.pem"),
        ("LOCAL_XDS_PATH", "/x"),
        ("XDS_ON_DEMAND", "true"),
        ("FAKE_CA", "true"),
        ("TLS12_ENABLED", "true"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("ENABLE_PROXY", "false"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        settings_from({name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("info", ["", "a/b", "a//c", "a/b/c/d"])
def test_dedicated_needs_a_workload(info: str) -> None:
    with pytest.raises(InvalidSetting, match="PROXY_WORKLOAD_INFO"):
        parsed(PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO=info)


def test_wishes_that_change_nothing_are_named() -> None:
    assert parsed().without_effect == ()
    found = parsed(KEEPALIVE_TIME="10s", CLUSTER_DOMAIN="x", NODE_NAME="n").without_effect
    assert found == ("CLUSTER_DOMAIN", "KEEPALIVE_TIME")
