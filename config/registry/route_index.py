"""Which routes hang on which services, and which services their backends are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.objects import GrpcRoute, HttpRoute, MeshObject, Ref, Route, TcpRoute, TlsRoute
from config.routing_rules import BackendRef, ParentRef

HOSTNAME = "Hostname"  # of a backend that is named by its host


class RouteIndex:
    def __init__(self) -> None:
        self._on: dict[Ref, set[Ref]] = {}  # parent -> routes
        self._to: dict[Ref, set[Ref]] = {}  # backend -> routes
        self._parents: dict[Ref, frozenset[Ref]] = {}
        self._targets: dict[Ref, frozenset[Ref]] = {}

    def put(self, ref: Ref, new: MeshObject | None) -> set[Ref]:
        """Files a route, or forgets it. Returns the parents it has and had."""
        route = new if isinstance(new, HttpRoute | GrpcRoute | TcpRoute | TlsRoute) else None
        before = self._parents.pop(ref, frozenset())
        after = frozenset(parents_of(route)) if route is not None else frozenset[Ref]()
        _exchange(self._on, ref, before, after)
        targets = frozenset(targets_of(route)) if route is not None else frozenset[Ref]()
        _exchange(self._to, ref, self._targets.pop(ref, frozenset()), targets)
        if route is not None:
            self._parents[ref], self._targets[ref] = after, targets
        return {*before, *after}

    def on(self, parent: Ref) -> list[Ref]:
        return sorted(self._on.get(parent, ()))

    def users_of(self, service: Ref, hosts: Iterable[str]) -> set[Ref]:
        """The parents of routes with this backend."""
        targets = (service, *(Ref(HOSTNAME, "", host) for host in hosts))
        routes = {route for target in targets for route in self._to.get(target, ())}
        return {parent for route in routes for parent in self._parents[route]}


def parent_key(parent: ParentRef) -> Ref | None:
    """The Service or ServiceEntry that a parentRef names; None if it names something else."""
    match parent.group, parent.kind:
        case ("", "Service") | ("networking.istio.io", "ServiceEntry"):
            return Ref(parent.kind, parent.namespace, parent.name)
        case _:
            return None


def target_key(backend: BackendRef) -> Ref | None:
    match backend.group, backend.kind:
        case ("", "Service") | ("networking.istio.io", "ServiceEntry"):
            return Ref(backend.kind, backend.namespace, backend.name)
        case ("networking.istio.io", "Hostname"):
            return Ref(HOSTNAME, "", backend.name)
        case _:
            return None


def parents_of(route: Route) -> Iterator[Ref]:
    return (key for parent in route.parents if (key := parent_key(parent)) is not None)


def backends_of(route: Route) -> Iterator[BackendRef]:
    """All that requests can be sent to, mirrors included."""
    for rule in route.rules:
        yield from rule.backends
    if isinstance(route, HttpRoute | GrpcRoute):
        for rule in route.rules:
            for mirror in rule.filters.mirrors:
                yield mirror.backend


def targets_of(route: Route) -> Iterator[Ref]:
    return (key for backend in backends_of(route) if (key := target_key(backend)) is not None)


def _exchange(index: dict[Ref, set[Ref]], ref: Ref, before: Iterable[Ref], after: Iterable[Ref]) -> None:
    for key in before:
        index[key].discard(ref)
        if not index[key]:
            del index[key]
    for key in after:
        index.setdefault(key, set()).add(ref)
