"""Which group of hosts takes a request (waypoint-facts 7): localities in order, overflow, panic.

Shares are whole percents, as at Envoy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waypoint.state.hosts import Host

_OVERPROVISIONING = 140


def levels(hosts: Sequence[Host]) -> list[list[Host]]:
    """Hosts by their preference, the nearest first. Empty levels are left out."""
    ranked: dict[int, list[Host]] = {}
    for host in hosts:
        ranked.setdefault(host.member.preference, []).append(host)
    return [ranked[rank] for rank in sorted(ranked)]


@dataclass(frozen=True, slots=True)
class LevelLoads:
    """Percent of the requests for each level (100 in all, or 0: nothing can be used), and who is in panic."""

    percents: tuple[int, ...]
    is_panic: tuple[bool, ...]


def level_loads(counts: Sequence[tuple[int, int]], panic_percent: int) -> LevelLoads:
    """From (healthy, all) of each level.

    h = min(100, 140·healthy/all), at least 1 if any is healthy, fills the levels in order up to 100; if all
    together have less, shares are in proportion. A level is in panic if its healthy share is below
    `panic_percent` and the levels together have less than 100. Without any healthy host those in panic share
    by their sizes.
    """
    health = [
        min(100, max(1, _OVERPROVISIONING * healthy // total)) if healthy else 0 for healthy, total in counts
    ]
    whole = min(100, sum(health))
    panic = tuple(
        whole < 100 and total > 0 and 100 * healthy < panic_percent * total for healthy, total in counts
    )
    if whole == 0:
        return LevelLoads(
            _shares([total if panics else 0 for (_, total), panics in zip(counts, panic, strict=True)]), panic
        )
    percents: list[int] = []
    left = 100
    for each in health:
        share = min(left, each * 100 // whole)
        percents.append(share)
        left -= share
    _give_rest(percents, left)
    return LevelLoads(tuple(percents), panic)


def _shares(sizes: list[int]) -> tuple[int, ...]:
    total = sum(sizes)
    if total == 0:
        return tuple(0 for _ in sizes)
    percents = [100 * size // total for size in sizes]
    _give_rest(percents, 100 - sum(percents))
    return tuple(percents)


def _give_rest(percents: list[int], rest: int) -> None:
    """What rounding left goes to the first level that has anything."""
    for index, percent in enumerate(percents):
        if percent:
            percents[index] += rest
            return


def choose_level(percents: Sequence[int], random: float) -> int | None:
    """The level for a number in [0, 1); None where no level takes anything."""
    point = random * 100
    for index, percent in enumerate(percents):
        if point < percent:
            return index
        point -= percent
    return None
