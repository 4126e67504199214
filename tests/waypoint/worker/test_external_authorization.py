"""Action CUSTOM through a real proxy, with real providers over HTTP and gRPC."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dataplane.worker.log import WorkerLog
from proto.envoy import external_authorization_pb2 as envoy
from proto.mycelia import authorization_l7_pb2 as pb
from proto.mycelia import waypoint_pb2 as waypoint_pb
from tests.waypoint.resources import WEB, endpoint, routes, rule, seconds, web_service
from tests.waypoint.state.policy_builders import message
from tests.waypoint.worker.kit import PATIENCE_S, ScriptedServer, connect, is_cut_off
from tests.waypoint.worker.routing_kit import App, Reply, Seen, Waypoint
from transport.spiffe import SpiffeId
from waypoint.worker.authorization import Authorization
from waypoint.worker.custom_authorization import Asking, CustomAuthorization
from waypoint.worker.plan import Declared
from waypoint.worker.policy_counts import PolicyCounts

CART = SpiffeId("cluster.local", "shop", "cart")
JUDGE = "auth/judge"
ON_WEB = message().attachment
ON_WEB.Clear()
ON_WEB.services.append(WEB)
POLICY = "AuthorizationPolicy/shop/c"


class Asked(Waypoint):
    """A waypoint that asks the provider at `judge_port`, in front of one application."""

    authorization: Authorization

    def __init__(self, *resources: Any, **fields: Any) -> None:
        def sources(state: Any, reactor: Any) -> tuple[CustomAuthorization, Authorization]:
            log, counts = WorkerLog(lambda _: True, lambda: reactor.now), PolicyCounts()
            self.authorization = Authorization(state, log, counts)
            asking = Asking(self.upstreams_of_checks, "spiffe://cluster.local/ns/shop/sa/waypoint")
            return CustomAuthorization(state, log, counts, asking), self.authorization

        super().__init__(*resources, check_sources=sources, identity=CART, **fields)

    def counts(self) -> Counter[tuple[str, ...]]:
        found = self.ask(lambda: list(self.authorization.counts.stats()))
        return Counter({tuple(each.labels): int(each.value) for each in found})

    def outcome(self, count: int = 1) -> Any:
        self.log.until(lambda log: len(log.exchanges) >= count)
        return self.log.exchanges[count - 1].outcome


def authorizer(**fields: Any) -> pb.ExternalAuthorizer:
    given = {"service": JUDGE, "port": 80, "timeout": seconds(PATIENCE_S), "error_status": 403, **fields}
    return pb.ExternalAuthorizer(**given)


def custom(path: str = "/*", *, name: str = "c", **fields: Any) -> pb.AuthorizationPolicy:
    return message(
        {"to": [{"paths": [path]}]},
        action="CUSTOM",
        name=name,
        provider="judge",
        attachment=ON_WEB,
        authorizer=authorizer(**fields),
    )


def asked(app: App, judge_port: int, *policies: pb.AuthorizationPolicy, **fields: Any) -> Asked:
    return Asked(
        web_service(),
        endpoint("a", app.port),
        web_service("10.96.0.9", key=JUDGE),
        endpoint("j", judge_port, key=JUDGE),
        *(policies or (custom(),)),
        *fields.pop("more", ()),
        fields.pop("routes", routes()),
        **fields,
    )


def says(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes = b""
) -> Callable[[Seen], Reply]:
    return lambda _: Reply(status, headers or {}, body)


# HTTP


def test_who_is_allowed_passes_with_what_the_provider_says() -> None:
    said = says(200, {"x-user": "ann", "x-other": "no", "x-note": "hello"})
    policy = custom(path_prefix="/check", upstream_headers=["x-user"], allow_headers=["x-note"])
    with App() as app, App(reply=said) as judge, asked(app, judge.port, policy) as waypoint:
        status, headers, body = waypoint.get("/a?b=c", x_user="root", authorization="Bearer t", x_private="p")
        assert (status, body, headers["x-note"]) == (200, b"app", "hello")
        (question,) = judge.seen
        assert (question.method, question.path) == ("GET", "/check/a?b=c")
        assert question.header("authorization") == "Bearer t"
        assert question.header("x-private") is None
        assert question.header("host") == f"127.0.0.1:{waypoint.port}"
        assert (app.seen[0].header("x-user"), app.seen[0].header("x-other")) == ("ann", None)
        assert waypoint.outcome().details == "via_upstream"


def test_a_name_that_only_the_provider_may_say_goes_if_it_says_nothing() -> None:
    policy = custom(upstream_headers=["x-user*", "authorization"])
    with App() as app, App(reply=says()) as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get("/", x_user_id="root", X_USER="root", authorization="mine")[0] == 200
        seen = app.seen[0]
        assert (seen.header("x-user-id"), seen.header("x-user")) == (None, None)
        assert seen.header("authorization") == "mine"


def test_who_is_denied_gets_the_providers_answer() -> None:
    said = says(302, {"location": "http://login", "x-secret": "s", "set-cookie": "a=b"}, b"go there")
    policy = custom(deny_headers=["set-cookie"])
    with App() as app, App(reply=said) as judge, asked(app, judge.port, policy) as waypoint:
        status, headers, body = waypoint.get()
        assert (status, headers["location"], headers["set-cookie"], body) == (
            302,
            "http://login",
            "a=b",
            b"go there",
        )
        assert "x-secret" not in headers
        assert not app.seen
        outcome = waypoint.outcome()
        assert (outcome.details, outcome.flag) == ("ext_authz_denied", "UAEX")
        assert outcome.policy == f"{POLICY} rules[0] to[0]: provider judge denied it"
        assert waypoint.counts() == {(POLICY, "denied"): 1}


def test_only_what_a_rule_holds_for_is_asked() -> None:
    with App() as app, App(reply=says(401)) as judge, asked(app, judge.port, custom("/a*")) as waypoint:
        assert [waypoint.get(path)[0] for path in ("/b", "/ab")] == [200, 401]
        assert len(judge.seen) == 1


def test_custom_comes_first_and_the_others_after_it() -> None:
    deny = message({"to": [{"paths": ["/d"]}]}, action="DENY", name="d", attachment=ON_WEB)
    with App() as app, App(reply=says()) as judge, asked(app, judge.port, custom(), deny) as waypoint:
        assert waypoint.get("/d")[0] == 403
        assert waypoint.outcome().details.startswith("rbac_access_denied")
        assert len(judge.seen) == 1


def test_lines_of_one_name_are_judged_together() -> None:
    policy = custom(request_headers=["x-role"])
    with App() as app, App(reply=says()) as judge, asked(app, judge.port, policy) as waypoint:
        connection = http.client.HTTPConnection("127.0.0.1", waypoint.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.putrequest("GET", "/")
            connection.putheader("x-role", "guest")
            connection.putheader("x-role", "root")
            connection.endheaders()
            assert connection.getresponse().status == 200
        assert judge.seen[0].header("x-role") == "guest,root"


@pytest.mark.parametrize(("is_open", "status"), [(False, 503), (True, 200)])
def test_a_failing_provider_decides_by_its_mode(is_open: bool, status: int) -> None:
    policy = custom(fails_open=is_open, error_status=503)
    with App() as app, App(reply=says(500)) as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get()[0] == status
        effect = "failed_open" if is_open else "failed"
        assert waypoint.counts() == {(POLICY, effect): 1}
        assert "the provider answered 500" in waypoint.outcome().policy


def test_a_slow_provider_is_not_waited_for() -> None:
    policy = custom(timeout=seconds(0.05))
    release = threading.Event()

    def slow(_: Seen) -> Reply:
        release.wait(PATIENCE_S)
        return Reply()

    with App() as app, App(reply=slow) as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get()[0] == 403
        release.set()
        outcome = waypoint.outcome()
        assert (outcome.details, outcome.flag) == ("ext_authz_error", "UAEX")
        assert "did not answer in time" in outcome.policy


def test_a_dead_provider_refuses() -> None:
    with App() as gone:
        port = gone.port
    with App() as app, asked(app, port) as waypoint:
        assert waypoint.get()[0] == 403
        assert "no connection" in waypoint.outcome().policy
        assert not app.seen


def test_garbage_for_an_answer_refuses() -> None:
    with App() as app, ScriptedServer() as judge, asked(app, judge.port) as waypoint:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(waypoint.get)
            peer = judge.accept()
            peer.recv(65536)
            peer.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
            peer.close()
            assert answer.result(PATIENCE_S)[0] == 403
        assert not app.seen


def test_a_provider_or_service_that_is_not_there_refuses_even_if_it_would_fail_open() -> None:
    missing = custom(service="auth/nobody", fails_open=True)
    with App() as app, App() as judge, asked(app, judge.port, missing) as waypoint:
        assert waypoint.get()[0] == 403
        assert "auth/nobody is not known here" in waypoint.outcome().policy


def test_what_the_body_holds_can_be_asked_about() -> None:
    policy = custom(body=pb.CheckBody(max_bytes=4, may_be_partial=True))
    with App() as app, App(reply=says()) as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get("/", "POST", b"abcdefgh")[0] == 200
        assert waypoint.get("/", "POST", b"ab")[0] == 200
        assert [each.body for each in judge.seen] == [b"abcd", b"ab"]
        assert [each.header("x-envoy-auth-partial-body") for each in judge.seen] == ["true", "false"]
        assert [each.body for each in app.seen] == [b"abcdefgh", b"ab"]


def test_a_body_that_must_be_whole_and_is_too_large_is_refused() -> None:
    policy = custom(body=pb.CheckBody(max_bytes=1 << 20))
    with App() as app, App(reply=says()) as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get("/", "POST", b"x" * (1 << 20))[0] == 200
        assert waypoint.get("/", "POST", b"x" * ((1 << 20) + 1))[0] == 413
        assert (len(judge.seen), len(app.seen)) == (1, 1)


@pytest.mark.parametrize("clears", [False, True])
def test_a_route_may_depend_on_what_the_provider_says(clears: bool) -> None:
    of_ann = waypoint_pb.HttpMatch(headers=[waypoint_pb.ValueMatch(name="x-user", exact="ann")])
    redirect = waypoint_pb.Redirect(hostname="elsewhere", status=302)
    table = routes(rule("ann", of_ann, redirect=redirect), rule())
    policy = custom(upstream_headers=["x-user"], clears_route=clears)
    with (
        App() as app,
        App(reply=says(200, {"x-user": "ann"})) as judge,
        asked(app, judge.port, policy, routes=table) as waypoint,
    ):
        assert waypoint.get()[0] == (302 if clears else 200)


def test_many_are_asked_about_at_once() -> None:
    with App() as app, App(reply=says()) as judge, asked(app, judge.port) as waypoint:
        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(lambda _: waypoint.get()[0], range(200))) == {200}
        assert len(judge.seen) == 200


def test_a_client_that_goes_takes_its_question_along() -> None:
    with App() as app, ScriptedServer() as judge, asked(app, judge.port) as waypoint:
        client = connect(waypoint.port)
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        peer = judge.accept()
        assert peer.recv(65536)
        client.close()
        assert peer.recv(1) == b""
        peer.close()
        assert waypoint.outcome().flag == "DC"
        assert not app.seen


def test_several_providers_must_all_allow() -> None:
    other = custom("/*", name="other", path_prefix="/other")
    only = lambda seen: Reply(403 if seen.path.startswith("/other") else 200)  # noqa: E731
    with App() as app, App(reply=only) as judge, asked(app, judge.port, custom(), other) as waypoint:
        assert waypoint.get()[0] == 403
        assert not app.seen


def test_a_dry_run_asks_nobody() -> None:
    policy = custom()
    policy.is_dry_run = True
    with App() as app, App() as judge, asked(app, judge.port, policy) as waypoint:
        assert waypoint.get()[0] == 200
        assert waypoint.counts() == {(POLICY, "would_be_asked"): 1}
        assert not judge.seen


def test_connections_that_are_no_http_are_refused() -> None:
    with ScriptedServer() as server, App() as judge:
        resources = (
            web_service(),
            endpoint("a", server.port),
            message(
                {}, action="CUSTOM", name="c", provider="judge", attachment=ON_WEB, authorizer=authorizer()
            ),
            routes(protocol=waypoint_pb.TCP),
        )
        assert judge.port
        with Asked(*resources) as waypoint:
            assert is_cut_off(waypoint.ports[Declared.TCP])


# gRPC


class Judge:
    """Envoy's service by a server of its own library."""

    def __init__(self, answer: Callable[[envoy.CheckRequest, Any], envoy.CheckResponse]) -> None:
        self.seen: list[envoy.CheckRequest] = []

        def check(request: envoy.CheckRequest, context: Any) -> envoy.CheckResponse:
            self.seen.append(request)
            return answer(request, context)

        handler = grpc.unary_unary_rpc_method_handler(
            check,
            request_deserializer=envoy.CheckRequest.FromString,
            response_serializer=envoy.CheckResponse.SerializeToString,
        )
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    @contextlib.contextmanager
    def running(self) -> Iterator[Judge]:
        self._server.start()
        try:
            yield self
        finally:
            self._server.stop(None).wait()


