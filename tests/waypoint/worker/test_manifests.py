"""Manifests through the registry and a real proxy: what an author writes is what clients see."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from config.compile.resource import ADDRESS, DESTINATION, SERVICE_ROUTES
from config.settings import MeshSettings
from tests.config.support import Mesh, entry, istio, replica, service, waypoint
from tests.waypoint.resources import VIP
from tests.waypoint.state.builders import needs_re2
from tests.waypoint.worker.routing_kit import App, Reply, Seen, Waypoint, apps
from waypoint.state.place import Place
from waypoint.state.store import WaypointState

PLACE = Place("shop", "wp")


def tell(state: WaypointState, mesh: Mesh) -> dict[str, str]:
    """All that the waypoint shop/wp hears; returns what it refused."""
    refused: dict[str, str] = {}
    for type_url in (ADDRESS, DESTINATION, SERVICE_ROUTES):
        told = [
            (name.partition("/")[2] if type_url == DESTINATION else name, each.payload)
            for name, each in mesh.registry.resources[type_url].items()
            if type_url == ADDRESS or "shop/wp" in each.waypoints
        ]
        refused |= state.apply(type_url, told, ())
    return refused


def mesh_of(servers: dict[str, int], *texts: str) -> Mesh:
    """Service web, whose workloads are at the ports; the label `version` is the workload's name."""
    workloads = [
        entry(name, ip="127.0.0.1", labels=f"app: web, version: {name}", spec=f"ports: {{http: {port}}}")
        for name, port in servers.items()
    ]
    web = service(
        "web",
        f"clusterIP: {VIP}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: http}}]",
        labels="istio.io/use-waypoint: wp",
    )
    return Mesh(waypoint(), replica(), web, *workloads, *texts, settings=MeshSettings())


@contextlib.contextmanager
def running(mesh: Mesh) -> Iterator[Waypoint]:
    with Waypoint(place=PLACE) as proxy:
        assert proxy.ask(lambda: tell(proxy.state, mesh)) == {}
        yield proxy


def virtual(*http: str, name: str = "vs") -> str:
    parts = ", ".join(f"{{{each}}}" for each in http)
    return istio("VirtualService", name, f"{{hosts: [web], http: [{parts}]}}")


def subsets(*names: str, policy: str = "") -> str:
    made = ", ".join(f"{{name: {name}, labels: {{version: {name}}}}}" for name in names)
    return istio("DestinationRule", "dr", f"{{host: web, trafficPolicy: {{{policy}}}, subsets: [{made}]}}")


def to(subset: str, more: str = "") -> str:
    return f"route: [{{destination: {{host: web, subset: {subset}}}{more}}}]"


def test_subsets_are_chosen_by_the_first_match_and_by_weight() -> None:
    with apps("v1", "v2") as (one, two):
        mesh = mesh_of(
            {"v1": one.port, "v2": two.port},
            subsets("v1", "v2"),
            virtual(
                "match: [{uri: {prefix: /new}}, {headers: {x-tester: {exact: 'yes'}}}], " + to("v2"),
                "match: [{uri: {prefix: /split}}], route: ["
                "{destination: {host: web, subset: v1}, weight: 3}, "
                "{destination: {host: web, subset: v2}, weight: 1}]",
                to("v1"),
            ),
        )
        with running(mesh) as proxy:
            assert set(proxy.bodies(5)) == {b"v1"}
            assert set(proxy.bodies(5, "/newer")) == {b"v2"}
            assert set(proxy.bodies(5, "/", x_tester="yes")) == {b"v2"}
            shares = Counter(proxy.bodies(100, "/split"))
            assert 60 <= shares[b"v1"] <= 90


