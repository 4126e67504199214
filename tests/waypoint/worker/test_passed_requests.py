"""What policies let pass once is let pass again, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataplane.worker.log import WorkerLog
from tests.waypoint.state.policy_builders import RuleText, message, policy
from tests.waypoint.state.test_authorization import POLICIES, REQUESTS, passes
from transport.spiffe import SpiffeId
from waypoint.state.authorization import AUTHORIZATION_TYPE, Policy
from waypoint.state.place import Place
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.store import WaypointState
from waypoint.worker import authorization
from waypoint.worker.authorization import Authorization
from waypoint.worker.headers import Request
from waypoint.worker.plan import Outcome, Source
from waypoint.worker.policy_counts import PolicyCounts

GET = Request(b"GET", b"http", b"web", b"/a", None, [(b"x-request-id", b"1")])
CART = Source(("10.0.0.1", 4000), ("10.1.0.1", 80), SpiffeId("cluster.local", "shop", "cart"))


@dataclass
class Examined:
    """As much of an examination as the check looks at."""

    request: Request
    source: Source
    credentials: dict[str, Any] | None = None
    outcome: Outcome = field(default_factory=Outcome)


def check_of(*policies: Policy) -> Any:
    state = WaypointState(Place("shop", "gate"), clock=lambda: 0.0, random=lambda: 0.5)
    log = WorkerLog(lambda _: True, lambda: 0.0)
    return authorization._Everything(Authorization(state, log, PolicyCounts()), policies)


def examined(check: Any, request: Request = GET, source: Source = CART, **more: Any) -> bool:
    return check.examine(Examined(request, source, **more)) is None


def request_of(facts: PolicyFacts) -> tuple[Request, Source]:
    headers = [*facts.headers, (b"x-request-id", b"1")]
    request = Request(facts.method, facts.scheme, facts.authority, facts.path, facts.query, headers)
    return request, Source((facts.source_ip, 4000), facts.destination, facts.identity)


@given(st.lists(REQUESTS, min_size=1, max_size=12), POLICIES)
def test_memory_never_changes_a_judgement(
    requests: list[PolicyFacts], policies: list[tuple[str, list[RuleText]]]
) -> None:
    made = [policy(*rules, action=action, name=f"p{n}") for n, (action, rules) in enumerate(policies)]
    check = check_of(*made)
    for facts in (*requests, *requests):
        request, source = request_of(facts)
        is_allowed = passes(facts, *made)
        assert not check.lets_pass(request, source) or is_allowed
        assert examined(check, request, source) is is_allowed
        assert check.lets_pass(request, source) is is_allowed


def test_a_header_that_a_policy_looks_at_is_part_of_what_is_remembered() -> None:
    check = check_of(policy({"when": [("request.headers[X-Tenant]", ["blue"], [])]}))
    blue = Request(b"GET", b"http", b"web", b"/a", None, [(b"x-tenant", b"blue"), (b"x-other", b"1")])
    assert examined(check, blue)
    blue.headers = [(b"x-tenant", b"blue"), (b"x-other", b"2")]
    assert check.lets_pass(blue, CART)
    for fields in ([], [(b"x-tenant", b"red")], [(b"x-tenant", b"blue"), (b"x-tenant", b"red")]):
        blue.headers = fields
        assert not check.lets_pass(blue, CART)


def test_credentials_are_judged_each_time() -> None:
    check = check_of(policy({"when": [("request.auth.claims[group]", ["admin"], [])]}))
    assert examined(check, credentials={"group": "admin"})
    assert not check.lets_pass(GET, CART)
    assert not examined(check)


def test_what_is_noted_is_noted_each_time() -> None:
    allow = policy({})
    for noting in (policy({}, action="AUDIT", name="a"), policy({}, name="d", is_dry_run=True)):
        check = check_of(allow, noting)
        assert examined(check)
        assert not check.lets_pass(GET, CART)


def test_secrets_and_long_requests_are_not_kept() -> None:
    check = check_of(policy({"when": [("request.headers[cookie]", ["*"], [])]}))
    assert examined(check, Request(b"GET", b"http", b"web", b"/a", None, [(b"cookie", b"secret")]))
    assert not check._passed
    check = check_of(policy({}))
    assert examined(check, Request(b"GET", b"http", b"web", b"/" + b"a" * 2000, None, []))
    assert not check._passed


def test_memory_is_bounded() -> None:
    check = check_of(policy({}))
    for number in range(authorization._MAX_PASSED + 10):
        assert examined(check, Request(b"GET", b"http", b"web", b"/%d" % number, None, []))
    assert 0 < len(check._passed) <= authorization._MAX_PASSED


def test_another_policy_has_another_memory() -> None:
    state = WaypointState(Place("shop", "gate"), clock=lambda: 0.0, random=lambda: 0.5)
    before = state.generation
    state.apply(AUTHORIZATION_TYPE, [("shop/p", message({}).SerializeToString())], ())
    assert state.generation != before  # so ports are looked up anew, with new checks