@contextlib.contextmanager
def grpc_asked(
    response: envoy.CheckResponse | Callable[[envoy.CheckRequest, Any], envoy.CheckResponse], **fields: Any
) -> Iterator[tuple[App, Judge, Asked]]:
    answer = response if callable(response) else lambda request, context: response
    with (
        App() as app,
        Judge(answer).running() as judge,
        asked(app, judge.port, custom(is_grpc=True, **fields)) as waypoint,
    ):
        yield app, judge, waypoint


def option(key: str, value: str, **fields: Any) -> envoy.HeaderValueOption:
    return envoy.HeaderValueOption(header=envoy.HeaderValue(key=key, value=value), **fields)


def test_a_grpc_provider_sees_the_request_and_may_change_it() -> None:
    allowed = envoy.OkHttpResponse(
        headers=[option("x-user", "ann")],
        headers_to_remove=["x-token", "host"],
        response_headers_to_add=[option("x-note", "hello")],
    )
    with grpc_asked(envoy.CheckResponse(ok_response=allowed)) as (app, judge, waypoint):
        status, headers, _ = waypoint.get("/a?b=c", x_user="root", x_token="t")
        assert (status, headers["x-note"]) == (200, "hello")
        attributes = judge.seen[0].attributes
        asked_http = attributes.request.http
        assert (asked_http.method, asked_http.path, asked_http.protocol) == ("GET", "/a?b=c", "HTTP/1.1")
        assert asked_http.headers["x-token"] == "t"
        assert asked_http.headers[":path"] == "/a?b=c"
        assert asked_http.host == f"127.0.0.1:{waypoint.port}"
        assert attributes.source.principal == str(CART)
        assert attributes.destination.principal == "spiffe://cluster.local/ns/shop/sa/waypoint"
        assert attributes.request.time.seconds
        assert (app.seen[0].header("x-user"), app.seen[0].header("x-token")) == ("ann", None)


