"""Routing through a real proxy: what a rule says is what the server, and the client, see."""

from __future__ import annotations

from collections import Counter

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import (
    WEB,
    Resource,
    backend,
    endpoint,
    forward,
    prefix,
    routes,
    rule,
    seconds,
    web_service,
)
from tests.waypoint.worker.kit import ScriptedServer, read_all
from tests.waypoint.worker.routing_kit import App, Reply, Waypoint, apps
from tests.waypoint.worker.test_combinations import CURL_VERSIONS, curl
from transport.http1.codec import CodecKind

CODECS: tuple[CodecKind, ...] = ("lean", "reference")
V1, V2 = "default/v1", "default/v2"


def two_versions(one: App, two: App) -> tuple[Resource, ...]:
    return (
        web_service(),
        web_service("10.96.0.2", key=V1),
        web_service("10.96.0.3", key=V2),
        endpoint("one", one.port, key=V1),
        endpoint("two", two.port, key=V2),
    )


@pytest.mark.parametrize("codec", CODECS)
def test_without_rules_a_request_goes_to_the_service(codec: CodecKind) -> None:
    with (
        App("app") as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(), codec=codec) as waypoint,
    ):
        status, headers, body = waypoint.get("/any")
        assert (status, body) == (200, b"app")
        assert headers["server"] == "mycelia"
        assert "x-envoy-upstream-service-time" in headers
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        outcome = waypoint.log.exchanges[0].outcome
        assert outcome.route_name == "default"
        assert outcome.service is not None
        assert outcome.service.key == WEB
        assert outcome.cluster == f"{WEB}:80"
        assert outcome.workload is not None
        assert outcome.workload.uid == "a"


@pytest.mark.parametrize("codec", CODECS)
def test_rules_decide_by_path_and_header(codec: CodecKind) -> None:
    with apps("one", "two") as (one, two):
        by_header = pb.HttpMatch(headers=[pb.ValueMatch(name="x-canary", exact="yes")])
        resources = (
            *two_versions(one, two),
            routes(
                rule("canary", by_header, forward=forward(backend(V2))),
                rule("v1", prefix("/v1"), forward=forward(backend(V1))),
            ),
        )
        with Waypoint(*resources, codec=codec) as waypoint:
            assert waypoint.get("/v1/x")[2] == b"one"
            assert waypoint.get("/v1/x", x_canary="yes")[2] == b"two"
            status, _, body = waypoint.get("/elsewhere")
            assert (status, body) == (404, b"")
            waypoint.log.until(lambda log: len(log.exchanges) == 3)
            assert waypoint.log.exchanges[-1].outcome.flag == "NR"


def test_weights_converge() -> None:
    with apps("one", "two") as (one, two):
        split = rule("split", forward=forward(backend(V1, 90), backend(V2, 10)))
        with Waypoint(*two_versions(one, two), routes(split)) as waypoint:
            found = Counter(waypoint.bodies(400))
            assert found[b"two"] == pytest.approx(40, abs=20)
            assert found[b"one"] == 400 - found[b"two"]


def test_an_invalid_backend_keeps_its_share() -> None:
    with App("one") as one:
        broken = pb.Backend(weight=1, failure_status=500, problem="Service nope is not there")
        split = rule("split", forward=forward(backend(WEB, 1), broken))
        with Waypoint(web_service(), endpoint("a", one.port), routes(split)) as waypoint:
            statuses = Counter(waypoint.get()[0] for _ in range(100))
            assert statuses[500] == pytest.approx(50, abs=20)
            assert statuses[200] == 100 - statuses[500]


@pytest.mark.parametrize(
    ("target", "status", "details"),
    [
        (backend("default/nobody"), 503, "cluster_not_found{default/nobody}"),
        (backend(WEB, subset="v9"), 503, f"cluster_not_found{{{WEB} has no subset v9}}"),
        (backend(V1), 503, "no_healthy_upstream"),
    ],
)
def test_a_backend_that_leads_nowhere(target: pb.Backend, status: int, details: str) -> None:
    resources = (web_service(), web_service("10.96.0.2", key=V1), routes(rule("r", forward=forward(target))))
    with Waypoint(*resources) as waypoint:
        assert waypoint.get()[0] == status
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        assert waypoint.log.exchanges[0].outcome.details == details


