"""How often which policy did what, for the metrics. Only grows; bounded in names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from dataplane.worker.base import named
from proto.mycelia import worker_pb2 as pb

_MAX_POLICIES: Final = 2_000
_OTHERS: Final = "others"


class PolicyCounts:
    """By policy and effect."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, policy: str, effect: str) -> None:
        key = (policy, effect)
        if key not in self._counts and len(self._counts) >= _MAX_POLICIES:
            key = (_OTHERS, effect)
        self._counts[key] += 1

    def stats(self) -> Iterator[pb.Stats.Named]:
        for (policy, effect), count in self._counts.items():
            yield named("mycelia_waypoint_policy_matches_total", count, policy, effect)