def test_a_grpc_provider_denies_in_its_own_words() -> None:
    denied = envoy.DeniedHttpResponse(
        status=envoy.HttpStatus(code=401), headers=[option("www-authenticate", "Bearer")], body="who?"
    )
    response = envoy.CheckResponse(status=envoy.Status(code=16), denied_response=denied)
    with grpc_asked(response) as (app, _, waypoint):
        status, headers, body = waypoint.get()
        assert (status, headers["www-authenticate"], body) == (401, "Bearer", b"who?")
        assert waypoint.outcome().details == "ext_authz_denied"
        assert not app.seen


def test_a_grpc_client_is_denied_in_grpc() -> None:
    with grpc_asked(envoy.CheckResponse(status=envoy.Status(code=7))) as (_, _, waypoint):
        status, headers, _ = waypoint.get("/a.B/C", "POST", b"", content_type="application/grpc")
        assert (status, headers["grpc-status"]) == (200, "7")


def test_a_grpc_provider_gets_octets_or_text() -> None:
    body = pb.CheckBody(max_bytes=8, as_bytes=True)
    with grpc_asked(envoy.CheckResponse(), body=body) as (app, judge, waypoint):
        assert waypoint.get("/", "POST", b"\xff\x00ab")[0] == 200
        assert judge.seen[0].attributes.request.http.raw_body == b"\xff\x00ab"
        assert app.seen[0].body == b"\xff\x00ab"


@pytest.mark.parametrize("is_open", [False, True])
def test_a_grpc_provider_that_fails_decides_by_its_mode(is_open: bool) -> None:
    def fail(_: envoy.CheckRequest, context: Any) -> envoy.CheckResponse:
        context.abort(grpc.StatusCode.INTERNAL, "broken")
        raise AssertionError

    with grpc_asked(fail, fails_open=is_open) as (_, _, waypoint):
        assert waypoint.get()[0] == (200 if is_open else 403)
        assert "gRPC status 13" in waypoint.outcome().policy


@pytest.mark.parametrize(
    "wanted",
    [
        envoy.OkHttpResponse(headers=[option(":path", "/admin")]),
        envoy.OkHttpResponse(headers=[option("host", "elsewhere")]),
        envoy.OkHttpResponse(headers=[option("x-a", "a\r\nx-b: b")]),
        envoy.OkHttpResponse(query_parameters_to_remove=["a"]),
    ],
)
def test_an_answer_that_cannot_be_obeyed_never_fails_open(wanted: envoy.OkHttpResponse) -> None:
    with grpc_asked(envoy.CheckResponse(ok_response=wanted), fails_open=True) as (app, _, waypoint):
        assert waypoint.get()[0] == 403
        assert not app.seen
