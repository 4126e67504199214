"""AuthorizationPolicy through a real proxy: what clients learn, what the log learns, what never arrives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dataplane.worker.log import WorkerLog
from proto.mycelia import authorization_l7_pb2
from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import WEB, endpoint, put, routes, rule, web_service
from tests.waypoint.state.policy_builders import RuleText, message
from tests.waypoint.worker.kit import ScriptedServer, connect, is_cut_off
from tests.waypoint.worker.routing_kit import App, Waypoint
from transport.spiffe import SpiffeId
from waypoint.state.authorization import AUTHORIZATION_TYPE
from waypoint.worker.authorization import Authorization
from waypoint.worker.custom_authorization import Asking, CustomAuthorization
from waypoint.worker.plan import Declared
from waypoint.worker.policy_counts import PolicyCounts

CART = SpiffeId("cluster.local", "shop", "cart")
ON_WEB = authorization_l7_pb2.AuthorizationPolicy().attachment
ON_WEB.services.append(WEB)


class Guarded(Waypoint):
    """A waypoint that judges, in front of one application."""

    authorization: Authorization

    def __init__(self, *resources: Any, **fields: Any) -> None:
        def sources(state: Any, reactor: Any) -> tuple[CustomAuthorization, Authorization]:
            log, counts = WorkerLog(lambda _: True, lambda: reactor.now), PolicyCounts()
            self.authorization = Authorization(state, log, counts)
            asking = Asking(self.upstreams_of_checks)
            return CustomAuthorization(state, log, counts, asking), self.authorization

        super().__init__(*resources, check_sources=sources, identity=CART, **fields)

    def counts(self) -> Counter[tuple[str, ...]]:
        found = self.ask(lambda: list(self.authorization.counts.stats()))
        return Counter({tuple(each.labels): int(each.value) for each in found})


def guarded(app: App, *policies: authorization_l7_pb2.AuthorizationPolicy, **fields: Any) -> Guarded:
    return Guarded(web_service(), endpoint("a", app.port), *policies, routes(), **fields)


def paths(*names: str) -> RuleText:
    return {"to": [{"paths": list(names)}]}


def test_a_refused_client_learns_little_and_the_log_all() -> None:
    deny = message(paths("/admin"), action="DENY", attachment=ON_WEB)
    with App() as app, guarded(app, deny) as waypoint:
        status, headers, body = waypoint.get("/a/../admin")
        assert (status, body) == (403, b"RBAC: access denied")
        assert "shop" not in str(headers)
        assert waypoint.get("/admin/")[0] == 200
        waypoint.log.until(lambda log: len(log.exchanges) == 2)
        refused, passed = (each.outcome for each in waypoint.log.exchanges)
        assert refused.details == "rbac_access_denied_matched_policy[ns[shop]-policy[p]-rule[0]]"
        assert refused.policy == "AuthorizationPolicy/shop/p rules[0] to[0]"
        assert (refused.flag, passed.policy) == ("-", "")
        assert [each.path for each in app.seen] == ["/admin/"]
        assert waypoint.counts() == {("AuthorizationPolicy/shop/p", "denied"): 1}


def test_policies_come_and_go_on_open_ports() -> None:
    with App() as app, guarded(app) as waypoint:
        assert waypoint.get()[0] == 200
        waypoint.put(message(attachment=ON_WEB))
        assert waypoint.get()[0] == 403
        waypoint.put(message({"from": [{"principals": [CART.principal]}]}, attachment=ON_WEB))
        assert waypoint.get()[0] == 200
        waypoint.put(message({"from": [{"namespaces": ["bank"]}]}, attachment=ON_WEB))
        assert waypoint.get()[0] == 403
        waypoint.remove(AUTHORIZATION_TYPE, "shop/p")
        assert waypoint.get()[0] == 200


def test_a_policy_of_another_service_says_nothing() -> None:
    other = authorization_l7_pb2.AuthorizationPolicy().attachment
    other.services.append("default/other")
    with App() as app, guarded(app, message(attachment=other)) as waypoint:
        assert waypoint.get()[0] == 200


def test_it_comes_before_redirects_and_preflights() -> None:
    redirect = rule("r", redirect=pb.Redirect(hostname="elsewhere", status=302))
    with Guarded(web_service(), message(attachment=ON_WEB), routes(redirect)) as waypoint:
        assert waypoint.get()[0] == 403
    cors = rule("c", cors=pb.Cors(allow_origins=[pb.StringMatch(exact="http://a")], allow_methods=["GET"]))
    with Guarded(web_service(), message(attachment=ON_WEB), routes(cors)) as waypoint:
        asked = {"origin": "http://a", "access_control_request_method": "GET"}
        assert waypoint.get("/", "OPTIONS", None, **asked)[0] == 403


def test_a_grpc_client_gets_permission_denied() -> None:
    with App() as app, guarded(app, message(attachment=ON_WEB)) as waypoint:
        status, headers, _ = waypoint.get("/a.B/C", "POST", b"", content_type="application/grpc")
        assert (status, headers["grpc-status"]) == (200, "7")
        assert headers["grpc-message"] == "RBAC: access denied"


def test_audits_and_dry_runs_are_noted_and_enforce_nothing() -> None:
    audit = message({}, action="AUDIT", name="audit", attachment=ON_WEB)
    dry = message(paths("/x"), name="dry", is_dry_run=True, attachment=ON_WEB)
    with App() as app, guarded(app, audit, dry) as waypoint:
        assert waypoint.get("/y")[0] == 200
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        assert waypoint.log.exchanges[0].outcome.policy == (
            "audited by AuthorizationPolicy/shop/audit rules[0]; dry run, would be denied: "
            "no ALLOW rule holds: AuthorizationPolicy/shop/dry rules[0] no to"
        )
        assert waypoint.counts() == {
            ("AuthorizationPolicy/shop/audit", "audited"): 1,
            ("none", "would_be_denied"): 1,
        }


def test_a_policy_that_cannot_be_read_shuts_the_port() -> None:
    broken = message({"when": [("request.nonsense", ["a"], [])]}, attachment=ON_WEB)
    with App() as app, guarded(app) as waypoint:
        assert waypoint.ask(lambda: put(waypoint.state, broken)).keys() == {"shop/p"}
        assert waypoint.get()[0] == 503
        waypoint.put(message({}, attachment=ON_WEB))
        assert waypoint.get()[0] == 200
        assert app.seen


@pytest.mark.parametrize("is_allowed", [True, False])
def test_plain_connections_are_judged_too(is_allowed: bool) -> None:
    allow = message({"from": [{"namespaces": ["shop" if is_allowed else "bank"]}]}, attachment=ON_WEB)
    with ScriptedServer() as server:
        resources = (web_service(), endpoint("a", server.port), allow, routes(protocol=pb.TCP))
        with Guarded(*resources) as waypoint:
            port = waypoint.ports[Declared.TCP]
            if is_allowed:
                with connect(port) as client, server.accept() as upstream:
                    client.sendall(b"hi")
                    assert upstream.recv(2) == b"hi"
                return
            assert is_cut_off(port)
            waypoint.log.until(lambda log: len(log.tcp) == 1)
            assert "AuthorizationPolicy/shop/p rules[0] no from" in waypoint.log.tcp[0].policy


def test_a_connection_is_not_allowed_by_the_method_that_it_does_not_have() -> None:
    allow = message({"to": [{"notMethods": ["POST"]}]}, attachment=ON_WEB)
    with ScriptedServer() as server:
        resources = (web_service(), endpoint("a", server.port), allow, routes(protocol=pb.TCP))
        with Guarded(*resources) as waypoint:
            assert is_cut_off(waypoint.ports[Declared.TCP])
            waypoint.log.until(lambda log: len(log.tcp) == 1)
            assert "rules[0] is about requests, and this is none" in waypoint.log.tcp[0].policy


def test_custom_policies_refuse_what_nobody_can_be_asked_about() -> None:
    custom = message(paths("/a*"), action="CUSTOM", name="c", provider="judge", attachment=ON_WEB)
    tried = message({}, action="CUSTOM", name="d", provider="judge", is_dry_run=True, attachment=ON_WEB)
    allow = message({}, attachment=ON_WEB)
    with App() as app, guarded(app, custom, tried, allow) as waypoint:
        assert waypoint.get("/b")[0] == 200
        status, _, body = waypoint.get("/ab")
        assert (status, body) == (403, b"RBAC: access denied")
        waypoint.log.until(lambda log: len(log.exchanges) == 2)
        refused = waypoint.log.exchanges[1].outcome
        assert (refused.details, refused.flag) == ("ext_authz_error", "UAEX")
        assert refused.policy == "AuthorizationPolicy/shop/c rules[0] to[0]: provider judge is not known here"
        assert [each.path for each in app.seen] == ["/b"]
        assert waypoint.counts() == {
            ("AuthorizationPolicy/shop/c", "denied"): 1,
            ("AuthorizationPolicy/shop/d", "would_be_denied"): 2,
        }
