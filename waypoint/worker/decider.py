"""Routes, balances and protects as the control plane says: joins the state's decisions for each request.

Theory of operation. A byte stream's destination address leads to a `ServedPort`: one look-up, kept for one
generation of the state. Its table finds the rule; what the rule needs (clusters, header changes, answers) was
prepared at the rule's first use. Then the request's own share: faults, CORS, the backend by weight or by
session, the key of a consistent hash, copies. The rest happens in the plan (routed_plan.py).

Invariants: an exchange keeps the plan that it got, whatever changes after; a waypoint sends to endpoints
only, never to another waypoint. Bounds: `_MAX_PORTS` addresses are remembered, then they are looked up anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dataplane.state.model import Workload
from proto.mycelia import waypoint_pb2 as pb
from transport.reactor import Reactor, Timer
from waypoint.state import cors
from waypoint.state.changes import answer_of
from waypoint.state.cluster import Cluster
from waypoint.state.fault import inject
from waypoint.state.hosts import Endpoint
from waypoint.state.mirror import mirrored
from waypoint.state.request import RequestFacts
from waypoint.state.route_table import HttpTable, RouteEntry
from waypoint.state.routes import PortTable, TcpRule, default_rule
from waypoint.state.rules import Backend, Forward, HttpRule, forward
from waypoint.state.session import Session, read_session, session_backend
from waypoint.state.stickiness import stickiness
from waypoint.state.store import WaypointState
from waypoint.worker.answers import NO_ROUTE, Answer, of_local
from waypoint.worker.checks import Check, CheckSource, StreamCheck, checks_of
from waypoint.worker.headers import Request
from waypoint.worker.plan import Declared, Matched, Plan, Source, TcpPlan
from waypoint.worker.request_changes import change_request
from waypoint.worker.routed_plan import RoutedPlan
from waypoint.worker.routed_tcp_plan import RoutedTcpPlan
from waypoint.worker.unrouted_plan import UnroutedPlan
from waypoint.worker.upstreams import Upstreams
from waypoint.worker.ways import NO_BACKENDS, RuleWays, ServedPort, Way

_MAX_PORTS: Final = 16_384
_SWEEP_S: Final = 1.0


class RoutingDecider:
    """Implements Decider. Runs on the reactor's thread; `close` ends its timer.

    `random` gives numbers in [0, 1), `wall_clock` seconds since the epoch (sessions).
    """

    def __init__(
        self,
        state: WaypointState,
        reactor: Reactor,
        upstreams: Upstreams,
        *,
        random: Callable[[], float],
        wall_clock: Callable[[], float],
        check_sources: Sequence[CheckSource] = (),
    ) -> None:
        self.state = state
        self.reactor = reactor
        self.random = random
        self.wall_clock = wall_clock
        self._check_sources = check_sources
        self._ports: dict[tuple[str, int], ServedPort | None] = {}
        self._generation = state.generation
        self._sweep_timer: Timer = reactor.call_later(_SWEEP_S, self._sweep)
        state.on_gone = upstreams.drain

    def close(self) -> None:
        self._sweep_timer.cancel()

    def _sweep(self) -> None:
        self.state.sweep()
        self._sweep_timer = self.reactor.call_later(_SWEEP_S, self._sweep)

    # Addresses

    def resolve(self, destination: tuple[str, int]) -> Declared | None:
        """What an address is declared to speak; None: it is not served here, and its tunnel is refused."""
        port = self._port(destination)
        return None if port is None else port.declared

    def _port(self, destination: tuple[str, int]) -> ServedPort | None:
        if self._generation != self.state.generation or len(self._ports) > _MAX_PORTS:
            self._generation = self.state.generation
            self._ports.clear()
        try:
            return self._ports[destination]
        except KeyError:
            found = self._ports[destination] = self._find_port(destination)
            if found is not None:
                sources = self._check_sources
                found.default_retries = self.state.mesh_settings.retries
                found.checks = checks_of(sources, found)
                streams = [each for source in sources for each in source.stream_checks(found)]
                found.stream_checks = streams
                found.needs_server_name |= any(check.needs_server_name for check in streams)
            return found

    def _find_port(self, destination: tuple[str, int]) -> ServedPort | None:
        """A workload's own address comes before a service's, as at the ztunnel."""
        state = self.state
        ip, port = destination
        if state.mesh.workload_by_ip(state.place.network, ip) is not None:
            workload = state.served_workload(ip)
            return None if workload is None else _workload_port(workload, destination, state)
        service = state.served_service(ip)
        table = None if service is None else state.table(service.key, port)
        if service is None or table is None:
            return None

        def find(backend: Backend) -> Cluster | None:
            return state.cluster(backend.service, backend.port, backend.subset)

        return ServedPort(table, _declared(table.protocol), service, port, find)

    # Requests

    def checks(self, request: Request, source: Source) -> Sequence[Check]:
        port = self._port(source.destination)
        if port is None:
            return ()
        knowing = port.knowing_check
        if knowing is not None and knowing.lets_pass(request, source):
            return ()
        return port.checks

    def match(self, request: Request, source: Source) -> Matched:
        port = self._port(source.destination)
        assert port is not None, "where there are checks there is a port"
        return Matched(port, port.table.http.match(facts_of(request, source)))

    def choose(self, request: Request, source: Source, matched: Matched | None = None) -> Plan | Answer:
        facts = facts_of(request, source)
        if matched is not None:
            port, entry = matched.port, matched.entry
        else:
            found = self._port(source.destination)
            if found is None:
                return NO_ROUTE
            port = found
            entry = port.table.http.match(facts)
        if entry is None:
            return UnroutedPlan(port)
        ways = port.ways(entry)
        if ways.is_plain:
            way = ways.choose(self.random)
            plan = RoutedPlan(self, request, port, ways, way)
            if way is None:
                plan.answer = NO_BACKENDS
        else:
            plan = self._special(request, facts, port, entry, ways)
            way = plan.way
        plan.entry = entry
        if ":" in source.destination[0]:
            plan.prefer_ipv6()
        cluster = None if way is None else way.cluster
        if cluster is not None and plan.answer is None:
            self._direct(plan, cluster, facts, source)
        return plan

    def _direct(self, plan: RoutedPlan, cluster: Cluster, facts: RequestFacts, source: Source) -> None:
        """What the cluster's policy takes from the request: the key, or the very address."""
        if cluster.hash_key is not None:
            sticky = stickiness(cluster.hash_key, facts, source.address[0], self.random)
            plan.key_hash, plan.set_cookie = sticky.key_hash, sticky.set_cookie
        if cluster.passes_through:
            plan.target = self.state.endpoint_at(cluster, source.destination)

    def _special(
        self, request: Request, facts: RequestFacts, port: ServedPort, entry: RouteEntry, ways: RuleWays
    ) -> RoutedPlan:
        """A rule that does more than to forward."""
        rule = entry.rule
        way, session = self._choose_way(facts, ways)
        plan = RoutedPlan(self, request, port, ways, way)
        plan.session = session
        if session is not None and way is not None:
            plan.session_token = session.endpoint
        if rule.fault is not None:
            fault = inject(rule.fault, self.random(), self.random(), is_grpc=request.is_grpc)
            plan.delay_s = fault.delay_s
            if fault.abort is not None:
                plan.answer = of_local(fault.abort)
        if rule.cors is not None:
            plan.origin = facts.header(b"origin")
            preflight = cors.answer_preflight(rule.cors, facts)
            if preflight is not None:
                plan.origin = None  # the answer has its grants already
                plan.answer = plan.answer or of_local(preflight)
        if plan.answer is None:
            plan.answer = self._own_answer(facts, entry, port, way)
        if plan.answer is None:
            change_request(request, facts, entry, way)
            if rule.mirrors:
                plan.shadows = self._shadows(rule, ways)
        return plan

    def _choose_way(self, facts: RequestFacts, ways: RuleWays) -> tuple[Way | None, Session | None]:
        rule = ways.rule
        if rule.session_persistence is None or not isinstance(rule.action, Forward):
            return ways.choose(self.random), None
        session = read_session(rule.session_persistence, facts, int(self.wall_clock()))
        backend = session_backend(rule.action, session)
        if backend is None:
            return ways.choose(self.random), None
        return ways.way_of(backend), session

    @staticmethod
    def _own_answer(
        facts: RequestFacts, entry: RouteEntry, port: ServedPort, way: Way | None
    ) -> Answer | None:
        own = answer_of(facts, entry, port.port)
        if own is not None:
            return of_local(own)
        return NO_BACKENDS if way is None else None

    def _shadows(self, rule: HttpRule, ways: RuleWays) -> list[Endpoint]:
        found: list[Endpoint] = []
        for backend in mirrored(rule.mirrors, self.random):
            cluster = ways.mirrors[id(backend)]
            host = None if cluster is None else cluster.balancer.pick(self.reactor.now)
            if host is not None:
                found.append(host.endpoint)
        return found

    # Plain connections

    def wants_server_name(self, source: Source) -> bool:
        port = self._port(source.destination)
        return port is not None and port.needs_server_name

    def refuse_tcp(self, source: Source, server_name: str | None) -> str:
        port = self._port(source.destination)
        checks: Sequence[StreamCheck] = () if port is None else port.stream_checks
        return next((why for check in checks if (why := check.refuse(source, server_name))), "")

    def choose_tcp(self, source: Source, server_name: str | None) -> TcpPlan | None:
        port = self._port(source.destination)
        rule = None if port is None else port.table.match_tcp(server_name)
        if port is None or rule is None:
            return None
        cluster = port.tcp_cluster(rule, self.random())
        return None if cluster is None else RoutedTcpPlan(self, source, port, rule, cluster)

    # For a person

    def explain(self, request: Request, source: Source) -> tuple[str, ...]:
        """Why a request would go where it goes: a line for each step that was looked at."""
        ip, port_number = source.destination
        port = self._port(source.destination)
        if port is None:
            return (f"{ip} port {port_number} is no address that this waypoint serves",)
        entry, lines = port.table.http.explain(facts_of(request, source))
        whose = "a workload" if port.service is None else f"service {port.service.key}"
        first = f"{ip} port {port_number} is {whose}"
        if entry is None:
            return (first, *lines)
        return (first, *lines, *_explain_action(port.ways(entry)))