def test_a_rule_without_backends_is_500() -> None:
    zero = rule("r", forward=pb.Forward(backends=[backend(WEB, 0)]))
    with Waypoint(web_service(), routes(zero)) as waypoint:
        assert waypoint.get()[0] == 500


def test_an_endpoint_in_another_network_is_named() -> None:
    with Waypoint(web_service(), endpoint("far", 80, network="other"), routes()) as waypoint:
        assert waypoint.get()[0] == 503
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        assert "far is in network 'other'" in waypoint.log.exchanges[0].outcome.details


@pytest.mark.parametrize("codec", CODECS)
def test_headers_path_and_host_change_on_the_way(codec: CodecKind) -> None:
    request_headers = pb.HeaderChanges(
        set=[pb.HeaderChanges.Field(name="x-set", value="new")],
        add=[pb.HeaderChanges.Field(name="x-add", value="more")],
        remove=["x-gone"],
    )
    response_headers = pb.HeaderChanges(
        set=[pb.HeaderChanges.Field(name="x-answer", value="changed")], remove=["x-secret"]
    )
    own = pb.HeaderChanges(add=[pb.HeaderChanges.Field(name="x-backend", value="web")])
    change = rule(
        "change",
        prefix("/old"),
        request_headers=request_headers,
        response_headers=response_headers,
        rewrite=pb.Rewrite(authority="inner", path=pb.PathChange(prefix="/new")),
        forward=forward(backend(WEB, request_headers=own)),
    )

    def reply(_: object) -> Reply:
        return Reply(headers={"x-answer": "app", "x-secret": "s"})

    with (
        App("app", reply) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(change), codec=codec) as waypoint,
    ):
        _, headers, _ = waypoint.get(
            "/old/path?q=1", x_set="old", x_add="first", x_gone="bye", x_envoy_original_path="/lie"
        )
        assert headers["x-answer"] == "changed"
        assert "x-secret" not in headers
        seen = app.seen[0]
        assert seen.path == "/new/path?q=1"
        assert seen.header("host") == "inner"
        assert seen.header("x-set") == "new"
        assert seen.header("x-add") == "first,more"
        assert seen.header("x-gone") is None
        assert seen.header("x-backend") == "web"
        assert seen.header("x-envoy-original-path") == "/old/path?q=1"


def test_redirect_and_direct_response() -> None:
    redirect = rule(
        "go", prefix("/go"), redirect=pb.Redirect(scheme="https", hostname="b.example", status=301)
    )
    direct = rule(
        "say",
        prefix("/say"),
        direct_response=pb.DirectResponse(status=418, body=b"teapot"),
        response_headers=pb.HeaderChanges(set=[pb.HeaderChanges.Field(name="x-pot", value="tea")]),
    )
    with Waypoint(web_service(), routes(redirect, direct)) as waypoint:
        status, headers, _ = waypoint.get("/go/there?x=1", host="web")
        assert (status, headers["location"]) == (301, "https://b.example/go/there?x=1")
        status, headers, body = waypoint.get("/say")
        assert (status, headers["x-pot"], body) == (418, "tea", b"teapot")


def test_cors_preflight_and_actual() -> None:
    policy = pb.Cors(
        allow_origins=[pb.StringMatch(exact="https://ok.example")],
        allow_methods=["GET", "PUT"],
        allow_headers=["x-one"],
        expose_headers=["x-two"],
        max_age=seconds(7),
        forwards_unmatched_preflights=True,
    )

    def reply(_: object) -> Reply:
        return Reply(headers={"access-control-allow-origin": "*"}, body=b"app")

    with (
        App("app", reply) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(rule("c", cors=policy))) as waypoint,
    ):

        def preflight(origin: str) -> tuple[int, dict[str, str], bytes]:
            return waypoint.get("/", "OPTIONS", origin=origin, access_control_request_method="PUT")

        status, headers, body = preflight("https://ok.example")
        assert (status, body) == (200, b"")
        assert headers["access-control-allow-origin"] == "https://ok.example"
        assert headers["access-control-allow-methods"] == "GET,PUT"
        assert headers["access-control-max-age"] == "7"
        assert app.seen == []
        _, headers, _ = waypoint.get("/", origin="https://ok.example")
        assert headers["access-control-allow-origin"] == "https://ok.example"
        assert headers["access-control-expose-headers"] == "x-two"
        _, headers, body = preflight("https://bad.example")
        assert body == b"app"