def test_a_subset_follows_the_labels_and_one_that_is_gone_gets_503() -> None:
    with apps("v1", "v2") as (one, two):
        mesh = mesh_of({"v1": one.port, "v2": two.port}, subsets("v1"), virtual(to("v1")))
        with running(mesh) as proxy:
            assert set(proxy.bodies(5)) == {b"v1"}
            mesh.remove("WorkloadEntry", "shop", "v1")
            mesh.apply(
                entry(
                    "v2",
                    ip="127.0.0.1",
                    labels="app: web, version: v1",
                    spec=f"ports: {{http: {two.port}}}",
                )
            )
            proxy.ask(lambda: tell(proxy.state, mesh))
            assert set(proxy.bodies(5)) == {b"v2"}
            mesh.remove("DestinationRule", "shop", "dr")
            proxy.ask(lambda: tell(proxy.state, mesh))
            assert proxy.get("/")[0] == 503


def test_rewrites_headers_and_timeouts_reach_the_application() -> None:
    with App("slow", lambda seen: Reply(delay_s=0.5 if seen.path.startswith("/slow") else 0.0)) as app:
        mesh = mesh_of(
            {"v1": app.port},
            subsets("v1"),
            virtual(
                "match: [{uri: {prefix: /old}}], rewrite: {uri: /new, authority: inner.example}, "
                "headers: {request: {set: {x-a: '1'}, remove: [x-b]}, response: {set: {x-c: '2'}}}, "
                + to("v1", ", headers: {request: {set: {Host: other.example, x-d: '3'}}}"),
                f"timeout: 100ms, retries: {{attempts: 0}}, {to('v1')}",
            ),
        )
        with running(mesh) as proxy:
            _, headers, _ = proxy.get("/older/x?q=1", x_b="no")
            (seen,) = app.seen
            assert seen.path == "/newer/x?q=1"
            assert [seen.header(name) for name in ("host", "x-a", "x-b", "x-d")] == [
                "inner.example",
                "1",
                None,
                "3",
            ]
            assert headers["x-c"] == "2"
            assert proxy.get("/slow")[0] == 504


def test_answers_that_the_waypoint_makes_itself() -> None:
    with apps("v1") as (app,):
        mesh = mesh_of(
            {"v1": app.port},
            virtual(
                "match: [{uri: {exact: /moved}}], redirect: {uri: /there, redirectCode: 307}",
                "match: [{uri: {prefix: /team/}}], redirect: {prefixRewrite: /squad/, scheme: https}",
                "match: [{uri: {exact: /tea}}], directResponse: {status: 418, body: {string: short}}",
                "match: [{uri: {exact: /broken}}], route: [{destination: {host: web}}], "
                "fault: {abort: {percentage: {value: 100}, httpStatus: 555}}",
                "match: [{uri: {exact: /gone}}], route: [{destination: {host: nobody}}]",
            ),
        )
        with running(mesh) as proxy:
            status, headers, _ = proxy.get("/moved?q=1", host="web.example:9090")
            assert (status, headers["location"]) == (307, "http://web.example:9090/there?q=1")
            status, headers, _ = proxy.get("/team/a", host="web.example:80")
            assert (status, headers["location"]) == (301, "https://web.example/squad/a")
            assert proxy.get("/tea")[::2] == (418, b"short")
            assert proxy.get("/broken")[::2] == (555, b"fault filter abort")
            assert proxy.get("/gone")[0] == 503
            assert proxy.get("/else")[0] == 404
            assert app.seen == []


def test_retries_and_mirrors() -> None:
    failures = iter([503, 503])

    def reply(seen: Seen) -> Reply:
        return Reply(status=next(failures, 200))

    with App("flaky", reply) as flaky, apps("v2") as (mirror,):
        mesh = mesh_of(
            {"v1": flaky.port, "v2": mirror.port},
            subsets("v1", "v2"),
            virtual(
                "retries: {attempts: 2, retryOn: '503', backoff: 1ms}, "
                f"mirrors: [{{destination: {{host: web, subset: v2}}}}], {to('v1')}"
            ),
        )
        with running(mesh) as proxy:
            assert proxy.get("/a")[0] == 200
            assert len(flaky.seen) == 3
            assert [each.path for each in mirror.until(1)] == ["/a"]


