"""When an open loop sends: the times are fixed before the run and no answer can move them.

A latency is measured from the intended time, not from the moment the generator got round to sending, so that
a stall is charged to every request that it delayed (no coordinated omission). Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def intended_times(
    rate_per_s: float, start_ns: int, end_ns: int, *, seed: int | None = None
) -> Iterator[int]:
    """Times in [start, end), in nanoseconds: evenly spaced, or Poisson arrivals where a seed is given."""
    if rate_per_s <= 0:
        raise ValueError(f"a rate is positive, not {rate_per_s}")
    return (
        _even(rate_per_s, start_ns, end_ns) if seed is None else _poisson(rate_per_s, start_ns, end_ns, seed)
    )


def _even(rate_per_s: float, start_ns: int, end_ns: int) -> Iterator[int]:
    index = 0
    while (at := start_ns + round(index * 1e9 / rate_per_s)) < end_ns:  # from the index: no drift by rounding
        yield at
        index += 1


def _poisson(rate_per_s: float, start_ns: int, end_ns: int, seed: int) -> Iterator[int]:
    draw = random.Random(seed)
    at = float(start_ns)
    while True:
        at += -math.log(1.0 - draw.random()) * 1e9 / rate_per_s
        if at >= end_ns:
            return
        yield int(at)
