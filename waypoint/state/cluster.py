"""A destination as a worker has it: the hosts of one (service, port, subset), their balancer, limits and
detection.

Invariants: the hosts are a function of the address book, the destination's policy and the waypoint's place
(`update`), however often these changed before; what a `Host` has lived through stays with its workload, and
for a while when the workload has gone, so that one that comes back is known again. Bounds: `_MAX_DEPARTED`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from dataplane.state.model import BalancingMode, Service, Workload
from waypoint.state.balance import Balancer
from waypoint.state.circuit import Circuit
from waypoint.state.destinations import Algorithm, HashKey, OutlierSettings, TrafficPolicy
from waypoint.state.flags import NO_HEALTHY_UPSTREAM, LocalAnswer
from waypoint.state.hosts import Application, Endpoint, Host
from waypoint.state.members import Found, Wanted, find_members
from waypoint.state.outlier import OutlierDetector
from waypoint.state.place import Place

_MAX_DEPARTED = 1024
_MAX_PROBLEMS = 3  # named in an answer's details
_ALWAYS = float("-inf")
_HASHING = (Algorithm.RING_HASH, Algorithm.MAGLEV)


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """`service` is `namespace/hostname`; an empty subset is all endpoints.

    With an `address`, `service` is the uid of the one workload that is called by that address of its own.
    """

    service: str
    port: int
    subset: str = ""
    address: str = ""

    def __str__(self) -> str:
        subset = f"/{self.subset}" if self.subset else ""
        return f"{self.service}:{self.port}{subset}"


class Cluster:
    """One worker's; `on_gone` hears of endpoints to which nothing goes any more."""

    __slots__ = (
        "_departed",
        "_found",
        "_known",
        "_next_sweep",
        "_on_gone",
        "_random",
        "_wanted",
        "application",
        "balancer",
        "circuit",
        "detector",
        "hash_key",
        "hosts",
        "key",
        "passes_through",
        "policy",
        "problems",
        "service",
        "text",
    )

    def __init__(
        self,
        key: ClusterKey,
        policy: TrafficPolicy,
        *,
        random: Callable[[], float],
        on_gone: Callable[[Endpoint], None],
    ) -> None:
        self.key = key
        self.text = str(key)
        self.policy = policy
        self.circuit = Circuit(policy.pool, policy.retry_budget)
        self.hosts: list[Host] = []
        self.balancer = Balancer(policy, [], random)
        self.detector: OutlierDetector | None = None
        self.hash_key: HashKey | None = None
        self.application: Application | None = None
        self.service: Service | None = None
        self.problems: list[str] = []
        self.passes_through = False  # to the address that was called, not to a host of our choice
        self._known: dict[str, Host] = {}
        self._departed: dict[str, Host] = {}
        self._found: dict[str, Found] = {}
        self._wanted: Wanted | None = None
        self._next_sweep = 0.0
        self._random = random
        self._on_gone = on_gone
        self._set_policy(policy)

    def update(
        self,
        service: Service,
        workloads: Iterable[Workload],
        policy: TrafficPolicy,
        application: Application | None,
        place: Place,
        *,
        now: float,
        subset: Collection[str] | None = None,
    ) -> None:
        """Take over what is so now."""
        self.service = service
        self.application = application
        self.passes_through = not policy.refusal and (
            policy.algorithm is Algorithm.PASSTHROUGH or service.balancing.mode is BalancingMode.PASSTHROUGH
        )
        if policy is not self.policy:
            self._set_policy(policy)
        problems: list[str] = []
        wanted = Wanted(service, self.key.port, policy, application, self.circuit, place, subset)
        if not wanted.is_same(self._wanted) or len(self._found) > 2 * len(self._known) + _MAX_DEPARTED:
            self._found.clear()
        self._wanted = wanted
        known: dict[str, Host] = {}
        is_first = not self._known and not self._departed
        for found in find_members(workloads, wanted, problems, self._found):
            known[found.member.uid] = self._host(found, _ALWAYS if is_first else now)
        for uid, host in self._known.items():
            if uid not in known:
                self._found.pop(uid, None)
                self._depart(uid, host)
        self.problems = problems[:_MAX_PROBLEMS]
        self._known = known
        self.hosts = list(known.values())
        self.balancer = Balancer(policy, self.hosts, self._random)

    def _set_policy(self, policy: TrafficPolicy) -> None:
        old, self.policy = self.policy, policy
        self.circuit.change(policy.pool, policy.retry_budget)
        self.hash_key = policy.hash_key if policy.algorithm in _HASHING else None
        settings = policy.outlier_detection
        if settings is None:
            self._stop_detecting()
        elif self.detector is None or old.outlier_detection != settings:
            self._stop_detecting()
            self.detector = OutlierDetector(settings)

    def _stop_detecting(self) -> None:
        if self.detector is not None:
            for host in self.hosts:
                self.detector.forget(host)
            self.detector = None

    def _host(self, found: Found, now: float) -> Host:
        """The host of a member: the one that there is, or was, or a new one."""
        uid = found.member.uid
        host = self._known.get(uid)
        if host is None:
            host = self._departed.pop(uid, None)
            if host is not None:
                host.joined_at = now
        if host is None:
            return Host(
                found.member,
                found.endpoint,
                endpoint6=found.endpoint6,
                workload=found.workload,
                joined_at=now,
            )
        before = (host.endpoint, host.endpoint6)
        host.member, host.workload = found.member, found.workload
        if host.endpoint != found.endpoint:
            host.endpoint = found.endpoint
        if host.endpoint6 != found.endpoint6:
            host.endpoint6 = found.endpoint6
        for endpoint in before:
            if endpoint is not None and endpoint not in (host.endpoint, host.endpoint6):
                self._on_gone(endpoint)
        return host

    def _depart(self, uid: str, host: Host) -> None:
        if self.detector is not None:
            self.detector.forget(host)
        self._departed[uid] = host
        if len(self._departed) > _MAX_DEPARTED:
            del self._departed[next(iter(self._departed))]
        self._on_gone(host.endpoint)
        if host.endpoint6 is not None:
            self._on_gone(host.endpoint6)

    def retire(self) -> None:
        """The cluster has left the state."""
        for uid, host in self._known.items():
            self._depart(uid, host)
        self._known = {}
        self._found = {}
        self._wanted = None
        self.hosts = []
        self.balancer = Balancer(self.policy, [], self._random)

    # What happens

    def sweep(self, now: float) -> None:
        """Let hosts come back whose time is over; to be called often, works once in the policy's interval."""
        detector = self.detector
        settings: OutlierSettings | None = self.policy.outlier_detection
        if detector is None or settings is None or now < self._next_sweep:
            return
        self._next_sweep = now + settings.interval_s
        if detector.sweep(self.hosts, now):
            self.balancer.refresh()

    def on_response(self, host: Host, status: int, now: float) -> None:
        """A host answered; for gRPC with the status that its own counts as."""
        detector = self.detector
        if detector is not None and detector.on_response(host, status, len(self.hosts), now):
            self.balancer.refresh()

    def on_local_failure(self, host: Host, now: float, *, is_timeout: bool = False) -> None:
        """A host did not answer."""
        detector = self.detector
        if detector is not None and detector.on_local_failure(
            host, len(self.hosts), now, is_timeout=is_timeout
        ):
            self.balancer.refresh()

    def unavailable(self) -> LocalAnswer:
        """The answer where there is no host to choose; the details name what keeps endpoints out."""
        if not self.problems:
            return NO_HEALTHY_UPSTREAM
        details = f"{NO_HEALTHY_UPSTREAM.details}{{{'; '.join(self.problems)}}}"
        return LocalAnswer(503, NO_HEALTHY_UPSTREAM.body, NO_HEALTHY_UPSTREAM.flag, details)
