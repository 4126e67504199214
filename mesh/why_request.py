"""`mycelia why SRC DST:PORT --path /x`: what a waypoint would do with a request, and which rule decides.

The waypoint's own decisions are asked, on a state made of the same resources: how the request is normalised,
what its policies say, which route it takes and to which host; then the host's node proxy about the waypoint.
What depends on more than the request (an external authorizer's answer, a rate
limit's account, a filter's code) is named, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dataplane.state.model import GatewayRef, Service
from dataplane.state.store import MeshState
from transport.errors import MeshError
from transport.http_path import Refusal
from transport.reactor import Reactor
from transport.spiffe import SpiffeId
from waypoint.state.authentication import AUTHENTICATION_TYPE, RequestAuthentication
from waypoint.state.authorization import AUTHORIZATION_TYPE, Action, Authorizer, Policy, custom_table
from waypoint.state.filters import FILTER_TYPE
from waypoint.state.hosts import Application, Endpoint
from waypoint.state.place import Place
from waypoint.state.policies import Unreadable
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.rate_limits import RATE_LIMIT_TYPE
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.dial import Dial
from waypoint.worker.headers import Request, read_request
from waypoint.worker.plan import Source
from waypoint.worker.upstreams import Upstreams

Resources = Sequence[tuple[str, Sequence[tuple[str, bytes]]]]  # by type: name and content of each


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a client writes it; `claims`: of a token that is assumed to be valid."""

    path: str
    method: str = "GET"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    claims: dict[str, object] | None = None

    def head(self, default_host: str) -> list[tuple[bytes, bytes]]:
        return [
            (b":method", self.method.encode()),
            (b":scheme", b"http"),
            (b":authority", (self.host or default_host).encode()),
            (b":path", self.path.encode()),
            *((name.lower().encode(), value.encode()) for name, value in self.headers),
        ]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request on its way: `client` is an address and who it is, `target` what the client called."""

    asked: Asked
    client: tuple[str, SpiffeId]
    target: tuple[str, int]


@dataclass(slots=True)
class Judgement:
    """`is_allowed` None: somebody else decides, who is not asked here. `host`: the likeliest to get it."""

    is_allowed: bool | None
    verdict: str
    lines: list[str] = field(default_factory=list)
    host: tuple[str, int] | None = None


def waypoint_of(service: Service, gateways: Iterable[tuple[str, str]], mesh: MeshState) -> Place | None:
    """Which of `gateways` (namespace, name) a service's requests go through: by weight the likeliest."""
    weighted = sorted(service.weighted_waypoints, key=lambda each: -each.weight)
    reference: GatewayRef | None = weighted[0].gateway if weighted else service.waypoint
    if reference is None:
        return None
    places = (Place(namespace, name) for namespace, name in gateways)
    return next((place for place in places if place.is_meant_by(reference, mesh)), None)


def judge(resources: Resources, place: Place, sent: Sent) -> Judgement:
    """What the waypoint at `place` does with a request."""
    reactor = Reactor()
    state = WaypointState(place, clock=lambda: reactor.now, random=lambda: 0.0)
    for type_url, held in resources:
        state.apply(type_url, held, ())
    upstreams = Upstreams(reactor, _NoDialler())
    decider = RoutingDecider(state, reactor, upstreams, random=lambda: 0.0, wall_clock=lambda: 0.0)
    try:
        source = Source((sent.client[0], 0), sent.target, sent.client[1])
        return _Judge(state, decider, source).judge(sent.asked)
    finally:
        decider.close()
        reactor.close()


class _NoDialler:
    """Nothing is sent."""

    def dial(
        self,
        endpoint: Endpoint,  # noqa: ARG002 - the seam's
        done: Callable[[ByteStream | MeshError], None],  # noqa: ARG002
        application: Application | None = None,  # noqa: ARG002
    ) -> Dial:
        raise AssertionError("no request is sent")


