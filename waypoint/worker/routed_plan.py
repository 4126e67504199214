"""The plan of a request that a rule matched: which host, again or not, and what changes on the way.

One object for each request, so it is lean: what can be known before is in `RuleWays`, and a request that a
plain rule forwards touches few of the branches here. Invariants: what a try takes from its circuit and host
(`_begin`) it gives back once (`on_try_over`); a granted retry is given back at the end of its try, or of the
exchange if that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from waypoint.state import cors
from waypoint.state.balance import Balancer
from waypoint.state.changes import change_headers
from waypoint.state.cluster import Cluster
from waypoint.state.flags import Details, Flag, http_status_of
from waypoint.state.hosts import Endpoint, Host
from waypoint.state.request import Header
from waypoint.state.retry import Attempt, Denial, backoff_s, judge
from waypoint.state.retry import Failure as TryFailure
from waypoint.state.retry import Outcome as TryOutcome
from waypoint.state.session import Session, session_header
from waypoint.state.timeouts import format_grpc_timeout
from waypoint.worker.answers import OVERFLOW, Answer, of_local
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.headers import Request, value_of
from waypoint.worker.plan import Outcome
from waypoint.worker.ways import RuleWays, ServedPort, Way

if TYPE_CHECKING:
    from waypoint.state.route_table import RouteEntry
    from waypoint.worker.decider import RoutingDecider

_TRY_FAILURES: Final = {
    Cause.CONNECT_FAILURE: TryFailure.CONNECT,
    Cause.CONNECT_TIMEOUT: TryFailure.CONNECT,
    Cause.NAME: TryFailure.CONNECT,
    Cause.REFUSED: TryFailure.REFUSED_STREAM,
    Cause.STALE: TryFailure.RESET,
    Cause.CLOSED: TryFailure.RESET,
    Cause.RESET: TryFailure.RESET,
    Cause.PROTOCOL: TryFailure.RESET,
    Cause.OVERFLOW: TryFailure.OVERFLOW,
    Cause.TRY_TIMEOUT: TryFailure.PER_TRY_TIMEOUT,
}
_EXPECTED_TIMEOUT: Final = b"x-envoy-expected-rq-timeout-ms"
_GRPC_TIMEOUT: Final = b"grpc-timeout"


class RoutedPlan:
    """Implements Plan. `answer`: the request goes nowhere and gets this."""

    __slots__ = (
        "_decider",
        "_denial",
        "_host",
        "_hosts",
        "_is_ipv6",
        "_is_retry",
        "_is_retry_due",
        "_latest",
        "_port",
        "_request",
        "_retries",
        "_started_at",
        "_ways",
        "answer",
        "delay_s",
        "entry",
        "idle_timeout_s",
        "key_hash",
        "origin",
        "replay_bytes",
        "session",
        "session_token",
        "set_cookie",
        "shadows",
        "target",
        "timeout_s",
        "try_timeout_s",
        "way",
    )

    def __init__(
        self, decider: RoutingDecider, request: Request, port: ServedPort, ways: RuleWays, way: Way | None
    ) -> None:
        self._decider = decider
        self._request = request
        self._port = port
        self._ways = ways
        self.way = way
        self.entry: RouteEntry | None = None  # the match that took it
        self.answer: Answer | None = None
        self.timeout_s = ways.rule.timeout_s
        self.try_timeout_s = ways.try_timeout_s
        self.idle_timeout_s: float | None = None
        self.delay_s = 0.0
        self.replay_bytes = ways.replay_bytes
        self.shadows: Sequence[Endpoint] = ()
        self.key_hash: int | None = None
        self.set_cookie: Header | None = None
        self.session: Session | None = None
        self.session_token = ""
        self.origin: bytes | None = None
        self.target: Endpoint | None = None  # passed through: the one address there is
        self._is_ipv6 = False
        self._host: Host | None = None
        self._hosts: list[Host] = []
        self._retries = 0
        self._is_retry_due = False  # granted, and its try has not begun
        self._is_retry = False  # the try under way is one
        self._latest: Host | None = None
        self._denial: Denial | None = None
        self._started_at = 0.0
        asked_s = request.grpc_timeout_s
        if asked_s is not None and (self.timeout_s is None or asked_s < self.timeout_s):
            self.timeout_s = asked_s

    def prefer_ipv6(self) -> None:
        """The client called an address of IPv6."""
        self._is_ipv6 = True

    # Tries

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:  # noqa: ARG002 - hosts are remembered
        if self.answer is not None:
            return self.answer
        way = self.way
        assert way is not None
        cluster = way.cluster
        if cluster is None:
            assert way.answer is not None
            return way.answer
        if not cluster.circuit.may_request():
            return OVERFLOW
        if self._is_retry_due:
            self._is_retry_due, self._is_retry = False, True
        now = self._decider.reactor.now
        if self.timeout_s is not None or self.try_timeout_s is not None:
            self._tell_timeout(now)
        if self.target is not None:
            return self.target
        host = self._pick_host(cluster, now)
        if host is None:
            cluster.circuit.end_request()
            return of_local(cluster.unavailable())
        host.active += 1
        self._host = self._latest = host
        if self._is_ipv6 and host.endpoint6 is not None:
            return host.endpoint6
        return host.endpoint

    def _pick_host(self, cluster: Cluster, now: float) -> Host | None:
        balancer: Balancer = cluster.balancer
        hosts = self._hosts
        if not hosts:
            host = None
            if self.session_token:
                host = balancer.by_token(self.session_token)
            if host is None:
                host = balancer.pick(now, self.key_hash)
        else:
            retries = self._ways.retries
            host = balancer.pick(
                now,
                self.key_hash,
                hosts,
                may_repeat=retries.may_repeat_hosts,
                may_go_remote=retries.may_use_remote_localities,
            )
        if host is not None and self._ways.replay_bytes:
            hosts.append(host)
        return host

    def _tell_timeout(self, now: float) -> None:
        """What is left of the time, for the application (waypoint-facts 3; gRPC's own header too)."""
        if not self._started_at:
            self._started_at = now
        left_s = None if self.timeout_s is None else max(self.timeout_s - (now - self._started_at), 0.001)
        if self.try_timeout_s is not None and (left_s is None or self.try_timeout_s < left_s):
            left_s = self.try_timeout_s
        assert left_s is not None
        request = self._request
        drops = (_EXPECTED_TIMEOUT, _GRPC_TIMEOUT) if request.is_grpc else (_EXPECTED_TIMEOUT,)
        headers = [field for field in request.headers if field[0] not in drops]
        headers.append((_EXPECTED_TIMEOUT, b"%d" % max(int(left_s * 1000), 1)))
        if request.is_grpc:
            headers.append((_GRPC_TIMEOUT, format_grpc_timeout(left_s)))
        request.headers = headers

    def on_try_over(
        self,
        endpoint: Endpoint,  # noqa: ARG002 - the host is remembered
        status: int,
        failure: Failure | None,
        grpc_status: bytes,
    ) -> None:
        way = self.way
        assert way is not None
        cluster = way.cluster
        assert cluster is not None
        cluster.circuit.end_request()
        if self._is_retry:
            self._is_retry = False
            cluster.circuit.end_retry()
        host, self._host = self._host, None
        if host is None:
            return
        host.active -= 1
        if cluster.detector is not None:
            self._report(cluster, host, status, failure, grpc_status)

    def _report(
        self, cluster: Cluster, host: Host, status: int, failure: Failure | None, grpc_status: bytes
    ) -> None:
        now = self._decider.reactor.now
        if failure is not None:
            if failure.cause is not Cause.OVERFLOW:
                cluster.on_local_failure(host, now, is_timeout=failure.cause is Cause.TRY_TIMEOUT)
        elif status:
            if grpc_status.isdigit():
                status = http_status_of(int(grpc_status[:3]))
            cluster.on_response(host, status, now)

    # Retries

    def retry_after_failure(
        self,
        failure: Failure,
        tried: Sequence[Endpoint],  # noqa: ARG002
        *,
        is_body_held: bool,
    ) -> float | None:
        return self._retry(TryOutcome(_TRY_FAILURES[failure.cause]), is_body_held=is_body_held)

    def retry_after_response(
        self,
        status: int,
        headers: Sequence[Header],
        tried: Sequence[Endpoint],  # noqa: ARG002
        *,
        is_body_held: bool,
    ) -> float | None:
        retries = self._ways.retries
        if status < 400 and not retries.statuses and not (self._request.is_grpc and retries.on):
            return None
        grpc_status = value_of(headers, b"grpc-status") if self._request.is_grpc else b""
        is_limited = bool(value_of(headers, b"x-envoy-ratelimited"))
        number = int(grpc_status[:3]) if grpc_status.isdigit() else None
        outcome = TryOutcome(TryFailure.RESPONSE, status, number, is_limited)
        return self._retry(outcome, is_body_held=is_body_held)

    def _retry(self, outcome: TryOutcome, *, is_body_held: bool) -> float | None:
        policy = self._ways.retries
        way = self.way
        if way is None or way.cluster is None:
            return None
        stands = Attempt(self._request.method, self._retries, is_body_held=is_body_held)
        denial = judge(policy, outcome, stands).denial
        if denial is None and not way.cluster.circuit.may_retry():
            denial = Denial.BUDGET
        if denial is not None:
            self._denial = denial
            return None
        self._is_retry_due = True
        self._retries += 1
        return backoff_s(policy, self._retries, self._decider.random())

    # The response

    def on_response(self, status: int, headers: list[Header]) -> None:  # noqa: ARG002 - the seam's
        ways, way = self._ways, self.way
        if ways.is_plain:
            if self.set_cookie is not None:
                headers.append(self.set_cookie)
            return
        for changes in ways.response_changes if way is None else way.response_changes:
            headers[:] = change_headers(headers, changes)
        rule = ways.rule
        if rule.cors is not None and self.origin is not None:
            granted = cors.response_headers(rule.cors, self.origin)
            names = {name for name, _ in granted}
            headers[:] = [field for field in headers if field[0] not in names]
            headers.extend(granted)
        if self.set_cookie is not None:
            headers.append(self.set_cookie)
        host = self._host
        if rule.session_persistence is not None and host is not None and way is not None:
            field = session_header(
                rule.session_persistence,
                way.backend,
                host.member.uid,
                int(self._decider.wall_clock()),
                self.session,
            )
            if field is not None:
                headers.append(field)

    def on_over(self, outcome: Outcome) -> None:
        way = self.way
        cluster = None if way is None else way.cluster
        if cluster is not None:
            if self._is_retry_due or self._is_retry:
                cluster.circuit.end_retry()
            outcome.cluster = cluster.text
        if self._latest is not None:
            outcome.workload = self._latest.workload
        outcome.route_name = self._ways.rule.name
        outcome.entry = self.entry
        outcome.service = self._port.service
        outcome.service_port = self._port.port
        if self._denial is not None:
            self._tell_denial(outcome)
        if self.delay_s:
            outcome.add_flag(Flag.DELAY_INJECTED)

    def _tell_denial(self, outcome: Outcome) -> None:
        if self._denial is Denial.EXHAUSTED and self._ways.retries.attempts:
            outcome.add_flag(Flag.RETRY_LIMIT)
        elif self._denial is Denial.BODY:
            outcome.details = Details.RETRY_BUFFER_EXCEEDED
