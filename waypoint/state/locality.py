"""Which endpoints come first, as seen from this waypoint: waypoint.proto's Locality (waypoint-facts 7).

Two ways. By terms: an endpoint's level is how many of them fail, counted from the first that does; in the
last level those of a failover region come before the others. By distribution: the endpoints of a locality
share its percents, and what belongs to no locality gets nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dataplane.state.model import Locality, Workload
from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.place import Place

_WEIGHT_UNIT = 10_000  # of all endpoints of a locality together, for each percent


class Scope(enum.IntEnum):
    """Values of waypoint.proto's Scope."""

    NETWORK = 0
    CLUSTER = 1
    REGION = 2
    ZONE = 3
    SUBZONE = 4
    NODE = 5


# Uids for a term that names workloads.
Term: TypeAlias = Scope | frozenset[str]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A locality; None for all that may follow."""

    region: str | None = None
    zone: str | None = None
    subzone: str | None = None

    def matches(self, locality: Locality) -> bool:
        return (
            self.region in (None, locality.region)
            and self.zone in (None, locality.zone)
            and self.subzone in (None, locality.subzone)
        )

    @property
    def depth(self) -> int:
        return sum(part is not None for part in (self.region, self.zone, self.subzone))


@dataclass(frozen=True, slots=True)
class Distribution:
    """`shares` with the most specific pattern first."""

    source: Pattern
    shares: tuple[tuple[Pattern, int], ...]


@dataclass(frozen=True, slots=True)
class LocalityPolicy:
    terms: tuple[Term, ...] = ()
    is_strict: bool = False
    failovers: tuple[tuple[str, str], ...] = ()  # regions
    distributions: tuple[Distribution, ...] = ()

    def level(self, workload: Workload, place: Place) -> int | None:
        """0 comes first; None: nothing goes there."""
        held = 0
        for term in self.terms:
            if not _holds(term, workload, place):
                break
            held += 1
        if self.is_strict and held < len(self.terms):
            return None
        level = len(self.terms) - held
        if held == 0 and self.terms and not self._is_failover(workload, place):
            level += 1
        return level

    def _is_failover(self, workload: Workload, place: Place) -> bool:
        """Where nothing is said about the waypoint's region, no other one comes first."""
        targets = [target for source, target in self.failovers if source == place.locality.region]
        return not targets or workload.locality.region in targets

    def distribution(self, place: Place) -> Distribution | None:
        return next((each for each in self.distributions if each.source.matches(place.locality)), None)


def weights(distribution: Distribution, workloads: Sequence[Workload]) -> dict[str, int]:
    """Weights by uid, such that each locality gets its percents; endpoints without one are not there."""
    groups: dict[int, list[Workload]] = {}
    for workload in workloads:
        for index, (pattern, _) in enumerate(distribution.shares):
            if pattern.matches(workload.locality):
                groups.setdefault(index, []).append(workload)
                break
    found: dict[str, int] = {}
    for index, members in groups.items():
        percent = distribution.shares[index][1]
        total = sum(max(each.capacity, 1) for each in members)
        for each in members:
            found[each.uid] = max(1, percent * _WEIGHT_UNIT * max(each.capacity, 1) // total)
    return found


def _holds(term: Term, workload: Workload, place: Place) -> bool:
    own, other = place.locality, workload.locality
    match term:
        case frozenset():
            return workload.uid in term
        case Scope.NETWORK:
            return workload.network == place.network
        case Scope.CLUSTER:
            return workload.cluster_id == place.cluster_id
        case Scope.REGION:
            return other.region == own.region
        case Scope.ZONE:
            return other.zone == own.zone
        case Scope.SUBZONE:
            return other.subzone == own.subzone
        case Scope.NODE:
            return bool(place.node) and workload.node == place.node


def locality_policy(message: pb.Locality) -> LocalityPolicy:
    """Raises `RoutesRejected`."""
    return LocalityPolicy(
        tuple(_term(each) for each in message.terms),
        message.is_strict,
        tuple((getattr(each, "from"), each.to) for each in message.failovers),
        tuple(_distribution(each) for each in message.distributions),
    )


def _term(message: pb.Locality.Term) -> Term:
    match message.WhichOneof("kind"):
        case "same":
            try:
                return Scope(message.same)
            except ValueError as error:
                raise RoutesRejected(f"unknown scope {message.same}") from error
        case "workloads":
            return frozenset(message.workloads.uids)
        case _:
            raise RoutesRejected("a term of a locality says nothing")


def _distribution(message: pb.Locality.Distribution) -> Distribution:
    shares = [(_pattern(text), percent) for text, percent in sorted(message.to.items())]
    if not shares or sum(percent for _, percent in shares) != 100:
        raise RoutesRejected("the shares of localities do not add up to 100 percent")
    shares.sort(key=lambda share: -share[0].depth)
    return Distribution(_pattern(getattr(message, "from")), tuple(shares))


def _pattern(text: str) -> Pattern:
    parts: list[str | None] = []
    for part in text.split("/"):
        if part in ("*", ""):
            break
        parts.append(part)
    if len(parts) > 3:
        raise RoutesRejected(f"{text!r} is no locality")
    return Pattern(*parts)
