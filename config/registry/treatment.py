"""Destinations: one for each service and namespace of waypoints that send to it, and what changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from config.compile.destinations import (
    Endpoint,
    Treated,
    compile_destination,
    materials_needed,
    needs_endpoints,
)
from config.compile.resource import SERVICE_ROUTES, Resource
from config.objects import Ref, Resolution, Service, ServiceEntry, TlsMaterial
from config.registry.backend_policies import below
from config.registry.object_index import ObjectIndex
from config.registry.places import Places
from config.registry.reach import Reach

# The compiled workload of a uid.
Compiled = Callable[[str], Resource | None]


@dataclass(frozen=True, slots=True)
class DestinationOf:
    """A service of the address book, as all waypoints that reach it see it: what is compiled at once."""

    service: str


class Treatment:
    def __init__(self, index: ObjectIndex, places: Places) -> None:
        self._index = index
        self._places = places
        self.reach = Reach()
        self._with_endpoints: set[str] = set()  # destinations that name workloads

        self._using: dict[Ref, set[str]] = {}  # destinations by the ConfigMaps and Secrets they need

    # Each of these returns the services whose destinations may be others now.

    def rules_changed(self, hosts: Iterable[str]) -> set[str]:
        return set(self.reach.named(hosts))

    def materials_changed(self, refs: Iterable[Ref]) -> set[str]:
        return {name for ref in refs for name in self._using.get(ref, ())}

    def service_changed(self, ref: Ref, names: Iterable[str], made: Iterable[Resource]) -> set[str]:
        """`names` are those it had and has, `made` what it was compiled to."""
        routes = [each for each in made if each.type_url == SERVICE_ROUTES]
        return self.reach.put(ref, routes) | {name for name in names if name in self.reach}

    def workload_changed(self, before: Resource | None, after: Resource | None) -> set[str]:
        services = {name for each in (before, after) if each is not None for name in each.services}
        return services & self._with_endpoints

    def compile(self, name: str, compiled: Compiled) -> list[Resource]:
        self._with_endpoints.discard(name)
        for ref in [ref for ref, users in self._using.items() if name in users]:
            self._using[ref].discard(name)
            if not self._using[ref]:
                del self._using[ref]
        waypoints = self.reach.waypoints(name)
        owner = self._index.owner_of(name)
        service = self._index.service(owner) if owner is not None else None
        if service is None:
            return []
        return [
            self._for_waypoints(name, service, namespace, members, compiled)
            for namespace, members in waypoints.items()
        ]

    def _for_waypoints(
        self,
        name: str,
        service: Service | ServiceEntry,
        waypoint_namespace: str,
        waypoints: tuple[str, ...],
        compiled: Compiled,
    ) -> Resource:
        namespace, _, hostname = name.partition("/")
        rules = self._index.rules.effective(hostname, namespace, waypoint_namespace)
        policies = below(rules.policies, self._index.backend_policies.said_of(service))
        endpoints: tuple[Endpoint, ...] = ()
        if needs_endpoints(policies, rules.subsets):
            self._with_endpoints.add(name)
            endpoints = self._endpoints(name, service, compiled)
        materials = self._materials(name, materials_needed(policies, rules.subsets))
        return compile_destination(
            Treated(
                namespace,
                hostname,
                waypoint_namespace,
                waypoints,
                policies,
                rules.subsets,
                self._places.scope(service),
                isinstance(service, ServiceEntry) and service.resolution is Resolution.NONE,
                endpoints,
                service.subject_alt_names if isinstance(service, ServiceEntry) else (),
                materials,
            )
        )

    def _materials(self, name: str, needed: set[Ref]) -> dict[Ref, TlsMaterial]:
        """Also of those that are not there it is known who wants them."""
        found: dict[Ref, TlsMaterial] = {}
        for ref in needed:
            self._using.setdefault(ref, set()).add(name)
            held = self._index.objects.get(ref)
            if isinstance(held, TlsMaterial):
                found[ref] = held
        return found

    def _endpoints(
        self, name: str, service: Service | ServiceEntry, compiled: Compiled
    ) -> tuple[Endpoint, ...]:
        found: list[Endpoint] = []
        for uid in sorted(self._index.members(service.meta.ref, service)):
            workload = compiled(uid)
            if workload is not None and name in workload.services:
                found.append(Endpoint(uid, self._places.labels(self._index.sources[uid])))
        return tuple(found)
