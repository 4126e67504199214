"""How often which limit of connections did what, for the metrics. Only grows; bounded in names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from dataplane.worker.base import named
from proto.mycelia import worker_pb2 as pb

_MAX_NAMES: Final = 2_000
_OTHERS: Final = "others"
IS_REFUSED: Final = "refused"
IS_PACED: Final = "paced"


class LimitCounts:
    """By policy, limit and effect."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def count(self, policy: str, limit: str, effect: str) -> None:
        key = (policy, limit, effect)
        if key not in self._counts and len(self._counts) >= _MAX_NAMES:
            key = (_OTHERS, _OTHERS, effect)
        self._counts[key] += 1

    def stats(self) -> Iterator[pb.Stats.Named]:
        for labels, count in self._counts.items():
            yield named("mycelia_ztunnel_connection_limits_total", count, *labels)