def test_faults_delay_and_abort() -> None:
    whole = pb.Fraction(numerator=1, denominator=1)
    fault = pb.Fault(delay_share=whole, delay=seconds(0.2), abort_share=whole, abort_status=503)
    slow = pb.Fault(delay_share=whole, delay=seconds(0.2))
    with (
        App() as app,
        Waypoint(
            web_service(),
            endpoint("a", app.port),
            routes(
                rule("abort", prefix("/abort"), fault=fault),
                # the time for the exchange begins after the delay
                rule("slow", prefix("/slow"), fault=slow, timeout=seconds(0.15)),
            ),
        ) as waypoint,
    ):
        status, _, body = waypoint.get("/abort")
        assert (status, body) == (503, b"fault filter abort")
        assert waypoint.get("/slow")[2] == b"app"
        waypoint.log.until(lambda log: len(log.exchanges) == 2)
        aborted, delayed = (each.outcome for each in waypoint.log.exchanges)
        assert (aborted.flag, aborted.details) == ("FI,DI", "fault_filter_abort")
        assert delayed.flag == "DI"
        assert aborted.duration_s >= 0.2
        assert len(app.seen) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_a_mirror_gets_the_whole_request_and_nobody_its_answer(codec: CodecKind) -> None:
    with App("one") as one, App("two", lambda _: Reply(500, delay_s=0.2)) as two:
        mirror = pb.Mirror(backend=backend(V2))
        with Waypoint(
            *two_versions(one, two),
            routes(rule("m", forward=forward(backend(V1)), mirrors=[mirror])),
            codec=codec,
        ) as waypoint:
            body = bytes(range(256)) * 500
            assert waypoint.get("/x", "POST", body)[2] == b"one"
            assert waypoint.get("/y")[2] == b"one"
            seen = {each.path: each.body for each in two.until(2)}  # in no order: two connections
            assert seen == {"/x": body, "/y": b""}
            while waypoint.ask(lambda: len(waypoint.proxy.shadows)):
                pass


def test_a_mirror_that_does_not_read_holds_nobody_up() -> None:
    mirror = pb.Mirror(backend=backend(V2))
    with App("one") as one, ScriptedServer() as stuck:
        resources = (
            web_service(),
            web_service("10.96.0.2", key=V1),
            web_service("10.96.0.3", key=V2),
            endpoint("one", one.port, key=V1),
            endpoint("two", stuck.port, key=V2),
            routes(rule("m", forward=forward(backend(V1)), mirrors=[mirror])),
        )
        with Waypoint(*resources) as waypoint:
            body = bytes(16 << 20)
            assert waypoint.get("/x", "POST", body)[2] == b"one"
            assert len(one.seen[0].body) == len(body)
            with stuck.accept() as sock:
                assert len(read_all(sock)) < len(body)  # given up
            cluster = waypoint.ask(lambda: waypoint.state.cluster(V2, 80))
            assert cluster is not None
            assert waypoint.ask(lambda: (len(waypoint.proxy.shadows), cluster.circuit.requests)) == (0, 0)


def test_copies_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waypoint.worker.exchange.MAX_SHADOWS", 2)
    mirror = pb.Mirror(backend=backend(V2))
    with App("one") as one, App("two", lambda _: Reply(delay_s=0.5)) as two:
        resources = (
            *two_versions(one, two),
            routes(rule("m", forward=forward(backend(V1)), mirrors=[mirror])),
        )
        with Waypoint(*resources) as waypoint:
            assert waypoint.bodies(10) == [b"one"] * 10
            assert len(two.until(2)) == 2


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_rules_hold_for_every_version_of_http(version: str) -> None:
    added = pb.HeaderChanges(add=[pb.HeaderChanges.Field(name="x-added", value="here")])
    change = rule(
        "r",
        pb.HttpMatch(authority=pb.StringMatch(exact="shop.example"), scheme=pb.StringMatch(exact="http")),
        response_headers=added,
        rewrite=pb.Rewrite(authority="inner.example"),
    )
    with App("a") as app, Waypoint(web_service(), endpoint("a", app.port), routes(change)) as waypoint:
        answer = curl(waypoint.port, "/path?q=1", version, "-i", "-H", "Host: shop.example").lower()
        assert b"x-added: here" in answer
        assert answer.endswith(b"a")
        assert app.seen[0].path == "/path?q=1"
        assert app.seen[0].header("host") == "inner.example"
        assert b" 404" in curl(waypoint.port, "/", version, "-i").partition(b"\r\n")[0]
