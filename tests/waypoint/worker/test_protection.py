"""Retries, time limits, outlier detection and circuit breakers through a real proxy and real servers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from dataplane.state.model import Locality
from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import destination, endpoint, prefix, routes, rule, seconds, web_service
from tests.waypoint.worker.kit import PATIENCE_S, ScriptedServer, free_port, read_until
from tests.waypoint.worker.routing_kit import App, Reply, Seen, Waypoint, apps
from waypoint.state.place import Place

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Breaker:
    """A server that takes a request and breaks the connection without an answer."""

    def __init__(self) -> None:
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    read_until(sock, b"\r\n\r\n")
                    self.requests += 1

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def once_then(status: int) -> Callable[[Seen], Reply]:
    """Each path fails at its first request."""
    known: set[str] = set()

    def reply(seen: Seen) -> Reply:
        if seen.path in known:
            return Reply(body=b"at last")
        known.add(seen.path)
        return Reply(status)

    return reply


def outcome_of(waypoint: Waypoint, number: int = 0) -> tuple[str, int]:
    waypoint.log.until(lambda log: len(log.exchanges) > number)
    outcome = waypoint.log.exchanges[number].outcome
    return outcome.flag, outcome.attempts


# --- retries ---


def test_unconfigured_an_answer_is_passed_on_whatever_it_is() -> None:
    with (
        App("a", lambda _: Reply(503)) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes()) as waypoint,
    ):
        assert waypoint.get()[0] == 503
        assert len(app.seen) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unconfigured_another_host_is_tried_when_one_does_not_answer_the_connect(method: str) -> None:
    with (
        App("a") as app,
        Waypoint(web_service(), endpoint("dead", free_port()), endpoint("a", app.port), routes()) as waypoint,
    ):
        for _ in range(10):
            assert waypoint.get("/", method, b"body" if method == "POST" else None)[2] == b"a"


def test_unconfigured_a_broken_post_is_not_repeated() -> None:
    with Breaker() as server, Waypoint(web_service(), endpoint("a", server.port), routes()) as waypoint:
        assert waypoint.get("/", "POST", b"body")[0] == 503
        assert outcome_of(waypoint) == ("UC", 1)
        assert waypoint.get("/")[0] == 503
        assert outcome_of(waypoint, 1) == ("UC,URX", 3)
        assert server.requests == 4


@pytest.mark.parametrize(
    ("policy", "status", "is_repeated"),
    [
        (pb.RetryPolicy(attempts=1, on=["5xx"]), 500, True),
        (pb.RetryPolicy(attempts=1, on=["gateway-error"]), 502, True),
        (pb.RetryPolicy(attempts=1, on=["gateway-error"]), 500, False),
        (pb.RetryPolicy(attempts=1, on=["retriable-4xx"]), 409, True),
        (pb.RetryPolicy(attempts=1, statuses=[418]), 418, True),
        (pb.RetryPolicy(attempts=0), 503, False),
    ],
)
def test_a_policy_says_which_answers_are_repeated(
    policy: pb.RetryPolicy, status: int, is_repeated: bool
) -> None:
    with (
        App("a", once_then(status)) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(rule("r", retries=policy))) as waypoint,
    ):
        got, _, body = waypoint.get("/", "POST", b"x" * 100_000)
        assert (got, body) == ((200, b"at last") if is_repeated else (status, b""))
        assert len(app.seen) == 1 + is_repeated
        assert all(each.body == b"x" * 100_000 for each in app.seen)


def test_retries_end_and_say_so() -> None:
    policy = pb.RetryPolicy(attempts=2, on=["5xx"], backoff=seconds(0.001))
    with (
        App("a", lambda _: Reply(500, body=b"no")) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(rule("r", retries=policy))) as waypoint,
    ):
        assert waypoint.get()[::2] == (500, b"no")
        assert outcome_of(waypoint) == ("URX", 3)
        assert len(app.seen) == 3


def test_a_retry_avoids_the_host_that_failed() -> None:
    policy = pb.RetryPolicy(attempts=1, on=["5xx"], backoff=seconds(0.001))
    with (
        App("bad", lambda _: Reply(500)) as bad,
        App("good") as good,
        Waypoint(
            web_service(),
            endpoint("bad", bad.port),
            endpoint("good", good.port),
            routes(rule("r", retries=policy)),
        ) as waypoint,
    ):
        # Five selections find the other of two but for one time in 32.
        statuses = Counter(waypoint.get()[0] for _ in range(60))
        assert statuses[200] >= 55


def test_a_body_beyond_the_buffer_is_not_repeated_and_the_details_say_so() -> None:
    policy = pb.RetryPolicy(attempts=2, on=["5xx"])
    with (
        App("a", lambda _: Reply(500)) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(rule("r", retries=policy))) as waypoint,
    ):
        assert waypoint.get("/", "POST", bytes((1 << 20) + 1))[0] == 500
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        outcome = waypoint.log.exchanges[0].outcome
        assert (outcome.attempts, outcome.details) == (1, "request_payload_exceeded_retry_buffer_limit")


def test_what_is_kept_for_retries_is_bounded_for_all_together_and_given_back() -> None:
    policy = pb.RetryPolicy(attempts=1, on=["5xx"])
    with (
        App("a", once_then(500)) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(rule("r", retries=policy))) as waypoint,
    ):
        budget = waypoint.proxy.replay_budget
        whole = budget.left_bytes
        assert waypoint.get("/1", "POST", bytes(200_000))[0] == 200
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        assert budget.left_bytes == whole
        budget.left_bytes = 100_000
        assert waypoint.get("/2", "POST", bytes(200_000))[0] == 500
        assert waypoint.get("/3", "POST", bytes(50_000))[0] == 200
        waypoint.log.until(lambda log: len(log.exchanges) == 3)
        assert budget.left_bytes == 100_000


def test_retries_are_bounded_by_the_budget() -> None:
    policy = pb.RetryPolicy(attempts=3, on=["5xx"], backoff=seconds(0.001))
    limits = pb.TrafficPolicy(retry_budget=pb.RetryBudget(percent=20, minimum_concurrency=0))
    with (
        App("a", lambda _: Reply(500)) as app,
        Waypoint(
            web_service(), endpoint("a", app.port), routes(rule("r", retries=policy)), destination(limits)
        ) as waypoint,
    ):
        assert waypoint.get()[0] == 500  # a fifth of one request is none
        assert outcome_of(waypoint) == ("-", 1)


# --- time ---


def test_time_runs_out_for_the_whole_and_for_a_try() -> None:
    def reply(seen: Seen) -> Reply:
        return Reply(delay_s=1.0 if seen.path != "/twice" or len(app.seen) < 3 else 0.0)

    policy = pb.RetryPolicy(attempts=1, per_try_timeout=seconds(0.15), on=["5xx"])
    rules = (
        rule("whole", prefix("/whole"), timeout=seconds(0.15)),
        rule("try", prefix("/try"), retries=pb.RetryPolicy(attempts=0, per_try_timeout=seconds(0.15))),
        rule("twice", prefix("/twice"), retries=policy),
    )
    with App("a", reply) as app, Waypoint(web_service(), endpoint("a", app.port), routes(*rules)) as waypoint:
        status, _, body = waypoint.get("/whole")
        assert (status, body) == (504, b"upstream request timeout")
        assert waypoint.get("/try")[0] == 504
        app.until(2)
        assert waypoint.get("/twice")[0] == 200
        details = [each.outcome.details for each in waypoint.log.exchanges]
        assert details == ["response_timeout", "upstream_per_try_timeout", "via_upstream"]
        assert app.seen[0].header("x-envoy-expected-rq-timeout-ms") == "150"


# --- outlier detection ---


def test_a_host_that_fails_is_left_out_and_comes_back() -> None:
    is_bad = threading.Event()
    is_bad.set()

    def reply(_: Seen) -> Reply:
        return Reply(500 if is_bad.is_set() else 200, body=b"bad")

    detection = pb.OutlierDetection(
        consecutive_5xx=3, interval=seconds(1), base_ejection=seconds(1), maximum_ejection_percent=100
    )
    policy = pb.TrafficPolicy(balancer=pb.TrafficPolicy.ROUND_ROBIN, outlier_detection=detection)
    with (
        App("bad", reply) as bad,
        App("good") as good,
        Waypoint(
            web_service(),
            endpoint("bad", bad.port),
            endpoint("good", good.port),
            routes(),
            destination(policy),
        ) as waypoint,
    ):
        statuses = [waypoint.get()[0] for _ in range(20)]
        assert statuses.count(500) == 3
        assert statuses[10:] == [200] * 10
        is_bad.clear()
        while waypoint.get()[2] != b"bad":
            pass


# --- circuit breakers ---


@contextlib.contextmanager
def _held(server: ScriptedServer, waypoint: Waypoint, count: int) -> Iterator[list[threading.Thread]]:
    """Requests that wait for their answers in `server` until the block ends."""
    threads = [threading.Thread(target=waypoint.get) for _ in range(count)]
    for thread in threads:
        thread.start()
    socks = [server.accept() for _ in range(count)]
    for sock in socks:
        read_until(sock, b"\r\n\r\n")
    yield threads
    for sock in socks:
        sock.sendall(REPLY)
    for thread in threads:
        thread.join(PATIENCE_S)
    for sock in socks:
        sock.close()


def test_requests_beyond_the_limit_are_503_uo() -> None:
    pool = pb.ConnectionPool(maximum_requests=2)
    with (
        ScriptedServer() as server,
        Waypoint(
            web_service(),
            endpoint("a", server.port),
            routes(),
            destination(pb.TrafficPolicy(connection_pool=pool)),
        ) as waypoint,
    ):
        with _held(server, waypoint, 2):
            status, headers, _ = waypoint.get()
            assert (status, headers["x-envoy-overloaded"]) == (503, "true")
        assert outcome_of(waypoint)[0] == "UO"


def test_waiting_requests_beyond_the_limit_are_503_uo() -> None:
    pool = pb.ConnectionPool(maximum_connections=1, maximum_pending=1)
    with (
        ScriptedServer() as server,
        Waypoint(
            web_service(),
            endpoint("a", server.port),
            routes(),
            destination(pb.TrafficPolicy(connection_pool=pool)),
        ) as waypoint,
    ):
        done: list[int] = []
        waiting = threading.Thread(target=lambda: done.append(waypoint.get()[0]))
        with _held(server, waypoint, 1):
            waiting.start()
            while not waypoint.ask(lambda: waypoint.upstreams.waiting_requests):
                pass
            status, headers, _ = waypoint.get()
            assert (status, headers["x-envoy-overloaded"]) == (503, "true")
            cluster = waypoint.ask(lambda: next(iter(waypoint.state.clusters.values())))
            assert (cluster.circuit.connections, cluster.circuit.pending) == (1, 1)
        with server.accept() as sock:  # the held one's connection was closed by its server
            read_until(sock, b"\r\n\r\n")
            sock.sendall(REPLY)
            waiting.join(PATIENCE_S)
        assert done == [200]


def test_all_counts_are_back_at_zero_when_nothing_is_under_way() -> None:
    policy = pb.RetryPolicy(attempts=2, on=["5xx"], backoff=seconds(0.001))
    with (
        App("a", lambda seen: Reply(500 if "bad" in seen.path else 200)) as app,
        Waypoint(
            web_service(),
            endpoint("a", app.port),
            endpoint("dead", free_port()),
            routes(rule("r", retries=policy)),
        ) as waypoint,
    ):
        for path in ("/good", "/bad") * 10:
            waypoint.get(path)
        waypoint.log.until(lambda log: len(log.exchanges) == 20)
        (cluster,) = waypoint.ask(lambda: list(waypoint.state.clusters.values()))
        circuit = cluster.circuit
        assert (circuit.requests, circuit.retries, circuit.pending) == (0, 0, 0)
        assert [host.active for host in cluster.hosts] == [0, 0]
        assert circuit.connections == waypoint.ask(lambda: waypoint.upstreams.open_connections)


def test_hosts_of_the_own_zone_come_first() -> None:
    detection = pb.OutlierDetection(consecutive_5xx=5)
    with (
        apps("near", "far") as (near, far),
        Waypoint(
            web_service(),
            endpoint("near", near.port, locality=("r1", "z1", "")),
            endpoint("far", far.port, locality=("r1", "z2", "")),
            routes(),
            destination(pb.TrafficPolicy(outlier_detection=detection)),
            place=Place("default", "waypoint", locality=Locality("r1", "z1")),
        ) as waypoint,
    ):
        assert set(waypoint.bodies(20)) == {b"near"}
        waypoint.put(endpoint("near", near.port, locality=("r1", "z1", ""), healthy=False))
        assert set(waypoint.bodies(5)) == {b"far"}


def test_where_nothing_may_go_requests_are_refused() -> None:
    with (
        apps("app") as (app,),
        Waypoint(
            web_service(),
            endpoint("app", app.port),
            routes(),
            destination(pb.TrafficPolicy(refusal="tls mode SIMPLE is not supported")),
        ) as waypoint,
    ):
        assert waypoint.get("/")[0] == 503
        assert app.seen == []


def test_localities_get_the_shares_they_are_told() -> None:
    shares = pb.Locality.Distribution(to={"r1/z1": 80, "r1/z2": 20}, **{"from": "r1/*"})
    with (
        apps("one", "two", "three") as (one, two, three),
        Waypoint(
            web_service(),
            endpoint("one", one.port, locality=("r1", "z1", "")),
            endpoint("two", two.port, locality=("r1", "z2", "")),
            endpoint("three", three.port, locality=("r2", "z3", "")),
            routes(),
            destination(
                pb.TrafficPolicy(
                    balancer=pb.TrafficPolicy.ROUND_ROBIN, locality=pb.Locality(distributions=[shares])
                )
            ),
            place=Place("default", "waypoint", locality=Locality("r1", "z1")),
        ) as waypoint,
    ):
        bodies = waypoint.bodies(50)
        assert 38 <= bodies.count(b"one") <= 42
        assert bodies.count(b"one") + bodies.count(b"two") == 50