class _Judge:
    def __init__(self, state: WaypointState, decider: RoutingDecider, source: Source) -> None:
        self._state = state
        self._decider = decider
        self._source = source
        self._lines: list[str] = []
        self._is_custom = False

    def judge(self, asked: Asked) -> Judgement:
        service = self._state.served_service(self._source.destination[0])
        request = read_request(asked.head("" if service is None else service.hostname))
        if isinstance(request, Refusal):
            return self._end(False, f"refused by the waypoint with {request.status}: {request.reason}")
        if request.path != asked.path.partition("?")[0].encode():
            self._note(f"the path is judged and sent as {request.path.decode(errors='replace')}")
        facts = self._facts(request, asked)
        key = "" if service is None else service.key
        refused = self._authorize(key, facts)
        if refused is not None:
            return refused
        is_open = not self._name_the_rest(key)
        return self._route(request, is_open=is_open)

    def _facts(self, request: Request, asked: Asked) -> PolicyFacts:
        return PolicyFacts(
            identity=self._source.identity,
            source_ip=self._source.address[0],
            destination=self._source.destination,
            method=request.method,
            path=request.path,
            query=request.query,
            authority=request.authority,
            scheme=request.scheme,
            headers=request.headers,
            claims=asked.claims,
        )

    # Policies, in the order in which the waypoint asks them

    def _authorize(self, service: str, facts: PolicyFacts) -> Judgement | None:
        found = self._state.policies.of(AUTHORIZATION_TYPE, service)
        unreadable = [each for each in found if isinstance(each, Unreadable)]
        if unreadable:
            return self._end(False, f"refused with 503: policy {unreadable[0].key} cannot be read")
        policies = [each for each in found if isinstance(each, Policy)]
        rule = custom_table(policies).first(facts)
        if rule is not None:
            self._note(f"{rule.policy} rules[{rule.index}] asks {rule.policy.provider}, who decides as well")
            self._is_custom = True
        self._authenticate(service, facts)
        enforced = [each for each in policies if not each.is_dry_run and each.action is not Action.CUSTOM]
        tried = Authorizer([each for each in policies if each.is_dry_run])
        judging = Authorizer(enforced)
        for noted in judging.audit.all(facts):
            self._note(f"{noted.policy} rules[{noted.index}] has it noted (AUDIT)")
        would = tried.judge(facts) if tried else None
        if would is not None:
            self._note(f"dry run, would be denied: {would.policy}")
        refusal = judging.judge(facts)
        if refusal is not None:
            return self._end(False, f"denied by the waypoint with 403: {refusal.policy}")
        if judging.allow:
            allowing = judging.allow.first(facts)
            assert allowing is not None, "else it were refused"
            self._note(f"allowed by {allowing.policy} rules[{allowing.index}] {allowing.clause(facts)}")
        else:
            self._note("no ALLOW policies: allowed")
        return None

    def _authenticate(self, service: str, facts: PolicyFacts) -> None:
        for policy in self._state.policies.of(AUTHENTICATION_TYPE, service):
            if isinstance(policy, RequestAuthentication):
                issuers = ", ".join(rule.issuer for rule in policy.rules) or "nobody"
                whose = "a valid one is assumed" if facts.claims is not None else "none is given"
                self._note(f"RequestAuthentication/{policy.key} looks for a token of {issuers}: {whose}")

    def _name_the_rest(self, service: str) -> bool:
        """Limits and filters; whether there are any, which may refuse as well."""
        named = [
            str(each)
            for type_url in (RATE_LIMIT_TYPE, FILTER_TYPE)
            for each in self._state.policies.of(type_url, service)
        ]
        for each in named:
            self._note(f"{each} looks at it as well")
        return bool(named)

    # Where it goes

    def _route(self, request: Request, *, is_open: bool) -> Judgement:
        for line in self._decider.explain(request, self._source):
            self._note(line)
        plan = self._decider.choose(request, self._source)
        found = plan if isinstance(plan, Answer) else plan.pick([])
        if isinstance(found, Answer):
            return self._end(False, f"answered by the waypoint with {found.status}: {found.details}")
        verdict = "sent on by the waypoint" if is_open else "sent on, if limits and filters let it pass"
        judged = self._end(None if self._is_custom else True, verdict)
        judged.host = found.address
        return judged

    def _note(self, line: str) -> None:
        self._lines.append(f"waypoint: {line}")

    def _end(self, is_allowed: bool | None, verdict: str) -> Judgement:
        return Judgement(is_allowed, verdict, self._lines)
