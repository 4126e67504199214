"""Which host gets which request, in which protocol, through a real proxy."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from dataplane.state.model import ADDRESS_TYPE
from proto.istio import workload_pb2 as mesh_pb
from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import service
from tests.waypoint.resources import (
    VIP,
    WEB,
    backend,
    destination,
    endpoint,
    forward,
    prefix,
    routes,
    rule,
    seconds,
    web_service,
)
from tests.waypoint.worker.kit import PATIENCE_S, ScriptedServer, connect, read_until
from tests.waypoint.worker.routing_kit import App, Reply, Seen, Waypoint, apps
from tests.waypoint.worker.test_combinations import CURL_VERSIONS, curl, nghttpd
from waypoint.state.destinations import DESTINATION_TYPE
from waypoint.state.hosts import Application

Policy = pb.TrafficPolicy


# --- affinity ---


def key(**fields: object) -> Policy:
    return Policy(balancer=Policy.RING_HASH, hash_key=pb.HashKey(**fields))  # type: ignore[arg-type]


def test_a_key_stays_with_its_host_when_others_come_and_go() -> None:
    with (
        apps("a", "b", "c") as servers,
        Waypoint(
            web_service(),
            *(endpoint(each.name, each.port) for each in servers),
            routes(),
            destination(key(header="x-user")),
        ) as waypoint,
    ):
        users = [f"user-{number}" for number in range(30)]
        before = {user: waypoint.get(x_user=user)[2] for user in users}
        assert len(set(before.values())) == 3
        assert {user: waypoint.get(x_user=user)[2] for user in users} == before
        gone = before[users[0]].decode()
        waypoint.remove(ADDRESS_TYPE, gone)
        after = {user: waypoint.get(x_user=user)[2] for user in users}
        # Those who stay get more places on the ring, so a few keys move between them too.
        kept = [user for user in users if before[user] != gone.encode()]
        assert sum(after[user] == before[user] for user in kept) >= len(kept) * 0.6


def test_a_cookie_is_made_for_a_client_without_one() -> None:
    policy = key(cookie=pb.HashKey.Cookie(name="stick", path="/", ttl=seconds(60)))
    with (
        apps("a", "b", "c") as servers,
        Waypoint(
            web_service(),
            *(endpoint(each.name, each.port) for each in servers),
            routes(),
            destination(policy),
        ) as waypoint,
    ):
        _, headers, body = waypoint.get()
        cookie = headers["set-cookie"]
        assert cookie.startswith("stick=")
        assert "Max-Age=60" in cookie
        for _ in range(10):
            _, headers, again = waypoint.get(cookie=cookie.partition(";")[0])
            assert again == body
            assert "set-cookie" not in headers


def test_a_session_stays_with_its_host_and_backend() -> None:
    persistence = pb.SessionPersistence(name="session")
    with apps("a", "b", "c") as servers:
        split = forward(backend(WEB, 1), backend("default/other", 1))
        resources = (
            web_service(),
            web_service("10.96.0.2", key="default/other"),
            endpoint("a", servers[0].port),
            endpoint("b", servers[1].port),
            endpoint("c", servers[2].port, key="default/other"),
            routes(rule("s", forward=split, session_persistence=persistence)),
        )
        with Waypoint(*resources) as waypoint:
            for _ in range(5):
                _, headers, body = waypoint.get()
                cookie = headers["set-cookie"].partition(";")[0]
                assert {waypoint.get(cookie=cookie)[2] for _ in range(8)} == {body}
            # its host has gone: another one, and a new session
            waypoint.remove(ADDRESS_TYPE, body.decode())
            if body != b"c":
                _, headers, other = waypoint.get(cookie=cookie)
                assert other != body
                assert "set-cookie" in headers


@pytest.mark.parametrize("balancer", [Policy.LEAST_REQUEST, Policy.ROUND_ROBIN, Policy.RANDOM])
def test_all_hosts_get_their_share(balancer: Policy.Balancer.ValueType) -> None:
    with (
        apps("a", "b") as servers,
        Waypoint(
            web_service(),
            *(endpoint(each.name, each.port) for each in servers),
            routes(),
            destination(Policy(balancer=balancer)),
        ) as waypoint,
    ):
        found = Counter(waypoint.bodies(100))
        assert found[b"a"] == pytest.approx(50, abs=20)


def test_a_busy_host_gets_less_than_an_idle_one() -> None:
    release = threading.Event()

    def slow(seen: Seen) -> Reply:
        if seen.path == "/hold":
            release.wait(PATIENCE_S)
        return Reply(body=b"busy")

    with (
        App("busy", slow) as busy,
        App("idle") as idle,
        Waypoint(web_service(), endpoint("busy", busy.port), routes()) as waypoint,
    ):
        holders = [threading.Thread(target=waypoint.get, args=("/hold",)) for _ in range(4)]
        for each in holders:
            each.start()
        busy.until(4)
        waypoint.put(endpoint("idle", idle.port))
        found = Counter(waypoint.bodies(40))
        release.set()
        for each in holders:
            each.join(PATIENCE_S)
        assert found[b"idle"] > found[b"busy"]  # both choices are the busy one for a quarter


def test_subsets_have_their_own_hosts_and_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waypoint.state.store._GRACE_S", 0.0)
    subsets = [pb.Subset(name="v1", workloads=["a"]), pb.Subset(name="v2", workloads=["b"])]
    rules = (
        rule("v1", prefix("/v1"), forward=forward(backend(WEB, subset="v1"))),
        rule("v2", prefix("/v2"), forward=forward(backend(WEB, subset="v2"))),
    )
    with (
        apps("a", "b") as servers,
        Waypoint(
            web_service(),
            *(endpoint(each.name, each.port) for each in servers),
            routes(*rules),
            destination(subsets=subsets),
        ) as waypoint,
    ):
        assert set(waypoint.bodies(10, "/v1")) == {b"a"}
        assert set(waypoint.bodies(10, "/v2")) == {b"b"}
        waypoint.remove(DESTINATION_TYPE, WEB)
        waypoint.ask(waypoint.state.sweep)
        assert waypoint.get("/v1")[0] == 503


# --- protocols ---


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("way", ["port", "policy", "client"])
def test_the_upstreams_protocol(tmp_path: Path, version: str, way: str) -> None:
    """HTTP/2 by the port's declaration or the policy; as the client where the policy says so."""
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload")
    pool = pb.ConnectionPool(upgrades_to_http2=way == "policy", uses_client_protocol=way == "client")
    with nghttpd(web) as h2, App("h1") as h1:
        is_http2 = way != "client" or version != "--http1.1"
        port = h2.address[1] if is_http2 else h1.port
        with Waypoint(
            web_service(),
            endpoint("a", port),
            routes(protocol=pb.HTTP2 if way == "port" else pb.HTTP),
            destination(Policy(connection_pool=pool)),
        ) as waypoint:
            assert curl(waypoint.port, "/file", version) == (b"payload" if is_http2 else b"h1")


