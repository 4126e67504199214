"""Action CUSTOM in the worker: what its policies hold for is refused while there is nobody to ask.

An unknown provider refuses what it would have been asked about (config-api 8.7), and here all are:
a policy that is there never lets pass what it was written to guard. Comes before credentials are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dataplane.worker.log import WorkerLog
from waypoint.state.authorization import AUTHORIZATION_TYPE, Action, Policy, Rule, custom_table
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.authorization import connection_facts, facts_of
from waypoint.worker.checks import Check, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.plan import Source
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.ways import ServedPort

_UNASKED: Final = Answer(403, "ext_authz_error", "UAEX", b"RBAC: access denied")


class CustomAuthorization:
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

    def _check(self, port: ServedPort) -> _Unasked | None:
        """Policies that cannot be read shut the port in the check of the other actions."""
        found = self._state.policies.of(AUTHORIZATION_TYPE, "" if port.service is None else port.service.key)
        custom = [each for each in found if isinstance(each, Policy) and each.action is Action.CUSTOM]
        return _Unasked(self, custom) if custom else None

    def close(self) -> None: ...


class _Unasked:
    """All CUSTOM policies of a port. Implements Check and StreamCheck."""

    phase = Phase.EXTERNAL

    def __init__(self, owner: CustomAuthorization, policies: Sequence[Policy]) -> None:
        self._owner = owner
        self._enforced = custom_table(policies)
        self._tried = custom_table(policies, is_dry_run=True)
        self._enforced_streams = custom_table(policies, is_for_streams=True)
        self._tried_streams = custom_table(policies, is_dry_run=True, is_for_streams=True)
        self.needs_server_name = any(rule.needs_server_name for each in policies for rule in each.rules)

    def examine(self, examination: Examination) -> Answer | None:
        facts = facts_of(examination)
        said = self._judge(self._enforced.first(facts), self._tried.first(facts), facts)
        if not said:
            return None
        examination.outcome.policy = said
        return _UNASKED

    def refuse(self, source: Source, server_name: str | None) -> str:
        facts = connection_facts(source, server_name)
        return self._judge(self._enforced_streams.first(facts), self._tried_streams.first(facts), facts)

    def _judge(self, enforced: Rule | None, tried: Rule | None, facts: PolicyFacts) -> str:
        owner = self._owner
        if tried is not None:
            owner.counts.count(str(tried.policy), "would_be_denied")
            owner.log.limited("info", "dry_run_denies", policy=_said(tried, facts), client=facts.principal)
        if enforced is None:
            return ""
        owner.counts.count(str(enforced.policy), "denied")
        return _said(enforced, facts)


def _said(rule: Rule, facts: PolicyFacts) -> str:
    provider = rule.policy.provider
    return f"{rule.policy} rules[{rule.index}] {rule.clause(facts)}: provider {provider} is not known here"
