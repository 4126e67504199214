"""Tokens through a real proxy: what clients learn, what the application sees, what policies can rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dataplane.worker.log import WorkerLog
from proto.mycelia import authentication_pb2 as pb
from tests.waypoint.resources import WEB, endpoint, routes, web_service
from tests.waypoint.state.policy_builders import message
from tests.waypoint.state.token_builders import ISSUER, NOW, authentication, b64, key_set, rule, token
from tests.waypoint.worker.routing_kit import App, Waypoint
from waypoint.worker.authentication import Authentication
from waypoint.worker.authorization import Authorization
from waypoint.worker.policy_counts import PolicyCounts


def waypoint_of(app: App, *policies: Any) -> Waypoint:
    def sources(state: Any, reactor: Any) -> tuple[Any, ...]:
        log = WorkerLog(lambda _: True, lambda: reactor.now)
        return (Authentication(state, lambda: NOW), Authorization(state, log, PolicyCounts()))

    return Waypoint(web_service(), endpoint("a", app.port), *policies, routes(), check_sources=sources)


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


REQUIRED = message({"from": [{"requestPrincipals": [f"{ISSUER}/*"]}]}, name="required")
ADMINS = message({"when": [("request.auth.claims[groups]", ["admin"], [])]}, name="admins")


def test_without_a_token_it_goes_on_unless_a_policy_wants_one() -> None:
    with App() as app, waypoint_of(app, authentication(services=[WEB])) as waypoint:
        assert waypoint.get()[0] == 200
        waypoint.put(REQUIRED)
        status, _, body = waypoint.get()
        assert (status, body) == (403, b"RBAC: access denied")
        assert waypoint.get("/", "GET", None, **bearer(token()))[0] == 200
        waypoint.put(ADMINS)
        waypoint.remove("type.googleapis.com/mycelia.waypoint.AuthorizationPolicy", "shop/required")
        assert waypoint.get("/", "GET", None, **bearer(token()))[0] == 403
        assert waypoint.get("/", "GET", None, **bearer(token(groups=["x", "admin"])))[0] == 200


def test_a_bad_token_is_401_with_words_and_never_arrives() -> None:
    with App() as app, waypoint_of(app, authentication(services=[WEB])) as waypoint:
        status, headers, body = waypoint.get('/a"b?c', "GET", None, **bearer(token(exp=NOW - 100)))
        assert (status, body) == (401, b"Jwt is expired")
        said = f'Bearer realm="http://127.0.0.1:{waypoint.port}/a\'b", error="invalid_token"'
        assert headers["www-authenticate"] == said
        assert app.seen == []
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        outcome = waypoint.log.exchanges[0].outcome
        assert outcome.details == "jwt_authn_access_denied{Jwt_is_expired}"
        assert outcome.policy == "RequestAuthentication: Jwt is expired"


def test_another_audience_is_403() -> None:
    with App() as app, waypoint_of(app, authentication(rule(audiences=["me"]))) as waypoint:
        status, headers, body = waypoint.get("/", "GET", None, **bearer(token(aud="you")))
        assert (status, body) == (403, b"Audiences in Jwt are not allowed")
        assert "www-authenticate" not in headers


@pytest.mark.parametrize("forwards", [True, False])
def test_the_token_is_passed_on_only_if_asked(forwards: bool) -> None:
    own = rule(
        forwards_token=forwards,
        headers=[pb.JwtRule.Header(name="authorization", prefix="Bearer ")],
        parameters=["tok"],
        cookies=["session"],
    )
    text = token()
    with App() as app, waypoint_of(app, authentication(own)) as waypoint:
        fields = {**bearer(text), "cookie": f"session={text}", "x_other": "stays"}
        assert waypoint.get(f"/p?a=1&tok={text}&b=2", "GET", None, **fields)[0] == 200
        seen = app.seen[0]
        assert seen.header("x-other") == "stays"
        assert seen.header("cookie") == f"session={text}"
        assert (seen.header("authorization") is not None) is forwards
        assert seen.path == (f"/p?a=1&tok={text}&b=2" if forwards else "/p?a=1&b=2")


def test_claims_become_headers_that_no_client_can_forge() -> None:
    own = rule(
        payload_header="X-Payload",
        claim_headers=[
            pb.JwtRule.ClaimHeader(header="X-Sub", claim="sub"),
            pb.JwtRule.ClaimHeader(header="x-role", claim="deep.role"),
        ],
    )
    forged = {"x_sub": "root", "x_role": "root", "x_payload": "root", "X_SUB": "root"}
    with App() as app, waypoint_of(app, authentication(own)) as waypoint:
        assert waypoint.get("/", "GET", None, **forged)[0] == 200
        assert waypoint.get("/", "GET", None, **forged, **bearer(token()))[0] == 200
        assert waypoint.get("/", "GET", None, **forged, **bearer(token(deep={"role": "boss"})))[0] == 200
        without, plain, deep = app.seen
        assert [without.header(name) for name in ("x-sub", "x-role", "x-payload")] == [None] * 3
        assert (plain.header("x-sub"), plain.header("x-role")) == ("me", None)
        assert (deep.header("x-sub"), deep.header("x-role")) == ("me", "boss")
        payload = {"iss": ISSUER, "sub": "me", "deep": {"role": "boss"}}
        assert deep.header("x-payload") == b64(json.dumps(payload).encode())


def test_a_preflight_needs_no_token_but_a_mere_options_request_does() -> None:
    old = bearer(token(exp=NOW - 100))
    asked = {**old, "origin": "http://a", "access_control_request_method": "GET"}
    with App() as app, waypoint_of(app, authentication()) as waypoint:
        assert waypoint.get("/", "OPTIONS", None, **asked)[0] == 200
        assert waypoint.get("/", "OPTIONS", None, **old)[0] == 401


def test_keys_rotate_under_traffic() -> None:
    with App() as app, waypoint_of(app, authentication()) as waypoint:
        old, new = bearer(token()), bearer(token(serial=1))
        assert [waypoint.get("/", "GET", None, **each)[0] for each in (old, new)] == [200, 401]
        waypoint.put(authentication(rule(key_set=key_set(serial=1))))
        assert [waypoint.get("/", "GET", None, **each)[0] for each in (old, new)] == [401, 200]


def test_a_token_may_stand_in_a_header_that_a_claim_is_written_to() -> None:
    claims = [pb.JwtRule.ClaimHeader(header="authorization", claim="sub")]
    with App() as app, waypoint_of(app, authentication(rule(claim_headers=claims)), REQUIRED) as waypoint:
        assert waypoint.get("/", "GET", None, **bearer(token()))[0] == 200
        assert app.seen[0].header("authorization") == "me"
