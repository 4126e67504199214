"""RateLimitPolicy in the worker: 429 with what a client needs to wait rightly (waypoint-facts 10).

The buckets belong to a policy and stay while it is the same, whatever else changes. With several workers each
counts its share of the limit. Limits that are shared are asked for last, all in one call; while the
server does not answer, each policy's failure mode decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from proto.mycelia import rate_limit_pb2 as pb
from transport.errors import MeshError
from transport.http2.events import Header
from waypoint.state.policies import Policy, Unreadable
from waypoint.state.rate_limits import RATE_LIMIT_TYPE, Asked, Counting, RateLimitPolicy, Room, ask, ask_each
from waypoint.state.resp import NotResp, Reply
from waypoint.state.shared_limits import Entry, call_of, prefix_of, room_of
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.authorization import facts_of
from waypoint.worker.checks import Check, Pending, Phase, ResponseHook, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.redis_client import RedisClient
from waypoint.worker.ways import ServedPort

_BODY: Final = b"local_rate_limited"
_RESOURCE_EXHAUSTED: Final = 8
_LOCAL: Final = pb.RateLimitPolicy.LOCAL
_UNCOUNTED: Final = Answer(503, "rate_limit_unavailable", "RLSE", b"the rate limit cannot be counted now")
_UNREADABLE: Final = Answer(503, "policy_unreadable", body=b"the policy of this service cannot be read")


class RateLimits:
    """Implements CheckSource. `clock` in seconds; `workers` share each limit."""

    def __init__(
        self,
        state: WaypointState,
        clock: Callable[[], float],
        counts: PolicyCounts,
        *,
        workers: int = 1,
        redis: RedisClient | None = None,
    ) -> None:
        self._state = state
        self.redis = redis
        self.clock = clock
        self.counts = counts
        self._workers = workers
        self._counting: dict[str, Counting] = {}

    def checks(self, port: ServedPort) -> Sequence[Check]:
        self._forget()
        book = self._state.policies
        found = book.of(RATE_LIMIT_TYPE, "" if port.service is None else port.service.key)
        if any(isinstance(each, Unreadable) for each in found):
            return (_Nothing(),)
        routes = book.by_route(RATE_LIMIT_TYPE)
        if not found and not routes:
            return ()
        by_route = {route: self._all(policies) for route, policies in routes.items()}
        return (_LimitCheck(self, self._all(found), by_route),)

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:  # noqa: ARG002 - requests are counted
        return ()

    def _all(self, policies: Sequence[Policy]) -> tuple[Counting, ...]:
        return tuple(self._of(each) for each in policies if isinstance(each, RateLimitPolicy))

    def _of(self, policy: RateLimitPolicy) -> Counting:
        held = self._counting.get(policy.key)
        if held is None or held.policy is not policy:
            held = self._counting[policy.key] = Counting(policy, self._workers)
        return held

    def _forget(self) -> None:
        live = self._state.policies.all(RATE_LIMIT_TYPE)
        for gone in self._counting.keys() - live.keys():
            del self._counting[gone]

    def close(self) -> None:
        if self.redis is not None:
            self.redis.close()


class _Nothing:
    phase = Phase.LIMIT

    def examine(self, examination: Examination) -> Answer:
        examination.outcome.policy = "unreadable"
        return _UNREADABLE


class _LimitCheck:
    """Implements Check."""

    phase = Phase.LIMIT

    def __init__(
        self, owner: RateLimits, counting: Sequence[Counting], by_route: Mapping[str, Sequence[Counting]]
    ) -> None:
        self._owner = owner
        self._counting = counting
        self._by_route = by_route

    def examine(self, examination: Examination) -> Answer | Pending | None:
        counting, route = self._counting, examination.route_name
        if self._by_route:
            counting = (*counting, *self._by_route.get(route.rpartition("/")[0], ()))
        if not counting:
            return None
        service = examination.port.service
        asked = Asked(facts_of(examination), route, "" if service is None else service.key)
        room, refusing = ask(counting, asked, self._owner.clock())
        if refusing is None:
            entries = tuple(_entries(counting, asked))
            if entries:
                return _Shared(self._owner, examination, counting, asked, room).ask(entries)
        return judge(self._owner, examination, counting, room, refusing)


def judge(
    owner: RateLimits,
    examination: Examination,
    counting: Sequence[Counting],
    room: Room | None,
    refusing: Counting | None,
) -> Answer | None:
    """What the client gets, or is told later."""
    if room is None:
        return None
    if refusing is None:
        if any(each.policy.tells for each in counting):
            examination.add_response_hook(_telling(room))
        return None
    policy = f"{refusing.policy} {room.limit.name}"
    examination.outcome.policy = policy
    owner.counts.count(str(refusing.policy), "limited")
    headers: list[Header] = [
        (b"x-envoy-ratelimited", b"true"),
        (b"retry-after", b"%d" % math.ceil(room.wait_s)),
    ]
    if refusing.policy.tells:
        headers += _told(room)
    headers += refusing.policy.answer_headers
    return Answer(
        429,
        "request_rate_limited",
        "RL",
        _BODY,
        tuple(headers),
        grpc_status=_RESOURCE_EXHAUSTED,
    )


class _Asking(NamedTuple):
    """A shared limit that a request falls under."""

    counting: Counting
    entry: Entry


def _entries(counting: Sequence[Counting], asked: Asked) -> Iterator[_Asking]:
    for each in counting:
        for index, limit in each.shared:
            key = limit.key(asked)
            if key is not None:
                content = each.policy.limits[index].SerializeToString(deterministic=True)
                yield _Asking(each, (limit, prefix_of(each.policy.key, index, content), key))


class _Shared:
    """A request that waits for the server's word. Implements Pending."""

    def __init__(
        self,
        owner: RateLimits,
        examination: Examination,
        counting: Sequence[Counting],
        asked: Asked,
        room: Room | None,
    ) -> None:
        self._owner = owner
        self._examination: Examination | None = examination
        self._counting = counting
        self._asked = asked
        self._room = room  # of the limits that are not shared
        self._asking: tuple[_Asking, ...] = ()

    def ask(self, asking: tuple[_Asking, ...]) -> Answer | Pending | None:
        self._asking = asking
        redis = self._owner.redis
        if redis is not None and redis.ask(call_of([each.entry for each in asking]), self._answered):
            return self
        assert self._examination is not None
        return self._without_server(self._examination)

    def cancel(self) -> None:
        self._examination = None

    def _answered(self, reply: Reply | MeshError) -> None:
        examination, self._examination = self._examination, None
        if examination is None:
            return
        examination.go_on(self._judged(examination, reply))

    def _judged(self, examination: Examination, reply: Reply | MeshError) -> Answer | None:
        if isinstance(reply, MeshError):
            return self._without_server(examination)
        try:
            room = room_of(reply, [each.entry for each in self._asking])
        except NotResp:
            return self._without_server(examination)
        refusing = None
        if room.wait_s > 0:
            refusing = next(each.counting for each in self._asking if each.entry[0] is room.limit)
        elif self._room is not None and self._room.remaining < room.remaining:
            room = self._room
        return judge(self._owner, examination, self._counting, room, refusing)

    def _without_server(self, examination: Examination) -> Answer | None:
        """Each policy's own failure mode; the strictest first."""
        owner = self._owner
        policies = tuple(dict.fromkeys(each.counting for each in self._asking))
        for each in policies:
            owner.counts.count(str(each.policy), "not_shared")
        closed = [each for each in policies if each.policy.failure_mode == pb.RateLimitPolicy.CLOSED]
        if closed:
            examination.outcome.policy = f"{closed[0].policy} (shared count not available)"
            return _UNCOUNTED
        local = [(each, each.stand_ins) for each in policies if each.policy.failure_mode == _LOCAL]
        room, refusing = ask_each(local, self._asked, owner.clock())
        if refusing is None and self._room is not None:
            room = self._room
        return judge(owner, examination, self._counting, room, refusing)


def _told(room: Room) -> list[Header]:
    return [
        (b"x-ratelimit-limit", b"%d" % room.limit.burst),
        (b"x-ratelimit-remaining", b"%d" % room.remaining),
        (b"x-ratelimit-reset", b"%d" % math.ceil(room.reset_s)),
    ]


def _telling(room: Room) -> ResponseHook:
    def hook(status: int, headers: list[Header]) -> None:  # noqa: ARG001 - any answer
        headers += _told(room)

    return hook
