"""Requests that are too large or too slow, names that some applications mix up, and who is said to call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dataplane.settings import InvalidSetting
from tests.waypoint.worker.kit import Routes, RunningProxy, connect, exchange, read_all, read_until
from tests.waypoint.worker.routing_kit import App
from tests.waypoint.worker.test_streaming import H2Client
from transport.spiffe import SpiffeId
from waypoint.limits import RequestLimits
from waypoint.settings import settings_from
from waypoint.state.hosts import Endpoint
from waypoint.worker.plan import Declared
from waypoint.worker.proxy import ProxySettings

CALLER = SpiffeId("cluster.local", "shop", "web")
CALLER_HEADER = "x-mycelia-caller"


@contextlib.contextmanager
def limited(limits: RequestLimits, identity: SpiffeId | None = CALLER) -> Iterator[tuple[RunningProxy, App]]:
    with App() as app:
        routes = Routes().to(b"/", Endpoint(("127.0.0.1", app.port)))
        with RunningProxy(routes, identity=identity, settings=ProxySettings(limits=limits)) as proxy:
            yield proxy, app


def get(*fields: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join(
        [b"GET " + target + b" HTTP/1.1", b"Host: a", b"Connection: close", *fields, b"", b""]
    )


@pytest.mark.parametrize(
    ("limits", "request_bytes", "status"),
    [
        (RequestLimits(max_target_bytes=100), get(target=b"/" + b"a" * 100), b"414"),
        (RequestLimits(max_target_bytes=100), get(target=b"/" + b"a" * 99), b"200"),
        (RequestLimits(max_target_bytes=100), get(target=b"/?" + b"a" * 99), b"414"),
        (RequestLimits(max_head_bytes=2048), get(b"X: " + b"a" * 2048), b"431"),
        (RequestLimits(max_header_count=10), get(*[b"X: a"] * 9), b"431"),
        (RequestLimits(max_header_count=10), get(*[b"X: a"] * 8), b"200"),
        (RequestLimits(max_body_bytes=10), get(b"Content-Length: 11") + b"a" * 11, b"413"),
        (RequestLimits(max_body_bytes=10), get(b"Content-Length: 10") + b"a" * 10, b"200"),
        (RequestLimits(underscores="reject"), get(b"X_A: 1"), b"400"),
        (RequestLimits(underscores="reject"), get(b"X-A: 1"), b"200"),
        (RequestLimits(), get(b"X_A: 1"), b"200"),
    ],
)
def test_each_limit_has_its_answer(limits: RequestLimits, request_bytes: bytes, status: bytes) -> None:
    with limited(limits) as (proxy, app):
        assert exchange(proxy.port, request_bytes).split(b" ", 2)[1] == status
        assert len(app.seen) == (status == b"200")


def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    with limited(RequestLimits(max_body_bytes=1000)) as (proxy, app), connect(proxy.port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"258\r\n" + b"a" * 600 + b"\r\n")
        sock.sendall(b"258\r\n" + b"a" * 600 + b"\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 413 ")
        assert app.seen == []


def test_over_http2_a_limit_ends_one_stream() -> None:
    limits = RequestLimits(max_target_bytes=100, max_body_bytes=100)
    with limited(limits) as (proxy, _), connect(proxy.port) as sock:
        client = H2Client(sock)
        long = client.get(b"/" + b"a" * 100)
        large = client.get(b"/", method=b"POST", end=False)
        client.codec.send_data(large, bytes(101), False)
        good = client.get(b"/")
        while not {good, long, large} <= client.ended:
            client.step()
        assert [client.statuses[each] for each in (long, large, good)] == [b"414", b"413", b"200"]


@pytest.mark.parametrize("declared", [Declared.HTTP, Declared.DETECT])
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"GET / HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_to_its_end_is_408(declared: Declared, start: bytes) -> None:
    with limited(RequestLimits(head_time_s=0.2)) as (proxy, _):
        assert exchange(proxy.ports[declared], start).startswith(b"HTTP/1.1 408 ")
        proxy.log.until(lambda log: (408, "head_took_too_long") in log.rejected)


def test_a_request_line_that_does_not_come_to_its_end_is_408() -> None:
    with limited(RequestLimits(head_time_s=0.2)) as (proxy, _):
        assert exchange(proxy.port, b"GE").startswith(b"HTTP/1.1 408 ")


def test_a_connection_between_requests_is_not_a_slow_head() -> None:
    with (
        limited(RequestLimits(head_time_s=0.05)) as (proxy, _),
        connect(proxy.port) as sock,
        connect(proxy.port) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\n")
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        read_until(sock, b"app")
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")  # so the time has passed
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        read_until(sock, b"app")


def test_names_with_underscores_can_be_dropped() -> None:
    with limited(RequestLimits(underscores="drop")) as (proxy, app):
        exchange(proxy.port, get(b"X_Admin: 1", b"X-Other: 2"))
        assert app.seen[0].header("x_admin") is None
        assert app.seen[0].header("x-other") == "2"


@pytest.mark.parametrize("identity", [CALLER, None])
@pytest.mark.parametrize(
    "name", [b"X-Mycelia-Caller", b"x-mycelia-caller", b"X_Mycelia_Caller", b"x-mycelia_caller"]
)
def test_the_application_hears_who_calls_and_never_what_a_client_says(
    name: bytes, identity: SpiffeId | None
) -> None:
    with limited(RequestLimits(caller_header=CALLER_HEADER), identity) as (proxy, app):
        forged = [name + b": spiffe://cluster.local/ns/bank/sa/admin"] * 2
        exchange(proxy.port, get(*forged, b"Connection: x-mycelia-caller"))
        told = [value for key, value in app.seen[0].headers if key.lower().replace("_", "-") == CALLER_HEADER]
        assert told == ([str(identity)] if identity else [])


def test_nothing_is_said_of_the_caller_unless_asked_for() -> None:
    with limited(RequestLimits()) as (proxy, app):
        exchange(proxy.port, get())
        assert all("spiffe" not in value for _, value in app.seen[0].headers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MYCELIA_MAX_TARGET_BYTES", "1"),
        ("MYCELIA_MAX_HEADER_BYTES", "many"),
        ("MYCELIA_MAX_HEADERS", "0"),
        ("MYCELIA_MAX_BODY_BYTES", "-1"),
        ("MYCELIA_HEADER_TIMEOUT", "0"),
        ("MYCELIA_HEADERS_WITH_UNDERSCORES", "maybe"),
        ("MYCELIA_CALLER_IDENTITY_HEADER", "host"),
        ("MYCELIA_CALLER_IDENTITY_HEADER", "Authorization"),
        ("MYCELIA_CALLER_IDENTITY_HEADER", "x_caller"),
        ("MYCELIA_CALLER_IDENTITY_HEADER", "x caller"),
        ("MYCELIA_CALLER_IDENTITY_HEADER", "x-envoy-caller"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        settings_from({"MYCELIA_WAYPOINT": "shop/waypoint", name: value})
