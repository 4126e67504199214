"""Policies as they are attached: what protects a service, a route or all of the waypoint. Pure.

Invariants: a policy exists only whole; one that cannot be read keeps its last good version, and without one
it becomes `Unreadable`, which stands for "refuse" (its checks answer 503): protection fails closed. Policies
come in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from transport.errors import MeshError
from waypoint.state.errors import RoutesRejected


class Attachable(Protocol):
    """attachment.proto's Attachment."""

    @property
    def whole_mesh(self) -> bool: ...
    @property
    def waypoints(self) -> Iterable[str]: ...
    @property
    def services(self) -> Iterable[str]: ...
    @property
    def routes(self) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class Attached:
    """Where a policy holds: waypoints as `namespace/name`, services as `namespace/hostname`, routes as
    `kind/namespace/name`.
    """

    whole_mesh: bool = False
    waypoints: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, message: Attachable) -> Attached:
        return cls(
            message.whole_mesh,
            frozenset(message.waypoints),
            frozenset(message.services),
            frozenset(message.routes),
        )


EVERYWHERE = Attached(whole_mesh=True)


class Policy(Protocol):
    """`key` is the resource's name."""

    @property
    def key(self) -> str: ...
    @property
    def attached(self) -> Attached: ...


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A policy that cannot be read and had no version before: nobody may pass."""

    key: str
    reason: str
    attached: Attached = EVERYWHERE


Parse: TypeAlias = Callable[[str, bytes], Policy]


class PolicyBook:
    """`kinds`: how the resources of each type URL are read; a parser gets name and content, and raises
    `MeshError` for what it cannot read. `waypoint` is whose book it is, as `namespace/name`.
    """

    def __init__(self, kinds: Mapping[str, Parse], waypoint: str) -> None:
        self._kinds = kinds
        self._waypoint = waypoint
        self._held: dict[str, dict[str, Policy]] = {type_url: {} for type_url in kinds}
        self._by_service: dict[str, dict[str, tuple[Policy, ...]]] = {}
        self._by_route: dict[str, dict[str, tuple[Policy, ...]]] = {}
        self._everywhere: dict[str, tuple[Policy, ...]] = {}

    @property
    def type_urls(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def all(self, type_url: str) -> Mapping[str, Policy]:
        return self._held[type_url]

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
    ) -> dict[str, str]:
        """Apply one batch; returns name -> reason of each resource refused."""
        parse, held = self._kinds[type_url], self._held[type_url]
        rejected: dict[str, str] = {}
        for name, content in upserts:
            try:
                held[name] = parse(name, content)
            except MeshError as error:
                rejected[name] = error.text
                if name not in held:
                    held[name] = Unreadable(name, error.text)
        for name in removed:
            held.pop(name, None)
        self._index(type_url)
        return rejected

    def _index(self, type_url: str) -> None:
        services: dict[str, list[Policy]] = {}
        routes: dict[str, list[Policy]] = {}
        everywhere: list[Policy] = []
        for _, policy in sorted(self._held[type_url].items()):
            attached = policy.attached
            if attached.whole_mesh or self._waypoint in attached.waypoints:
                everywhere.append(policy)
                continue
            for service in attached.services:
                services.setdefault(service, []).append(policy)
            for route in attached.routes:
                routes.setdefault(route, []).append(policy)
        self._everywhere[type_url] = tuple(everywhere)
        self._by_service[type_url] = {key: tuple(found) for key, found in services.items()}
        self._by_route[type_url] = {key: tuple(found) for key, found in routes.items()}

    def of(self, type_url: str, service_key: str = "") -> tuple[Policy, ...]:
        """What holds for a service, or with an empty key for a workload's own address."""
        everywhere = self._everywhere.get(type_url, ())
        own = self._by_service.get(type_url, {}).get(service_key, ()) if service_key else ()
        if not own or not everywhere:
            return own or everywhere
        return tuple(sorted((*everywhere, *own), key=lambda policy: policy.key))

    def by_route(self, type_url: str) -> Mapping[str, tuple[Policy, ...]]:
        """What is attached to routes: `kind/namespace/name` -> policies, beside those of the service."""
        return self._by_route.get(type_url, {})


def check_name(name: str, key: str) -> None:
    """Raises RoutesRejected if a resource is not what its name says."""
    if name != key:
        raise RoutesRejected(f"it is about {key}")
