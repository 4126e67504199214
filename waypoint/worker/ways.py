"""What a rule's decision needs, worked out once for each rule instead of for each request.

A `Way` is a backend with its cluster and the header changes on the road to it; a `RuleWays` is a rule with
all of its ways. A `ServedPort` is an address that is served, with the ways of the rules that were used. All
are valid for one generation of the state (decider.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from dataplane.state.model import Service, Workload
from waypoint.state.cluster import Cluster
from waypoint.state.flags import NO_BACKEND, Details, Flag, LocalAnswer, invalid_backend
from waypoint.state.retry import DEFAULT_POLICY
from waypoint.state.route_table import RouteEntry
from waypoint.state.routes import PortTable, TcpRule
from waypoint.state.rules import Backend, Forward, HeaderChanges, HttpRule, RetryPolicy
from waypoint.worker.answers import Answer, of_local
from waypoint.worker.checks import Check, KnowingCheck, StreamCheck
from waypoint.worker.plan import MAX_REPLAY_BYTES, Declared

Changes: TypeAlias = tuple[HeaderChanges, ...]
FindCluster: TypeAlias = Callable[[Backend], Cluster | None]

NO_BACKENDS = of_local(NO_BACKEND)


class Way:
    """To one backend: its cluster, or the answer that stands for it."""

    __slots__ = ("answer", "backend", "cluster", "request_changes", "response_changes")

    def __init__(self, backend: Backend, rule: HttpRule, find: FindCluster) -> None:
        self.backend = backend
        self.cluster: Cluster | None = None
        self.answer: Answer | None = None
        self.request_changes = _present(backend.request_headers, rule.request_headers)
        self.response_changes = _present(backend.response_headers, rule.response_headers)
        if backend.failure_status:
            local = invalid_backend(backend.failure_status, backend.problem, is_grpc=rule.is_grpc)
            self.answer = of_local(local)
            return
        self.cluster = find(backend)
        if self.cluster is None:
            self.answer = of_local(_unknown(backend))


class RuleWays:
    """A rule. `is_plain`: nothing but the choice of a cluster and a host is to be done for its requests."""

    __slots__ = (
        "_by_backend",
        "_forward",
        "_single",
        "is_plain",
        "mirrors",
        "replay_bytes",
        "response_changes",
        "retries",
        "rule",
        "try_timeout_s",
    )

    def __init__(
        self, rule: HttpRule, find: FindCluster, default_retries: RetryPolicy = DEFAULT_POLICY
    ) -> None:
        self.rule = rule
        self.retries = rule.retries or default_retries
        self.try_timeout_s = self.retries.per_try_timeout_s
        self.replay_bytes = MAX_REPLAY_BYTES if self.retries.attempts else 0
        self.response_changes = _present(rule.response_headers)
        self._forward = rule.action if isinstance(rule.action, Forward) else None
        backends = () if self._forward is None else self._forward.backends
        self._by_backend = {id(backend): Way(backend, rule, find) for backend in backends}
        ways = tuple(self._by_backend.values())
        self._single = ways[0] if len(ways) == 1 else None
        self.mirrors = {id(each.backend): find(each.backend) for each in rule.mirrors}
        specials = (rule.cors, rule.fault, rule.session_persistence, rule.rewrite, rule.mirrors)
        changes = [change for way in ways for change in (*way.request_changes, *way.response_changes)]
        self.is_plain = bool(ways) and not any(specials) and not changes

    def choose(self, random: Callable[[], float]) -> Way | None:
        """A way by weight; None: there is none."""
        if self._single is not None:
            return self._single
        backend = None if self._forward is None else self._forward.choose(random())
        return None if backend is None else self._by_backend[id(backend)]

    def way_of(self, backend: Backend) -> Way:
        return self._by_backend[id(backend)]


class ServedPort:
    """A destination address that is served: whose it is, a service's or else a workload's own.

    `checks` and `stream_checks` are what protects it.
    """

    __slots__ = (
        "_checks",
        "_find",
        "_ways",
        "declared",
        "default_retries",
        "knowing_check",
        "needs_server_name",
        "port",
        "service",
        "stream_checks",
        "table",
        "workload",
    )

    def __init__(
        self,
        table: PortTable,
        declared: Declared,
        owner: Service | Workload,
        port: int,
        find: FindCluster,
    ) -> None:
        self.table = table
        self.declared = declared
        self.service = owner if isinstance(owner, Service) else None
        self.workload = owner if isinstance(owner, Workload) else None
        self.port = port
        self._checks: Sequence[Check] = ()
        self.knowing_check: KnowingCheck | None = None  # the port's only check
        self.stream_checks: Sequence[StreamCheck] = ()
        self.needs_server_name = any(rule.sni_hosts for rule in table.tcp_rules)
        self.default_retries = DEFAULT_POLICY  # of rules that say nothing
        self._find = find
        self._ways: dict[int, RuleWays] = {}

    @property
    def checks(self) -> Sequence[Check]:
        return self._checks

    @checks.setter
    def checks(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        only: object = checks[0] if len(checks) == 1 else None
        self.knowing_check = only if isinstance(only, KnowingCheck) else None

    def ways(self, entry: RouteEntry) -> RuleWays:
        """The rule of an entry, prepared at its first use."""
        found = self._ways.get(id(entry.rule))
        if found is None:
            found = self._ways[id(entry.rule)] = RuleWays(entry.rule, self._find, self.default_retries)
        return found

    def tcp_cluster(self, rule: TcpRule, random: float) -> Cluster | None:
        """A backend by weight; None: it leads nowhere."""
        backend = rule.destinations.choose(random)
        return None if backend is None or backend.failure_status else self._find(backend)


def _present(*changes: HeaderChanges | None) -> Changes:
    return tuple(each for each in changes if each is not None)


def _unknown(backend: Backend) -> LocalAnswer:
    what = f"{backend.service} has no subset {backend.subset}" if backend.subset else backend.service
    return LocalAnswer(503, b"", Flag.NO_CLUSTER, f"{Details.CLUSTER_NOT_FOUND}{{{what}}}")
