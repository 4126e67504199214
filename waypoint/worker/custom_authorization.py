"""Action CUSTOM in the worker: what its policies hold for is asked of their provider (config-api 8.7).

Comes before credentials are read. Each provider of a port is one check: it is asked once for a request,
however many of its policies hold; all that are asked must allow. A policy whose provider or service is not
there refuses what it holds for, and so does each for connections that are no HTTP: nobody is asked about
those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dataplane.worker.log import WorkerLog
from transport.http2.events import Header
from waypoint.state.authorization import AUTHORIZATION_TYPE, Action, Policy, Rule, custom_table
from waypoint.state.external_authorizer import ExternalAuthorizer
from waypoint.state.hosts import Application
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.authorization import connection_facts, facts_of
from waypoint.worker.checks import Check, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.external import grpc_check, http_check
from waypoint.worker.external.inquiry import Inquiry, Reply
from waypoint.worker.external.verdict import (
    Allowed,
    Denied,
    Failed,
    Verdict,
    answer_of,
    apply_changes,
)
from waypoint.worker.plan import Source
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.upstreams import Upstreams
from waypoint.worker.ways import ServedPort

_BODY: Final = b"RBAC: access denied"
_UNASKED: Final = Answer(403, "ext_authz_error", "UAEX", _BODY)
_TOO_LARGE: Final = Answer(413, "request_payload_too_large", body=b"Payload Too Large")


@dataclass(frozen=True, slots=True)
class Asking:
    """What it takes to ask. `principal` is the waypoint's own identity."""

    upstreams: Upstreams
    principal: str = ""
    wall_clock: Callable[[], float] = time.time


class CustomAuthorization:
    """Implements CheckSource."""

    def __init__(self, state: WaypointState, log: WorkerLog, counts: PolicyCounts, asking: Asking) -> None:
        self.state = state
        self.log = log
        self.counts = counts
        self.asking = asking

    def checks(self, port: ServedPort) -> Sequence[Check]:
        return self._checks(port)

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:
        return self._checks(port)

    def _checks(self, port: ServedPort) -> list[_Asked]:
        """Policies that cannot be read shut the port in the check of the other actions."""
        found = self.state.policies.of(AUTHORIZATION_TYPE, "" if port.service is None else port.service.key)
        custom = [each for each in found if isinstance(each, Policy) and each.action is Action.CUSTOM]
        groups: dict[tuple[str, ExternalAuthorizer | None], list[Policy]] = {}
        for each in custom:
            groups.setdefault((each.provider, each.authorizer), []).append(each)
        # Who is refused anyway need not be asked about.
        missing_first = sorted(groups.items(), key=lambda item: item[0][1] is not None)
        return [_Asked(self, provider[1], policies) for provider, policies in missing_first]

    def close(self) -> None: ...


class _Asked:
    """The CUSTOM policies of a port that ask one provider. Implements Check and StreamCheck."""

    phase = Phase.EXTERNAL

    def __init__(
        self, owner: CustomAuthorization, authorizer: ExternalAuthorizer | None, policies: Sequence[Policy]
    ) -> None:
        self._owner = owner
        self._authorizer = authorizer
        self._enforced = custom_table(policies)
        self._tried = custom_table(policies, is_dry_run=True)
        self._enforced_streams = custom_table(policies, is_for_streams=True)
        self._tried_streams = custom_table(policies, is_dry_run=True, is_for_streams=True)
        self.needs_server_name = any(rule.needs_server_name for each in policies for rule in each.rules)

    def examine(self, examination: Examination) -> Answer | _Question | None:
        facts = facts_of(examination)
        authorizer, would_be = self._authorizer, "would_be_asked"
        if authorizer is None:
            would_be = "would_be_denied"
        rule = self._first(self._enforced.first(facts), self._tried.first(facts), facts, would_be)
        if rule is None:
            return None
        if authorizer is None:
            self._owner.counts.count(str(rule.policy), "denied")
            examination.outcome.policy = _said(rule, facts, "is not known here")
            return _UNASKED
        question = _Question(self._owner, authorizer, examination, rule, _said(rule, facts, ""))
        question.begin()
        return question

    def refuse(self, source: Source, server_name: str | None) -> str:
        facts = connection_facts(source, server_name)
        enforced, tried = self._enforced_streams.first(facts), self._tried_streams.first(facts)
        rule = self._first(enforced, tried, facts, "would_be_denied")
        if rule is None:
            return ""
        self._owner.counts.count(str(rule.policy), "denied")
        why = "is not known here" if self._authorizer is None else "is not asked about connections"
        return _said(rule, facts, why)

    def _first(
        self, enforced: Rule | None, tried: Rule | None, facts: PolicyFacts, would_be: str
    ) -> Rule | None:
        if tried is not None:
            owner = self._owner
            owner.counts.count(str(tried.policy), would_be)
            text = _said(tried, facts, "is not known here" if self._authorizer is None else "")
            owner.log.limited("info", "dry_run_denies", policy=text, client=facts.principal)
        return enforced


