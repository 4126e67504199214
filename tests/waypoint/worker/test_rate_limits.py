"""Limits through a real proxy: what passes, what a client is told, what a change does."""

from __future__ import annotations

from typing import Any

from dataplane.worker.log import WorkerLog
from proto.mycelia import rate_limit_pb2 as pb
from tests.waypoint.resources import WEB, backend, endpoint, forward, prefix, routes, rule, web_service
from tests.waypoint.state.policy_builders import message
from tests.waypoint.state.test_rate_limits import Key, limit, policy
from tests.waypoint.worker.routing_kit import App, Waypoint
from waypoint.worker.authorization import Authorization
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.rate_limits import RateLimits


class Limited(Waypoint):
    """`counts` are those of its policies; its clock stands still but for `pass_s`."""

    def __init__(self, app: App, *policies: Any, rules: Any = ()) -> None:
        self.counts = PolicyCounts()
        self.now = 1000.0

        def sources(state: Any, reactor: Any) -> tuple[Any, ...]:
            log = WorkerLog(lambda _: True, lambda: reactor.now)
            return (
                Authorization(state, log, self.counts),
                RateLimits(state, lambda: self.now, self.counts),
            )

        resources = (web_service(), endpoint("a", app.port), *policies, routes(*rules))
        super().__init__(*resources, check_sources=sources)

    def statuses(self, count: int, path: str = "/", **headers: str) -> list[int]:
        return [self.get(path, "GET", None, **headers)[0] for _ in range(count)]


def on_web(*limits: pb.RateLimitPolicy.Limit, **fields: Any) -> pb.RateLimitPolicy:
    return policy(*limits, attachment={"services": [WEB]}, **fields)


def test_over_the_limit_it_is_429_and_the_client_learns_when_to_come_back() -> None:
    with App() as app, Limited(app, on_web(limit(2, 10.0, 3))) as waypoint:
        status, headers, _ = waypoint.get()
        told = {name: headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "reset")}
        assert (status, told) == (200, {"limit": "3", "remaining": "2", "reset": "5"})
        assert waypoint.statuses(3) == [200, 200, 429]
        status, headers, body = waypoint.get()
        assert (status, body) == (429, b"local_rate_limited")
        assert headers["x-envoy-ratelimited"] == "true"
        assert headers["retry-after"] == "5"
        assert headers["x-ratelimit-remaining"] == "0"
        assert len(app.seen) == 3
        waypoint.log.until(lambda log: len(log.exchanges) == 5)
        outcome = waypoint.log.exchanges[-1].outcome
        assert (outcome.flag, outcome.details) == ("RL", "request_rate_limited")
        assert outcome.policy == "RateLimitPolicy/shop/calm l"
        (named,) = waypoint.ask(lambda: list(waypoint.counts.stats()))
        assert (list(named.labels), named.value) == (["RateLimitPolicy/shop/calm", "limited"], 2)
        waypoint.now += 5.0
        assert waypoint.statuses(2) == [200, 429]


def test_a_grpc_client_gets_resource_exhausted() -> None:
    with App() as app, Limited(app, on_web(limit(1, 10.0))) as waypoint:
        waypoint.get()
        status, headers, _ = waypoint.get("/a.B/C", "POST", b"", content_type="application/grpc")
        assert (status, headers["grpc-status"]) == (200, "8")


def test_tenants_count_apart_and_headers_can_be_silent() -> None:
    calm = on_web(limit(1, 10.0, keys=[Key(header="x-tenant")]), tells=False)
    with App() as app, Limited(app, calm) as waypoint:
        assert waypoint.statuses(2, x_tenant="a") == [200, 429]
        assert waypoint.statuses(2, x_tenant="b") == [200, 429]
        status, headers, _ = waypoint.get("/", "GET", None, x_tenant="c")
        assert status == 200
        assert not [name for name in headers if name.startswith("x-ratelimit")]


def test_a_route_has_its_own_limit() -> None:
    calm = policy(limit(1, 10.0), attachment={"routes": ["HTTPRoute/shop/slow"]})
    rules = (
        rule("HTTPRoute/shop/slow/0", prefix("/slow"), forward=forward(backend(WEB))),
        rule("HTTPRoute/shop/fast/0", forward=forward(backend(WEB))),
    )
    with App() as app, Limited(app, calm, rules=rules) as waypoint:
        assert waypoint.statuses(3, "/fast") == [200] * 3
        assert waypoint.statuses(2, "/slow/x") == [200, 429]


def test_what_is_denied_takes_nothing() -> None:
    deny = message({"to": [{"paths": ["/no"]}]}, action="DENY")
    with App() as app, Limited(app, deny, on_web(limit(2, 10.0))) as waypoint:
        assert waypoint.statuses(5, "/no") == [403] * 5
        assert waypoint.statuses(3) == [200, 200, 429]


def test_buckets_outlive_other_changes_and_not_their_own() -> None:
    with App() as app, Limited(app, on_web(limit(1, 10.0))) as waypoint:
        assert waypoint.statuses(2) == [200, 429]
        waypoint.put(routes(rule("r", forward=forward(backend(WEB)))))
        assert waypoint.statuses(1) == [429]
        waypoint.put(on_web(limit(2, 10.0)))
        assert waypoint.statuses(3) == [200, 200, 429]
        waypoint.remove("type.googleapis.com/mycelia.waypoint.RateLimitPolicy", "shop/calm")
        assert waypoint.statuses(3) == [200] * 3


def test_answers_carry_the_headers_of_the_policy() -> None:
    calm = on_web(limit(1, 10.0), answer_headers=[pb.RateLimitPolicy.Header(name="X-Local", value="true")])
    with App() as app, Limited(app, calm) as waypoint:
        assert "x-local" not in waypoint.get()[1]
        status, headers, _ = waypoint.get()
        assert (status, headers["x-local"]) == (429, "true")
