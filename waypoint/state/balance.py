"""Which host takes this request? (waypoint-facts 7)

A `Balancer` is made for one destination (service, port, subset) and made again when its hosts change; hosts
carry their own state over. Level loads and schedules are worked out at the first pick and after
`refresh()`, which is called when a host was ejected or came back. Hash tables hold all hosts of a level,
healthy or not: a key whose host is away is hashed again, so that the keys of the others stay where they are
and no table is built when a host fails.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

from waypoint.state.destinations import Algorithm, TrafficPolicy
from waypoint.state.hashing import MAGLEV_SIZE, Maglev, Ring, build_maglev, build_ring, xxhash64
from waypoint.state.hosts import Host
from waypoint.state.priorities import LevelLoads, choose_level, level_loads, levels
from waypoint.state.retry import choose_other
from waypoint.state.schedule import Schedule
from waypoint.state.session import endpoint_token

SLOW_START_MINIMUM = 0.1
_REHASHES = 8
_ATTEMPTS_IN_A_LEVEL = 2


def slow_start_factor(
    age_s: float, window_s: float, aggression: float = 1.0, minimum: float = SLOW_START_MINIMUM
) -> float:
    """The part of its weight that a host of that age has: from `minimum`, growing to all of it."""
    if age_s >= window_s:
        return 1.0
    return max(minimum, float((max(age_s, 1.0) / window_s) ** (1.0 / aggression)))


def of_subset(hosts: Sequence[Host], workloads: Collection[str]) -> list[Host]:
    return [host for host in hosts if host.member.uid in workloads]


class _Level:
    """The hosts of one priority that can be chosen now, and how."""

    __slots__ = (
        "_cumulative",
        "_hosts",
        "_now",
        "_policy",
        "_random",
        "_schedule",
        "_table",
        "_table_hosts",
        "_young",
    )

    def __init__(self, hosts: list[Host], policy: TrafficPolicy, random: Callable[[], float]) -> None:
        self._table_hosts = hosts
        self._table: Ring | Maglev | None = None
        self._policy = policy
        self._random = random
        self._now = 0.0
        self._hosts: list[Host] = []
        self._schedule: Schedule[Host] | None = None
        self._cumulative: list[int] | None = None
        self._young: float | None = None

    def count(self) -> tuple[int, int]:
        """Healthy hosts and all."""
        return sum(host.is_available for host in self._table_hosts), len(self._table_hosts)

    def has_any(self, hosts: Collection[Host]) -> bool:
        return any(host in hosts for host in self._table_hosts)

    def prepare(self, now: float, *, is_panic: bool) -> None:
        """Who can be chosen from now on, until the next call."""
        hosts = [host for host in self._table_hosts if is_panic or host.is_available]
        self._hosts = hosts
        self._now = now
        window_s = self._policy.slow_start_s
        young = [host for host in hosts if window_s and now - host.joined_at < window_s]
        self._young = max((host.joined_at for host in young), default=0.0) + window_s if young else None
        weights = [host.member.weight for host in hosts]
        is_even = len(set(weights)) <= 1
        self._cumulative = None if is_even else list(accumulate(weights))
        algorithm = self._policy.algorithm
        self._schedule = None
        if not hosts:
            return
        if algorithm is Algorithm.ROUND_ROBIN:
            self._schedule = Schedule(hosts, self._weight, self._random)
        elif algorithm is Algorithm.LEAST_REQUEST and (young or not is_even):
            self._schedule = Schedule(hosts, self._weight_by_load, self._random)

    def is_outdated(self, now: float) -> bool:
        """The last young host has grown up: two choices do again."""
        self._now = now
        return self._young is not None and now >= self._young

    def pick(self, key_hash: int | None) -> Host | None:
        hosts = self._hosts
        if not hosts:
            return None
        if self._schedule is not None:
            return self._schedule.pick()
        algorithm = self._policy.algorithm
        if algorithm is Algorithm.LEAST_REQUEST:
            count = len(hosts)
            first = hosts[int(self._random() * count)]
            second = hosts[int(self._random() * count)]
            return second if second.active < first.active else first
        if algorithm in (Algorithm.RING_HASH, Algorithm.MAGLEV) and key_hash is not None:
            return self._by_key(key_hash)
        return self._at_random()

    def _by_key(self, key_hash: int) -> Host | None:
        table = self._table
        if table is None:
            table = self._table = self._build()
        chosen = set(self._hosts) if len(self._hosts) < len(self._table_hosts) else None
        for _ in range(_REHASHES):
            host = self._table_hosts[table.pick(key_hash)]
            if chosen is None or host in chosen:
                return host
            key_hash = xxhash64(key_hash.to_bytes(8, "little"))
        return self._hosts[key_hash % len(self._hosts)]

    def _build(self) -> Ring | Maglev:
        named = [(host.member.uid, max(host.member.weight, 1)) for host in self._table_hosts]
        if self._policy.algorithm is Algorithm.MAGLEV:
            size = self._policy.table_size
            return build_maglev(named, size if len(named) < size else MAGLEV_SIZE)
        return build_ring(named, self._policy.minimum_ring_size)

    def _at_random(self) -> Host:
        if self._cumulative is None:
            return self._hosts[int(self._random() * len(self._hosts))]
        return self._hosts[bisect_right(self._cumulative, int(self._random() * self._cumulative[-1]))]

    def _weight(self, host: Host) -> float:
        weight = max(host.member.weight, 1)
        if self._young is None:
            return weight
        policy = self._policy
        return weight * slow_start_factor(
            self._now - host.joined_at,
            policy.slow_start_s,
            policy.slow_start_aggression,
            policy.slow_start_minimum,
        )

    def _weight_by_load(self, host: Host) -> float:
        return self._weight(host) / (host.active + 1)


class Balancer:
    """Chooses a host for each request. One worker, one thread; `random` gives numbers in [0, 1)."""

    __slots__ = ("_hosts", "_levels", "_loads", "_policy", "_random", "_single", "_tokens")

    def __init__(self, policy: TrafficPolicy, hosts: Sequence[Host], random: Callable[[], float]) -> None:
        self._policy = policy
        self._hosts = hosts
        self._random = random
        self._levels = [_Level(level, policy, random) for level in levels(hosts)]
        self._loads: LevelLoads | None = None
        self._single: _Level | None = None
        self._tokens: dict[str, Host] | None = None

    @property
    def policy(self) -> TrafficPolicy:
        return self._policy

    def refresh(self) -> None:
        """Health has changed: work the loads out again at the next pick."""
        self._loads = None

    def pick(
        self,
        now: float,
        key_hash: int | None = None,
        tried: Collection[Host] = (),
        *,
        may_repeat: bool = False,
        may_go_remote: bool = False,
    ) -> Host | None:
        """A host, or None: no healthy upstream (503, UH).

        `tried` are the hosts of earlier attempts, avoided if five selections can. A key asks for its own host
        first, and for any other after that one was tried. With `may_go_remote` (retryRemoteLocalities) the
        attempts after the second leave the levels that were tried, as long as another has a healthy host.
        """
        if not tried:
            return self._pick(now, key_hash)
        if may_go_remote and len(self._levels) > 1 and len(tried) >= _ATTEMPTS_IN_A_LEVEL:
            return self._pick_elsewhere(now, key_hash, tried)
        if key_hash is not None and not may_repeat:
            host = self._pick(now, key_hash)
            if host not in tried:
                return host
            key_hash = None
        return choose_other(lambda: self._pick(now, key_hash), tried, may_repeat=may_repeat)

    def by_token(self, token: str) -> Host | None:
        """The host of a session, if it is there and available."""
        tokens = self._tokens
        if tokens is None:
            tokens = self._tokens = {endpoint_token(host.member.uid): host for host in self._hosts}
        host = tokens.get(token)
        return host if host is not None and host.is_available else None

    def loads(self, now: float) -> LevelLoads:
        """The shares of the levels; kept until `refresh()`."""
        if self._loads is None:
            self._loads = self._prepare(now)
        return self._loads

    def _pick(self, now: float, key_hash: int | None) -> Host | None:
        loads = self._loads
        if loads is None:
            loads = self.loads(now)
        level = self._single
        if level is None:
            # A key stays in one level, whichever that is.
            point = self._random() if key_hash is None else (key_hash & 0xFFFFFFFF) / (1 << 32)
            chosen = choose_level(loads.percents, point)
            if chosen is None:
                return None
            level = self._levels[chosen]
        if level.is_outdated(now):
            self._loads = self._prepare(now)
        return level.pick(key_hash)

    def _pick_elsewhere(self, now: float, key_hash: int | None, tried: Collection[Host]) -> Host | None:
        self.loads(now)
        counts = [
            (0 if level.has_any(tried) else healthy, total)
            for level, (healthy, total) in zip(self._levels, self._counts(), strict=True)
        ]
        chosen = choose_level(level_loads(counts, 0).percents, self._random())
        if chosen is None:
            return choose_other(lambda: self._pick(now, key_hash), tried)
        return self._levels[chosen].pick(key_hash)

    def _counts(self) -> list[tuple[int, int]]:
        return [level.count() for level in self._levels]

    def _prepare(self, now: float) -> LevelLoads:
        loads = level_loads(self._counts(), self._policy.panic_percent)
        for level, panics in zip(self._levels, loads.is_panic, strict=True):
            level.prepare(now, is_panic=panics)
        self._single = None
        for level, percent in zip(self._levels, loads.percents, strict=True):
            if percent == 100:
                self._single = level
        return loads