def facts_of(request: Request, source: Source) -> RequestFacts:
    """What routing may know of a request."""
    identity = source.identity
    facts = RequestFacts(
        request.method,
        request.path,
        request.headers,
        authority=request.authority,
        scheme=request.scheme,
        source_namespace="" if identity is None else identity.namespace,
    )
    if request.query is not None:
        facts.query = request.query
    return facts


def _explain_action(ways: RuleWays) -> list[str]:
    if not isinstance(ways.rule.action, Forward):
        return [f"answered by the rule: {type(ways.rule.action).__name__}"]
    lines = []
    for backend in ways.rule.action.backends:
        way = ways.way_of(backend)
        if way.cluster is None:
            assert way.answer is not None
            lines.append(f"weight {backend.weight}: {way.answer.status}, {way.answer.details}")
            continue
        hosts = way.cluster.hosts
        available = sum(host.is_available for host in hosts)
        lines.append(f"weight {backend.weight}: {way.cluster.text}, {available} of {len(hosts)} hosts usable")
        lines.extend(way.cluster.problems)
    return lines


def _declared(protocol: int) -> Declared:
    match protocol:
        case pb.TCP:
            return Declared.TCP
        case pb.DETECT:
            return Declared.DETECT
        case _:
            return Declared.HTTP


def _workload_port(workload: Workload, destination: tuple[str, int], state: WaypointState) -> ServedPort:
    """A workload's own address: any port, no routes, the workload itself (waypoint-facts 1.2)."""
    rule = default_rule(workload.uid, destination[1])
    table = HttpTable([RouteEntry(0, rule, is_path_alone=True)])
    tcp = TcpRule("default", (), forward([Backend(workload.uid, destination[1])]))

    def find(backend: Backend) -> Cluster | None:  # noqa: ARG001 - there is one
        return state.workload_cluster(workload, destination)

    ports = PortTable(pb.DETECT, table, (tcp,))
    return ServedPort(ports, Declared.DETECT, workload, destination[1], find)
