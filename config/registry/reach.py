"""Which waypoints can send to which services: those they serve, and those that their routes lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.compile.resource import Resource
from config.objects import Ref
from config.registry.host_index import is_matched
from proto.mycelia import waypoint_pb2 as pb


class Reach:
    """Services by their names in the address book, `namespace/hostname`."""

    def __init__(self) -> None:
        self._reached: dict[str, dict[Ref, frozenset[str]]] = {}  # service -> sender -> its waypoints
        self._reaching: dict[Ref, frozenset[str]] = {}
        self._by_hostname: dict[str, set[str]] = {}

    def put(self, sender: Ref, routes: Iterable[Resource]) -> set[str]:
        """Takes the routes that a service has now; returns the services that others reach than before."""
        after: dict[str, frozenset[str]] = {}
        for each in routes:
            waypoints = frozenset(each.waypoints)
            for name in _names(each):
                after[name] = after.get(name, frozenset()) | waypoints
        changed: set[str] = set()
        for name in self._reaching.pop(sender, frozenset()) | after.keys():
            if self._reached.get(name, {}).get(sender) != after.get(name):
                changed.add(name)
            self._set(name, sender, after.get(name))
        if after:
            self._reaching[sender] = frozenset(after)
        return changed

    def _set(self, name: str, sender: Ref, waypoints: frozenset[str] | None) -> None:
        senders = self._reached.setdefault(name, {})
        hostname = name.partition("/")[2]
        if waypoints is not None:
            senders[sender] = waypoints
            self._by_hostname.setdefault(hostname, set()).add(name)
            return
        senders.pop(sender, None)
        if not senders:
            del self._reached[name]
            names = self._by_hostname.get(hostname, set())
            names.discard(name)
            if not names:
                self._by_hostname.pop(hostname, None)

    def waypoints(self, name: str) -> dict[str, tuple[str, ...]]:
        """By their namespaces."""
        found: dict[str, set[str]] = {}
        for waypoints in self._reached.get(name, {}).values():
            for waypoint in waypoints:
                found.setdefault(waypoint.partition("/")[0], set()).add(waypoint)
        return {namespace: tuple(sorted(found[namespace])) for namespace in sorted(found)}

    def __contains__(self, name: str) -> bool:
        return name in self._reached

    def named(self, patterns: Iterable[str]) -> Iterator[str]:
        """Reached services whose host one of these names or wildcards matches."""
        for pattern in patterns:
            if not pattern.startswith("*"):
                yield from self._by_hostname.get(pattern, ())
                continue
            for hostname, names in self._by_hostname.items():
                if is_matched(pattern, hostname):
                    yield from names


def _names(routes: Resource) -> set[str]:
    """The service itself and all that its routes lead to."""
    message = pb.ServiceRoutes.FromString(routes.payload)
    found = {routes.name}
    for port in message.ports:
        for rule in port.http_rules:
            found |= {backend.service for backend in rule.forward.backends}
            found |= {mirror.backend.service for mirror in rule.mirrors}
        for stream in port.tcp_rules:
            found |= {backend.service for backend in stream.backends}
    return found - {""}