def _said(rule: Rule, facts: PolicyFacts, what: str) -> str:
    text = f"{rule.policy} rules[{rule.index}] {rule.clause(facts)}: provider {rule.policy.provider}"
    return f"{text} {what}" if what else text


class _Question:
    """One request that waits for its provider. Implements Pending."""

    def __init__(
        self,
        owner: CustomAuthorization,
        authorizer: ExternalAuthorizer,
        examination: Examination,
        rule: Rule,
        said: str,
    ) -> None:
        self._owner = owner
        self._authorizer = authorizer
        self._examination = examination
        self._policy = str(rule.policy)
        self._said = said
        self._inquiry: Inquiry | None = None

    def begin(self) -> None:
        """The deadline runs from when the question leaves; the client may take its time for the body."""
        wanted = self._authorizer.body
        if wanted is None or self._examination.request.upgrade:
            self._ask(None, is_whole=True)
        else:
            # One octet more tells a body that is whole from one that goes on.
            self._examination.hold_body(wanted.max_bytes + (not wanted.may_be_partial), self._on_body)

    def cancel(self) -> None:
        if self._inquiry is not None:
            self._inquiry.cancel()

    def _on_body(self, body: bytes, is_whole: bool) -> None:
        wanted = self._authorizer.body
        assert wanted is not None
        if len(body) > wanted.max_bytes:
            self._examination.outcome.policy = f"{self._said}: the body is larger than it may be"
            self._examination.go_on(_TOO_LARGE)
            return
        self._ask(body, is_whole=is_whole)

    def _ask(self, body: bytes | None, *, is_whole: bool) -> None:
        authorizer, owner = self._authorizer, self._owner
        cluster = owner.state.cluster(authorizer.service, authorizer.port)
        if cluster is None:
            self._decide(Failed(f"service {authorizer.service} is not known here", is_final=True))
            return
        if authorizer.is_grpc:
            application = Application.HTTP2
            head, content = self._grpc_question(body, is_whole=is_whole)
        else:
            application = cluster.application or Application.HTTP1
            request = self._examination.request
            head = http_check.check_head(authorizer, request, body, is_whole=is_whole)
            content = body or b""
        self._inquiry = Inquiry(owner.asking.upstreams, cluster, application, self._on_reply)
        self._inquiry.start(head, content, authorizer.timeout_s)

    def _grpc_question(self, body: bytes | None, *, is_whole: bool) -> tuple[list[Header], bytes]:
        examination, authorizer, asking = self._examination, self._authorizer, self._owner.asking
        subject = grpc_check.Subject(
            examination.request,
            examination.source,
            asking.principal,
            examination.exchange.protocol,
            asking.wall_clock(),
        )
        content = grpc_check.framed(grpc_check.check_request(authorizer, subject, body, is_whole=is_whole))
        host = authorizer.service.rpartition("/")[2]
        return grpc_check.check_head(authorizer, f"{host}:{authorizer.port}".encode(), len(content)), content

    def _on_reply(self, reply: Reply | str) -> None:
        if isinstance(reply, str):
            self._decide(Failed(reply))
        elif self._authorizer.is_grpc:
            self._decide(
                grpc_check.read_reply(reply.status, reply.headers, reply.trailers, bytes(reply.body))
            )
        else:
            self._decide(
                http_check.read_reply(self._authorizer, reply.status, reply.headers, bytes(reply.body))
            )

    def _decide(self, verdict: Verdict) -> None:
        match verdict:
            case Allowed():
                self._pass(verdict)
            case Denied():
                self._count("denied")
                self._examination.outcome.policy = f"{self._said} denied it"
                self._examination.go_on(answer_of(verdict))
            case Failed():
                self._fail(verdict)

    def _fail(self, failure: Failed) -> None:
        authorizer, outcome = self._authorizer, self._examination.outcome
        is_open = authorizer.fails_open and not failure.is_final
        outcome.policy = f"{self._said}: {failure.reason}" + ("; allowed as it fails open" if is_open else "")
        self._owner.log.limited(
            "warn", "authorizer_failed", provider=self._said, reason=failure.reason, allowed=is_open
        )
        if is_open:
            self._count("failed_open")
            self._pass(Allowed())
            return
        self._count("failed")
        self._examination.go_on(Answer(authorizer.error_status, "ext_authz_error", "UAEX", _BODY))

    def _pass(self, allowed: Allowed) -> None:
        examination, authorizer = self._examination, self._authorizer
        request = examination.request
        gone = {*allowed.removed, *http_check.unvouched(authorizer, request.headers)}
        if gone or allowed.changes:
            folded = {name.replace(b"_", b"-") for name in gone}
            kept = [field for field in request.headers if field[0].replace(b"_", b"-") not in folded]
            request.headers = apply_changes(kept, allowed.changes)
            examination.must_rematch = examination.must_rematch or authorizer.clears_route
        if allowed.response:

            def tell(status: int, headers: list[Header]) -> None:  # noqa: ARG001 - whatever it is
                headers[:] = apply_changes(headers, allowed.response)

            examination.add_response_hook(tell)
        examination.go_on(None)

    def _count(self, what: str) -> None:
        self._owner.counts.count(self._policy, what)
