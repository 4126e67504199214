"""FilterPolicy in the worker: one host for each policy, checks for its requests, counts and faults.

A new version of a filter takes over when it is loaded; until then, and if it cannot be loaded, the last good
one goes on. A version that was replaced ends when the last exchange that began with it is over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dataplane.worker.base import named
from dataplane.worker.log import WorkerLog
from proto.mycelia import worker_pb2 as pb
from transport.http_path import Refusal, normalise
from transport.reactor import Reactor
from waypoint.filters.api import Answer as FilterAnswer
from waypoint.filters.api import Headers, Request, Response
from waypoint.filters.wire import RequestOutcome
from waypoint.state.filters import FILTER_TYPE, FilterPolicy
from waypoint.state.policies import Policy, Unreadable
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.checks import Check, Pending, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.filters.host import Fault, FilterHost, Subject, Trouble
from waypoint.worker.filters.process_host import ProcessHost
from waypoint.worker.filters.stage import KEPT, Stage, headers_of, merged
from waypoint.worker.filters.worker_host import WorkerHost
from waypoint.worker.ways import ServedPort

_MAX_SUBJECT: Final = 1 << 53


class Running:
    """A host with its users: closed when it was replaced and nobody uses it."""

    __slots__ = ("host", "is_retired", "users")

    def __init__(self, host: FilterHost) -> None:
        self.host = host
        self.users = 0
        self.is_retired = False

    def release(self) -> None:
        self.users -= 1
        self._look()

    def retire(self) -> None:
        self.is_retired = True
        self._look()

    def _look(self) -> None:
        if self.is_retired and not self.users:
            self.host.close()


class Slot:
    """One policy: the version that runs, and perhaps a newer one that is being loaded."""

    __slots__ = ("current", "next", "policy", "problem", "running_policy")

    def __init__(self) -> None:
        self.policy: FilterPolicy | None = None  # as it is told
        self.current: Running | None = None
        self.next: Running | None = None
        self.running_policy: FilterPolicy | None = None  # that `current` is of
        self.problem = ""


class Filters:
    """Implements CheckSource."""

    def __init__(self, state: WaypointState, reactor: Reactor, log: WorkerLog) -> None:
        self._state = state
        self._reactor = reactor
        self._log = log
        self._slots: dict[str, Slot] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}
        self._next_subject = 1

    # Policies

    def checks(self, port: ServedPort) -> Sequence[Check]:
        self._forget()
        book = self._state.policies
        found = book.of(FILTER_TYPE, "" if port.service is None else port.service.key)
        by_route = book.by_route(FILTER_TYPE)
        if any(isinstance(each, Unreadable) for each in found):
            return (_Nothing(),)
        routes: dict[str, frozenset[str]] = {}
        policies: dict[str, FilterPolicy] = {}
        for policy in _filters(found):
            policies[policy.key] = policy
        for route, attached in by_route.items():
            for policy in _filters(attached):
                if policy.key not in policies or policy.key in routes:
                    policies[policy.key] = policy
                    routes[policy.key] = routes.get(policy.key, frozenset()) | {route}
        ordered = sorted(policies.values(), key=lambda policy: (policy.order, policy.key))
        return [_FilterCheck(self, self._slot(each), routes.get(each.key)) for each in ordered]

    def _slot(self, policy: FilterPolicy) -> Slot:
        slot = self._slots.setdefault(policy.key, Slot())
        if slot.policy is not policy:
            slot.policy = policy
            if slot.next is not None:
                slot.next.retire()
                slot.next = None
            if policy.in_worker:
                self._loaded(slot, Running(WorkerHost(policy)), policy)
            else:
                self._load_process(slot, policy)
        return slot

    def _load_process(self, slot: Slot, policy: FilterPolicy) -> None:
        made: list[Running] = []

        def on_loaded() -> None:
            if made:
                self._loaded(slot, made[0], policy)

        host = ProcessHost(policy, self._reactor, on_loaded)
        made.append(Running(host))
        slot.next = made[0]
        if slot.current is None:
            slot.current, slot.running_policy = made[0], policy

    def _loaded(self, slot: Slot, running: Running, policy: FilterPolicy) -> None:
        """A version is ready, or cannot be, or (a process) is to be started again."""
        if slot.policy is not policy and slot.current is not running:
            return
        host = running.host
        slot.problem = host.problem
        if not host.is_ready:
            self._log.limited("error", "filter_not_running", filter=str(policy), problem=host.problem)
            if slot.current is None:
                slot.current, slot.running_policy = running, policy
            return
        if slot.current is not running:
            before, slot.current, slot.running_policy = slot.current, running, policy
            if before is not None:
                before.retire()
        slot.next = None
        self._log.write("info", "filter_loaded", filter=str(policy), hooks=sorted(host.hooks))

    def _forget(self) -> None:
        live = self._state.policies.all(FILTER_TYPE)
        for gone in self._slots.keys() - live.keys():
            slot = self._slots.pop(gone)
            for running in (slot.current, slot.next):
                if running is not None:
                    running.retire()

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:  # noqa: ARG002 - requests only
        return ()

    def close(self) -> None:
        for slot in self._slots.values():
            for running in (slot.current, slot.next):
                if running is not None:
                    running.host.close()

    # Counts

    def note(self, policy: FilterPolicy, what: str) -> None:
        self._calls[(str(policy), what)] += 1

    def took(self, policy: FilterPolicy, seconds: float) -> None:
        self._seconds[str(policy)] = self._seconds.get(str(policy), 0.0) + seconds

    def failed(self, policy: FilterPolicy, fault: Fault) -> None:
        self.note(policy, fault.trouble.value)
        self._log.limited("warn", "filter_failed", filter=str(policy), problem=fault.text)

    def stats(self) -> Iterator[pb.Stats.Named]:
        for (policy, what), count in self._calls.items():
            yield named("mycelia_waypoint_filter_requests_total", count, policy, what)
        for policy, seconds in self._seconds.items():
            yield named("mycelia_waypoint_filter_seconds_total", seconds, policy)

    def describe(self) -> list[dict[str, object]]:
        """For the config dump."""
        return [
            {
                "filter": key,
                "isReady": slot.current is not None and slot.current.host.is_ready,
                "isLatest": slot.running_policy is slot.policy,
                "hooks": sorted(slot.current.host.hooks) if slot.current is not None else [],
                "problem": slot.problem,
            }
            for key, slot in sorted(self._slots.items())
        ]

    def subject_number(self) -> int:
        self._next_subject = (self._next_subject + 1) % _MAX_SUBJECT
        return self._next_subject


def _filters(policies: Sequence[Policy]) -> list[FilterPolicy]:
    return [each for each in policies if isinstance(each, FilterPolicy)]


class _Nothing:
    """A policy is there that cannot be read."""

    phase = Phase.FILTER

    def examine(self, examination: Examination) -> Answer:
        examination.outcome.policy = "unreadable"
        return Answer(503, "policy_unreadable", body=b"the policy of this service cannot be read")


class _FilterCheck:
    """Implements Check. `routes` None: for every request of the port."""

    phase = Phase.FILTER

    def __init__(self, owner: Filters, slot: Slot, routes: frozenset[str] | None) -> None:
        self._owner = owner
        self._slot = slot
        self._routes = routes

    def examine(self, examination: Examination) -> Answer | Pending | None:
        if self._routes is not None and examination.route_name.rpartition("/")[0] not in self._routes:
            return None
        owner, slot = self._owner, self._slot
        running, policy = slot.current, slot.running_policy
        assert running is not None
        assert policy is not None
        subject = Subject(owner.subject_number(), _request_of(examination), Response())
        call = _RequestCall(owner, running, policy, examination, subject)
        running.users += 1
        examination.add_end_hook(call.end)
        call.begin()
        return call


class _RequestCall:
    """`on_request` under way. Implements Pending."""

    def __init__(
        self,
        owner: Filters,
        running: Running,
        policy: FilterPolicy,
        examination: Examination,
        subject: Subject,
    ) -> None:
        self._owner = owner
        self._running = running
        self._policy = policy
        self._examination = examination
        self._subject = subject
        self._began = time.perf_counter()
        self._lines = list(subject.request.headers)
        self._is_cancelled = False

    def begin(self) -> None:
        self._running.host.on_request(self._subject, self._take)

    def cancel(self) -> None:
        self._is_cancelled = True

    def end(self) -> None:
        """The exchange is over."""
        self._running.host.over(self._subject)
        self._running.release()

    def _take(self, result: RequestOutcome | Fault) -> None:
        if self._is_cancelled:
            return
        owner, policy = self._owner, self._policy
        owner.took(policy, time.perf_counter() - self._began)
        outcome = result if isinstance(result, Fault) else self._apply(result)
        if isinstance(outcome, Fault):
            owner.failed(policy, outcome)
            self._examination.go_on(None if policy.fails_open else self._refusal(outcome))
            return
        if outcome is not None:
            owner.note(policy, "answered")
            self._examination.go_on(outcome)
            return
        owner.note(policy, "passed")
        stage = Stage(self._running, self._subject, policy, lambda fault: owner.failed(policy, fault))
        self._examination.add_stage(stage)
        self._examination.go_on(None)

    def _apply(self, result: RequestOutcome) -> Answer | Fault | None:
        """What the filter did to the request; an answer if it answers."""
        request = self._examination.request
        if result.answer is not None:
            return _answer_of(result.answer, self._policy)
        if list(result.headers) != self._lines:
            try:
                request.headers = merged(request.headers, result.headers)
            except ValueError as error:
                return Fault(Trouble.FAILED, f"its headers cannot be sent: {error}")
        target = result.path.encode("latin-1", "replace")
        if target != request.target:
            normal = normalise(target, self._examination.exchange.proxy.normalization)
            if isinstance(normal, Refusal):
                return Fault(Trouble.FAILED, f"its path {result.path[:100]!r} is none: {normal.reason}")
            request.path, request.query = normal.path, normal.query
            self._examination.must_rematch = True
        if result.reroute:
            self._examination.must_rematch = True
        return None

    def _refusal(self, fault: Fault) -> Answer:
        self._examination.outcome.policy = f"{self._policy} {fault.trouble.value}: {fault.text}"
        return Answer(503, f"filter_failed{{{fault.trouble.value}}}", body=b"the request cannot be examined")


def _request_of(examination: Examination) -> Request:
    request, source = examination.request, examination.source
    service = examination.port.service
    return Request(
        method=request.method.decode("latin-1"),
        path=request.target.decode("latin-1"),
        host=request.authority.decode("latin-1"),
        headers=headers_of(request.headers),
        caller="" if source.identity is None else str(source.identity),
        source_address=source.address[0],
        claims=examination.credentials,
        route=examination.route_name,
        service="" if service is None else service.key,
    )


def _answer_of(answer: FilterAnswer, policy: FilterPolicy) -> Answer | Fault:
    body = answer.body.encode() if isinstance(answer.body, str) else bytes(answer.body)
    given: Headers | Mapping[str, str] = answer.headers
    made = Headers()
    try:
        for name, value in given if isinstance(given, Headers) else given.items():
            made.add(name, value)
    except (ValueError, TypeError) as error:
        return Fault(Trouble.FAILED, f"its answer cannot be sent: {error}")
    if not 200 <= answer.status <= 599:
        return Fault(Trouble.FAILED, f"its answer's status {answer.status!r} is none")
    lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in made]
    headers = tuple(line for line in lines if line[0] not in KEPT)
    return Answer(answer.status, f"filter_response{{{policy.key}}}", body=body, headers=headers)
