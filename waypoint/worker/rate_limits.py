"""RateLimitPolicy in the worker: 429 with what a client needs to wait rightly (waypoint-facts 10).

The buckets belong to a policy and stay while it is the same, whatever else changes. With several workers each
counts its share of the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from transport.http2.events import Header
from waypoint.state.policies import Policy, Unreadable
from waypoint.state.rate_limits import RATE_LIMIT_TYPE, Asked, Counting, RateLimitPolicy, Room, ask
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.authorization import facts_of
from waypoint.worker.checks import Check, Phase, ResponseHook, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.ways import ServedPort

_BODY: Final = b"local_rate_limited"
_RESOURCE_EXHAUSTED: Final = 8
_UNREADABLE: Final = Answer(503, "policy_unreadable", body=b"the policy of this service cannot be read")


class RateLimits:
    """Implements CheckSource. `clock` in seconds; `workers` share each limit."""

    def __init__(
        self, state: WaypointState, clock: Callable[[], float], counts: PolicyCounts, *, workers: int = 1
    ) -> None:
        self._state = state
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

    def close(self) -> None: ...


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

    def examine(self, examination: Examination) -> Answer | None:
        counting, route = self._counting, examination.route_name
        if self._by_route:
            counting = (*counting, *self._by_route.get(route.rpartition("/")[0], ()))
        if not counting:
            return None
        service = examination.port.service
        asked = Asked(facts_of(examination), route, "" if service is None else service.key)
        room, refusing = ask(counting, asked, self._owner.clock())
        if room is None:
            return None
        if refusing is None:
            if any(each.policy.tells for each in counting):
                examination.add_response_hook(_telling(room))
            return None
        policy = f"{refusing.policy} {room.limit.name}"
        examination.outcome.policy = policy
        self._owner.counts.count(str(refusing.policy), "limited")
        headers: list[Header] = [
            (b"x-envoy-ratelimited", b"true"),
            (b"retry-after", b"%d" % math.ceil(room.wait_s)),
        ]
        if refusing.policy.tells:
            headers += _told(room)
        return Answer(
            429,
            "request_rate_limited",
            "RL",
            _BODY,
            tuple(headers),
            grpc_status=_RESOURCE_EXHAUSTED,
        )


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
