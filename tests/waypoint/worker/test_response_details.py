"""Flags and details of waypoint-facts 12.1 and 15, each in the situation that it is for. What cannot occur
stands in docs/response-flags.md.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack
import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import workload
from tests.waypoint.resources import (
    WEB,
    backend,
    endpoint,
    forward,
    prefix,
    routes,
    rule,
    seconds,
    web_service,
)
from tests.waypoint.worker.kit import (
    Routes,
    RunningProxy,
    ScriptedServer,
    connect,
    exchange,
    free_port,
    read_all,
    read_until,
)
from tests.waypoint.worker.routing_kit import Waypoint
from waypoint.state.flags import Details, Flag
from waypoint.worker.codec_details import codec_details
from waypoint.worker.dial import TcpDialler
from waypoint.worker.plan import Declared
from waypoint.worker.resolver import Resolver, ResolvingDialler

DOCUMENT = Path(__file__).parents[3] / "docs" / "response-flags.md"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
WHOLE = pb.Fraction(numerator=1, denominator=1)
BEFORE, AFTER = "upstream_reset_before_response_started", "upstream_reset_after_response_started"
Play = Callable[[socket.socket], None]


def answering(octets: bytes) -> Play:
    def play(upstream: socket.socket) -> None:
        upstream.sendall(octets)

    return play


def nothing(_: socket.socket) -> None: ...


OK = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    ("play", "status", "flag", "details"),
    [
        (OK, 200, "-", "via_upstream"),
        (answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), 503, "-", "via_upstream"),
        (nothing, 503, "UC", f"{BEFORE}{{connection_termination}}"),
        (answering(b"what\r\n\r\n"), 502, "UPE", f"{BEFORE}{{protocol_error}}"),
        (
            answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"),
            200,
            "UC",
            f"{AFTER}{{connection_termination}}",
        ),
    ],
)
def test_what_the_upstream_does(play: Play, status: int, flag: str, details: str) -> None:
    with (
        ScriptedServer() as server,
        Waypoint(web_service(), endpoint("a", server.port), routes()) as waypoint,
        connect(waypoint.port) as client,
    ):
        client.sendall(POST)  # a GET would be repeated
        with server.accept() as upstream:
            read_until(upstream, b"body")
            play(upstream)
        read_all(client)
        assert outcome_of(waypoint) == (status, flag, details)


@pytest.mark.parametrize(
    ("made", "status", "flag", "details"),
    [
        (rule("r", prefix("/other")), 404, "NR", "route_not_found"),
        (rule("r", direct_response={"status": 418}), 418, "-", "direct_response"),
        (rule("r", redirect={"hostname": "b", "status": 302}), 302, "-", "direct_response"),
        (rule("r", fault=pb.Fault(abort_share=WHOLE, abort_status=503)), 503, "FI", "fault_filter_abort"),
        (
            rule("r", fault=pb.Fault(delay_share=WHOLE, delay=seconds(0.001))),
            503,
            "UF,URX,DI",
            f"{BEFORE}{{connection_failure}}",
        ),
        (rule("r"), 503, "UF,URX", f"{BEFORE}{{connection_failure}}"),
        (rule("r", retries=pb.RetryPolicy(attempts=0)), 503, "UF", f"{BEFORE}{{connection_failure}}"),
        (rule("r", forward=forward(backend("default/no"))), 503, "NC", "cluster_not_found{default/no}"),
        (rule("r", forward=forward(backend("default/idle"))), 503, "UH", "no_healthy_upstream"),
    ],
)
def test_what_the_route_says(made: pb.HttpRule, status: int, flag: str, details: str) -> None:
    idle = web_service("10.96.0.2", key="default/idle")
    dead = endpoint("a", free_port())
    with Waypoint(web_service(), idle, dead, routes(made)) as waypoint:
        exchange(waypoint.port, GET)
        assert outcome_of(waypoint) == (status, flag, details)


def test_timeouts() -> None:
    tries = pb.RetryPolicy(attempts=0, per_try_timeout=seconds(0.05))
    with (
        ScriptedServer() as server,
        Waypoint(
            web_service(),
            endpoint("a", server.port),
            routes(rule("try", prefix("/try"), retries=tries), rule("all", timeout=seconds(0.05))),
        ) as waypoint,
    ):
        exchange(waypoint.port, GET.replace(b"/x", b"/try"))
        assert outcome_of(waypoint) == (504, "UT", "upstream_per_try_timeout")
        exchange(waypoint.port, GET)
        assert outcome_of(waypoint, 2) == (504, "UT", "response_timeout")


@pytest.mark.parametrize(
    ("request_", "status"),
    [(GET, 504), (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", 408)],
)
def test_whose_turn_it_was_when_nothing_happened(request_: bytes, status: int) -> None:
    with ScriptedServer() as server:
        plan = Routes().to(b"/", server.endpoint(), idle_timeout_s=0.05)
        with RunningProxy(plan) as proxy, connect(proxy.port) as client:
            client.sendall(request_)
            assert read_until(client, b"stream timeout").startswith(b"HTTP/1.1 %d" % status)
            assert outcome_of(proxy) == (status, "SI", "stream_idle_timeout")


def test_a_name_without_an_address() -> None:
    def look_up(name: str) -> list[str]:
        raise OSError("no such name")

    with RunningProxyOfNames(look_up) as waypoint:
        assert exchange(waypoint.port, GET).endswith(b"DNS resolution failure")
        assert outcome_of(waypoint) == (503, "DF,URX", "dns_resolution_failure")
        with contextlib.suppress(ConnectionError), connect(waypoint.ports[Declared.TCP]) as client:
            read_all(client)


class RunningProxyOfNames(Waypoint):
    def __init__(self, look_up: Callable[[str], list[str]]) -> None:
        named = workload("a", hbone=False, hostname="gone.example", services={WEB: {80: 80}})
        super().__init__(
            web_service(),
            named,
            routes(),
            make_dialler=lambda reactor, buffer: ResolvingDialler(
                TcpDialler(reactor, buffer), Resolver(reactor, look_up), lambda: 0.0
            ),
        )


def test_a_client_that_goes_away() -> None:
    with ScriptedServer() as server, RunningProxy(Routes().to(b"/", server.endpoint())) as proxy:
        with connect(proxy.port) as client:
            client.sendall(GET)
            upstream = server.accept()
            read_until(upstream, b"\r\n\r\n")
        with upstream:
            assert outcome_of(proxy) == (0, "DC", "downstream_remote_disconnect")


@pytest.mark.parametrize(
    ("octets", "status", "details"),
    [
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 426, "low_version"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "missing_host_header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, None),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400, "http1.invalid_characters"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "http1.headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 150 + b"\r\n", 431, "http1.too_many_headers"),
        (b"what is this?\r\n\r\n", 400, "http1.codec_error"),
    ],
)
def test_what_is_no_request(octets: bytes, status: int, details: str | None) -> None:
    with RunningProxy(Routes()) as proxy:
        assert exchange(proxy.port, octets).startswith(b"HTTP/1.1 %d" % status)
        proxy.log.until(lambda log: len(log.rejected) == 1)
        wanted = details or "http1.content_length_and_chunked_not_allowed"
        assert proxy.log.rejected_details == [wanted]


@pytest.mark.parametrize(
    ("octets", "status", "flag", "details"),
    [
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "DPE", "path_normalization_failed"),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
            403,
            "-",
            "upgrade_failed",
        ),
    ],
)
def test_requests_that_are_refused(octets: bytes, status: int, flag: str, details: str) -> None:
    with RunningProxy(Routes()) as proxy, connect(proxy.port) as client:
        client.sendall(octets)
        read_until(client, b"HTTP/1.1 %d" % status)
        assert outcome_of(proxy) == (status, flag, details)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
EMPTY_DATA = bytes(4) + b"\x00" + b"\x00\x00\x00\x01"
PING_ON_A_STREAM = b"\x00\x00\x08\x06\x00\x00\x00\x00\x01" + bytes(8)


@pytest.mark.parametrize(
    ("frames", "details"),
    [
        (PING_ON_A_STREAM, "http2.violation.ping_on_a_stream"),
        (EMPTY_DATA * 5000, "http2.inbound_empty_frames_flood"),
        (b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8), "http2.outbound_frames_flood"),
    ],
)
def test_a_stream_of_a_connection_that_breaks_http2(frames: bytes, details: str) -> None:
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/x")]
    block = hpack.Encoder().encode(fields)
    head = len(block).to_bytes(3, "big") + b"\x01\x04" + b"\x00\x00\x00\x01" + block
    with (
        ScriptedServer() as server,
        RunningProxy(Routes().to(b"/", server.endpoint())) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(PREFACE + head)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            repeats = 20_000 if details.endswith("outbound_frames_flood") else 1
            with contextlib.suppress(ConnectionError):
                client.sendall(frames * repeats)
            assert outcome_of(proxy) == (0, "DPE", details)


def test_a_connection_that_is_no_http_and_leads_nowhere() -> None:
    rule_ = pb.TcpRule(name="r", backends=[backend(WEB)])
    to_web = routes(protocol=pb.TCP, tcp=[rule_])
    with Waypoint(web_service(), to_web) as waypoint:
        assert tcp_flag(waypoint, 1) == "UH"
        waypoint.put(endpoint("a", free_port()))
        assert tcp_flag(waypoint, 2) == "UF,URX"
    with Waypoint(web_service(), routes(protocol=pb.TCP), destination=("10.9.9.9", 1)) as waypoint:
        assert tcp_flag(waypoint, 1) == "NR"


def tcp_flag(proxy: RunningProxy, count: int) -> str:
    with contextlib.suppress(ConnectionError), connect(proxy.ports[Declared.TCP]) as client:
        read_all(client)
    proxy.log.until(lambda log: len(log.tcp) == count)
    return proxy.log.tcp[-1].flag


def outcome_of(proxy: RunningProxy, count: int = 1) -> tuple[int, str, str]:
    proxy.log.until(lambda log: len(log.exchanges) >= count)
    found = proxy.log.exchanges[count - 1].outcome
    return found.status, found.flag, found.details


def test_a_head_that_takes_too_long_has_its_own_word() -> None:
    assert codec_details("head_took_too_long", is_http2=False) == "request_header_timeout"


def documented() -> Iterator[str]:
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def test_every_flag_and_detail_is_documented_and_nothing_else() -> None:
    found = set(documented())
    flags = {each.value for each in Flag} - {"-"}
    assert flags <= found
    assert {each.value for each in Details} <= found
