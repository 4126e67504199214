"""AuthorizationPolicy in the worker: the check of requests and connections, its counts and its log.

A refused client learns `RBAC: access denied` and a status, and no more; log, metric and dump name the policy,
the rule and the clause. Source: config-api 8.5, waypoint-facts 12.1 and 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dataplane.worker.log import WorkerLog
from transport.http2.events import SECRETS
from waypoint.state.authorization import AUTHORIZATION_TYPE, Action, Authorizer, Policy, Refusal
from waypoint.state.policies import Unreadable
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.checks import Check, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.headers import Request
from waypoint.worker.plan import Source
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.ways import ServedPort

_BODY: Final = b"RBAC: access denied"
_MAX_PASSED: Final = 4096  # requests that are remembered for a port; at the bound all are forgotten
_MAX_SEEN_BYTES: Final = 1024
_UNREADABLE: Final = Answer(503, "policy_unreadable", body=b"the policy of this service cannot be read")


def facts_of(examination: Examination) -> PolicyFacts:
    """What policies may know of a request."""
    request, source = examination.request, examination.source
    return PolicyFacts(
        identity=source.identity,
        source_ip=source.address[0],
        destination=source.destination,
        method=request.method,
        path=request.path,
        query=request.query,
        authority=request.authority,
        scheme=request.scheme,
        headers=request.headers,
        claims=examination.credentials,
    )


def connection_facts(source: Source, server_name: str | None) -> PolicyFacts:
    """What policies may know of a connection that is no HTTP."""
    return PolicyFacts(
        identity=source.identity,
        source_ip=source.address[0],
        destination=source.destination,
        server_name=server_name or "",
    )


class Authorization:
    """Implements CheckSource."""

    def __init__(self, state: WaypointState, log: WorkerLog, counts: PolicyCounts) -> None:
        self._state = state
        self.log = log
        self.counts = counts

    def checks(self, port: ServedPort) -> Sequence[Check]:
        check = self._check(port)
        return () if check is None else (check,)

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:
        check = self._check(port)
        return () if check is None else (check,)

    def _check(self, port: ServedPort) -> _Everything | _Nothing | None:
        found = self._state.policies.of(AUTHORIZATION_TYPE, "" if port.service is None else port.service.key)
        if any(isinstance(each, Unreadable) for each in found):
            return _Nothing()
        judged = [each for each in found if isinstance(each, Policy) and each.action is not Action.CUSTOM]
        return _Everything(self, judged) if judged else None

    def close(self) -> None: ...


class _Everything:
    """All policies of a port. Implements KnowingCheck and StreamCheck.

    Who passed is remembered by all that the policies may look at, for they judge the same again. Not so with
    credentials, whose time passes, and where each request is to be noted (AUDIT, dry run).
    """

    phase = Phase.AUTHORIZE

    def __init__(self, owner: Authorization, policies: Sequence[Policy]) -> None:
        self._owner = owner
        enforced = [each for each in policies if not each.is_dry_run]
        tried = [each for each in policies if each.is_dry_run]
        self._of_requests = Authorizer(enforced), Authorizer(tried)
        self._of_streams = (
            Authorizer(enforced, is_for_streams=True),
            Authorizer(tried, is_for_streams=True),
        )
        self.needs_server_name = any(rule.needs_server_name for each in policies for rule in each.rules)
        self._header_names = frozenset(
            name for each in policies for rule in each.rules for name in rule.header_names
        )
        self._passed: set[tuple[object, ...]] = set()
        self._notes_each = bool(tried) or any(each.action is Action.AUDIT for each in enforced)

    def lets_pass(self, request: Request, source: Source) -> bool:
        return bool(self._passed) and self._seen(request, source) in self._passed

    def _seen(self, request: Request, source: Source) -> tuple[object, ...]:
        """All that the policies can look at, but for credentials."""
        names = self._header_names
        return (
            source.identity,
            source.address[0],
            source.destination,
            request.method,
            request.path,
            request.query,
            request.authority,
            request.scheme,
            *[field for field in request.headers if field[0] in names],
        )

    def _remember(self, request: Request, source: Source) -> None:
        fields = [field for field in request.headers if field[0] in self._header_names]
        size = len(request.target) + sum(len(value) for _, value in fields)
        if self._notes_each or size > _MAX_SEEN_BYTES or any(name in SECRETS for name, _ in fields):
            return
        if len(self._passed) >= _MAX_PASSED:
            self._passed.clear()
        self._passed.add(self._seen(request, source))

    def examine(self, examination: Examination) -> Answer | None:
        has_credentials = examination.credentials is not None
        if not has_credentials and self.lets_pass(examination.request, examination.source):
            return None
        refusal, remarks = self._judge(*self._of_requests, facts_of(examination))
        if refusal is None:
            if remarks:
                examination.outcome.policy = "; ".join(remarks)
            if not has_credentials:
                self._remember(examination.request, examination.source)
            return None
        examination.outcome.policy = refusal.policy
        return Answer(403, f"rbac_access_denied_matched_policy[{refusal.matched}]", body=_BODY)

    def refuse(self, source: Source, server_name: str | None) -> str:
        refusal, _ = self._judge(*self._of_streams, connection_facts(source, server_name))
        return "" if refusal is None else refusal.policy

    def _judge(
        self, enforced: Authorizer, tried: Authorizer, facts: PolicyFacts
    ) -> tuple[Refusal | None, Sequence[str]]:
        """The refusal, and what the access log is to say of a request that passes."""
        owner, remarks = self._owner, []
        if enforced.audit:
            for rule in enforced.audit.all(facts):
                owner.counts.count(str(rule.policy), "audited")
                remarks.append(f"audited by {rule.policy} rules[{rule.index}]")
                owner.log.limited("info", "request_audited", policy=rule.name, **_told(facts))
        if tried:
            would = tried.judge(facts)
            if would is not None:
                owner.counts.count(_policy_of(would), "would_be_denied")
                remarks.append(f"dry run, would be denied: {would.policy}")
                owner.log.limited("info", "dry_run_denies", policy=would.policy, **_told(facts))
        refusal = enforced.judge(facts)
        if refusal is not None:
            owner.counts.count(_policy_of(refusal), "denied")
        return refusal, remarks


class _Nothing:
    """A policy is there that cannot be read: nobody passes. Implements Check and StreamCheck."""

    phase = Phase.AUTHORIZE
    needs_server_name = False

    def examine(self, examination: Examination) -> Answer:
        examination.outcome.policy = "unreadable"
        return _UNREADABLE

    def refuse(self, source: Source, server_name: str | None) -> str:  # noqa: ARG002 - all alike
        return "a policy cannot be read"


def _policy_of(refusal: Refusal) -> str:
    """The label of a count: the policy, or that none allows."""
    return "none" if refusal.matched == "none" else refusal.policy.partition(" ")[0]


def _told(facts: PolicyFacts) -> dict[str, object]:
    return {
        "client": facts.principal,
        "method": facts.method.decode("ascii", "replace"),
        "path": facts.path[:256].decode("ascii", "replace"),
    }