def test_the_address_book_tells_the_protocol_of_a_service_that_is_not_served(tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload")
    other = service("other", "10.96.0.2", ports={80: 0})
    other.ports[0].app_protocol = mesh_pb.GRPC
    with (
        nghttpd(web) as h2,
        Waypoint(
            web_service(),
            other,
            endpoint("a", h2.address[1], key="default/other"),
            routes(rule("r", forward=forward(backend("default/other")))),
        ) as waypoint,
    ):
        assert waypoint.get("/file")[2] == b"payload"
        cluster = waypoint.ask(lambda: waypoint.state.cluster("default/other", 80))
        assert cluster is not None
        assert cluster.application is Application.HTTP2


def test_a_websocket_passes() -> None:
    with (
        ScriptedServer() as server,
        Waypoint(
            web_service(), endpoint("a", server.port), routes(rule("r", timeout=seconds(30)))
        ) as waypoint,
        connect(waypoint.port) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        with server.accept() as upstream:
            assert b"upgrade: websocket" in read_until(upstream, b"\r\n\r\n").lower()
            upstream.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            read_until(client, b"\r\n\r\n")
            client.sendall(b"ping")
            assert upstream.recv(4) == b"ping"
            upstream.sendall(b"pong")
            assert client.recv(4) == b"pong"


# --- gRPC ---


class Named(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Says its name; /t/fail fails with UNAVAILABLE the first time."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.calls: list[dict[str, str]] = []

    def service(self, details: grpc.HandlerCallDetails) -> object:
        self.calls.append(dict(details.invocation_metadata))
        if details.method == "/t/fail":
            return grpc.unary_unary_rpc_method_handler(self._fail)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: self.name)

    def _fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if len(self.calls) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return self.name


@contextlib.contextmanager
def grpc_server(name: bytes) -> Iterator[tuple[Named, int]]:
    handler = Named(name)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, port
    server.stop(None).wait()


def test_calls_of_one_grpc_connection_go_to_all_hosts() -> None:
    with (
        grpc_server(b"a") as (_, one),
        grpc_server(b"b") as (_, two),
        Waypoint(
            web_service(),
            endpoint("a", one),
            endpoint("b", two),
            routes(protocol=pb.GRPC),
            destination(Policy(balancer=Policy.ROUND_ROBIN)),
        ) as waypoint,
        grpc.insecure_channel(f"127.0.0.1:{waypoint.port}") as channel,
    ):
        call = channel.unary_unary("/t/name")
        found = Counter(call(b"", timeout=PATIENCE_S) for _ in range(20))
        assert found == {b"a": 10, b"b": 10}
        waypoint.log.until(lambda log: len(log.exchanges) == 20)
        assert {each.outcome.grpc_status for each in waypoint.log.exchanges} == {b"0"}


def test_grpc_status_decides_about_retries_and_the_time_left_is_passed_on() -> None:
    policy = pb.RetryPolicy(attempts=1, on=["unavailable"])
    rules = (
        rule("fail", pb.HttpMatch(path=pb.PathMatch(exact="/t/fail")), retries=policy, is_grpc=True),
        rule("abort", pb.HttpMatch(path=pb.PathMatch(exact="/t/abort")), is_grpc=True, fault=pb.Fault(
            abort_share=pb.Fraction(numerator=1, denominator=1), abort_grpc_status=7
        )),
        rule("none", pb.HttpMatch(path=pb.PathMatch(exact="/t/none")), is_grpc=True, forward=forward(
            pb.Backend(weight=1, failure_status=500)
        )),
    )  # fmt: skip
    with (
        grpc_server(b"a") as (handler, port),
        Waypoint(web_service(), endpoint("a", port), routes(*rules, protocol=pb.GRPC)) as waypoint,
        grpc.insecure_channel(f"127.0.0.1:{waypoint.port}") as channel,
    ):
        assert channel.unary_unary("/t/fail")(b"", timeout=10) == b"a"
        assert len(handler.calls) == 2
        assert 0 < int(handler.calls[1]["x-envoy-expected-rq-timeout-ms"]) <= 11_000  # clients round up
        for method, code in (
            ("abort", grpc.StatusCode.PERMISSION_DENIED),
            ("none", grpc.StatusCode.UNAVAILABLE),
            ("unknown", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(f"/t/{method}")(b"", timeout=PATIENCE_S)
            assert failed.value.code() is code


def test_a_sniffed_port_speaks_the_clients_protocol() -> None:
    with (
        grpc_server(b"a") as (_, port),
        Waypoint(web_service(VIP), endpoint("a", port), routes(protocol=pb.DETECT)) as waypoint,
        grpc.insecure_channel(f"127.0.0.1:{waypoint.port}") as channel,
    ):
        assert channel.unary_unary("/t/name")(b"", timeout=PATIENCE_S) == b"a"