def test_cors_of_a_virtual_service() -> None:
    with apps("v1") as (app,):
        cors = "corsPolicy: {allowOrigins: [{exact: 'https://a.b'}], allowMethods: [GET, PUT], maxAge: 1m}"
        mesh = mesh_of({"v1": app.port}, virtual(f"{cors}, route: [{{destination: {{host: web}}}}]"))
        asked = {"access_control_request_method": "PUT"}
        with running(mesh) as proxy:
            status, headers, _ = proxy.get("/", "OPTIONS", None, origin="https://a.b", **asked)
            assert (status, headers["access-control-allow-methods"]) == (200, "GET,PUT")
            assert headers["access-control-max-age"] == "60"
            assert app.seen == []
            proxy.get("/", "OPTIONS", None, origin="https://evil.example", **asked)
            assert len(app.seen) == 1


def test_a_consistent_hash_keeps_a_user_at_an_endpoint() -> None:
    with apps("v1", "v2", "v3") as (one, two, three):
        mesh = mesh_of(
            {"v1": one.port, "v2": two.port, "v3": three.port},
            subsets(
                policy="loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 251}}}"
            ),
        )
        with running(mesh) as proxy:
            users = [str(number) for number in range(12)]
            first = [proxy.get("/", x_user=user)[2] for user in users]
            assert [proxy.get("/", x_user=user)[2] for user in users] == first
            assert len(set(first)) > 1


def test_limits_and_ejections_of_a_rule() -> None:
    with (
        App("bad", lambda _: Reply(status=500)) as bad,
        apps("v2") as (good,),
    ):
        policy = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 60s, maxEjectionPercent: 50}"
        mesh = mesh_of({"v1": bad.port, "v2": good.port}, subsets(policy=policy))
        with running(mesh) as proxy:
            statuses = [proxy.get("/")[0] for _ in range(20)]
            assert statuses.count(500) == 1
            assert set(statuses[statuses.index(500) + 1 :]) == {200}


@pytest.mark.parametrize("policy", ["tls: {mode: SIMPLE}", "proxyProtocol: {version: V2}"])
def test_what_is_not_supported_or_cannot_be_secured_lets_nothing_through(policy: str) -> None:
    with apps("v1") as (app,), running(mesh_of({"v1": app.port}, subsets(policy=policy))) as proxy:
        assert proxy.get("/")[0] == 503
        assert app.seen == []


@needs_re2
def test_expressions_and_delegates() -> None:
    with apps("v1", "v2") as (one, two):
        mesh = mesh_of(
            {"v1": one.port, "v2": two.port},
            subsets("v1", "v2"),
            virtual("match: [{uri: {prefix: /team}}], delegate: {name: team}", to("v1")),
            istio(
                "VirtualService",
                "team",
                "{http: [{match: [{uri: {prefix: /team/}, method: {regex: 'GET|PUT'}}], rewrite: "
                f"{{uriRegexRewrite: {{match: '^/team/([^/]+)', rewrite: '/\\1/team'}}}}, {to('v2')}}}]}}",
            ),
        )
        with running(mesh) as proxy:
            assert proxy.get("/team/red/x")[2] == b"v2"
            assert two.seen[0].path == "/red/team/x"
            assert proxy.get("/team/red/x", "DELETE")[2] == b"v1"


def test_a_fault_delays_before_the_request_goes_out() -> None:
    with apps("v1") as (app,):
        delay = "fault: {delay: {percentage: {value: 100}, fixedDelay: 200ms}}"
        mesh = mesh_of({"v1": app.port}, virtual(f"{delay}, route: [{{destination: {{host: web}}}}]"))
        with running(mesh) as proxy:
            before = time.monotonic()
            assert proxy.get("/")[0] == 200
            assert time.monotonic() - before >= 0.19
