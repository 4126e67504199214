"""The registry: objects in, data-plane resources out, incrementally. Pure.

Invariant (a property test holds it): after any sequence of changes the resources are those that a registry
filled at once with the final objects, captures and virtual addresses would have. `compiled` counts what was
compiled, so that tests can tell work from luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from config import keys
from config.compile.authorization import policy_key
from config.compile.connection_limits import compile_connection_limits
from config.compile.peer_authentication import (
    policy_keys,
    static_strict,
)
from config.compile.resource import (
    ADDRESS,
    AUTHORIZATION,
    CONNECTION_LIMITS,
    WAYPOINT_TYPES,
    Delta,
    Resource,
    TypeUrl,
)
from config.compile.routes import Resolvers, ServedService, compile_routes
from config.compile.service import ServiceSurroundings, compile_service, service_name
from config.compile.workload import Surroundings, compile_workload
from config.errors import AddressesExhausted
from config.kinds.core import is_true
from config.notes import Note, Reason
from config.objects import (
    AuthorizationPolicy,
    Kind,
    MeshObject,
    Ref,
    Resolution,
    Service,
    ServiceEntry,
)
from config.registry.attachment import attach, candidates_on, ports_of, resolver
from config.registry.key_sets import KeySet
from config.registry.object_index import Dirt, ObjectIndex
from config.registry.object_views import WAYPOINT_SERVICE
from config.registry.places import Places
from config.registry.policy_compiler import PolicyCompiler
from config.registry.requirement import Reached, Serving, asks, asks_whole, requirement
from config.registry.shared_policies import SharedPolicies
from config.registry.source_book import Place
from config.registry.target_ports import PortPairs, entry_ports, service_ports, slice_ports
from config.registry.treatment import DestinationOf, Treatment
from config.registry.virtual_addresses import VirtualAddresses
from config.registry.virtual_attachment import ServiceHost, TargetResolver
from config.registry.waypoint_processes import WaypointWord, gateway_of
from config.registry.waypoints import FOR_SERVICES, FOR_WORKLOADS, Enrolling, Enrolment, find_waypoint
from config.registry.workload_source import Joining, WorkloadSource
from config.settings import MeshSettings

_ResourceKey = tuple[TypeUrl, str]


# What is compiled at once: a workload by uid, a service or policy by its object, a destination.
_Unit = str | Ref | DestinationOf
_Touched = dict[_ResourceKey, Resource | None]


@dataclass(frozen=True, slots=True)
class _Joined:
    """A service that a workload is an endpoint of, under which resource names, by which ports."""

    service: Service | ServiceEntry
    names: tuple[str, ...]
    ports: PortPairs


def _by_name(joined: Iterable[_Joined]) -> Iterator[tuple[str, _Joined]]:
    return ((name, each) for each in joined for name in each.names)


class Registry:
    def __init__(self, settings: MeshSettings, virtual_addresses: VirtualAddresses | None = None) -> None:
        self._settings = settings
        self.index = ObjectIndex(settings)
        self.virtual_addresses = virtual_addresses or VirtualAddresses()
        self.resources: dict[TypeUrl, dict[str, Resource]] = {
            ADDRESS: {},
            AUTHORIZATION: {},
            CONNECTION_LIMITS: {},
            **{type_url: {} for type_url in WAYPOINT_TYPES},
        }
        self.compiled = 0
        self._outputs: dict[_Unit, tuple[_ResourceKey, ...]] = {}
        self._notes: dict[_Unit, tuple[Note, ...]] = {}
        self._captured: dict[Place, set[str]] = {}  # (namespace, name) -> nodes that say so
        self._lookers: dict[Ref, set[_Unit]] = {}  # waypoint -> what was compiled with a look at it
        self._looked: dict[_Unit, tuple[Ref, ...]] = {}
        self._aliases: dict[str, set[str]] = {}
        self._required = SharedPolicies()
        self._policies = PolicyCompiler(self, settings)
        self.key_sets = self._policies.key_sets
        self.providers = self._policies.providers
        self.places = Places(self.index, settings)
        self.treatment = Treatment(self.index, self.places)

    # ---- changes ----

    def apply(self, upserted: Mapping[Ref, MeshObject], removed: Iterable[Ref] = ()) -> Delta:
        """Takes changed objects; returns what the data plane must hear."""
        dirt = Dirt()
        for ref in removed:
            self.index.replace(ref, None, dirt)
        for ref, value in upserted.items():
            self.index.replace(ref, value, dirt)
        self._gateways_changed(dirt)
        return self._compile(dirt)

    def set_captured(self, node: str, places: Iterable[Place]) -> Delta:
        """`places` is all that `node` has captured, as (namespace, name)."""
        dirt = Dirt()
        wanted = set(places)
        held = {place for place, nodes in self._captured.items() if node in nodes}
        for place in held - wanted:
            self._captured[place].discard(node)
            if not self._captured[place]:
                del self._captured[place]
        for place in wanted - held:
            self._captured.setdefault(place, set()).add(node)
        for place in held ^ wanted:
            dirt.workloads |= {source.uid for source in self.index.sources_at(*place)}
        return self._compile(dirt)

    def key_set_found(self, source: str, found: KeySet) -> Delta:
        """What is known now of the keys at `source` (key_sets.py)."""
        return self._compile(Dirt(policies=self.key_sets.put(source, found)))

    def waypoints_said(self, node: str, words: Mapping[Place, WaypointWord]) -> Delta:
        """`words` are all that `node` says of the waypoints that it runs."""
        dirt = Dirt()
        self.index.waypoints_said(node, words, dirt)
        self._gateways_changed(dirt)
        return self._compile(dirt)

    def _gateways_changed(self, dirt: Dirt) -> None:
        for gateway in self._lookers if dirt.is_gateway_class else dirt.gateways:
            for unit in self._lookers.get(gateway, ()):
                if isinstance(unit, str):
                    dirt.workloads.add(unit)
                elif isinstance(unit, Ref):
                    dirt.services.add(unit)

    # ---- questions ----

    @property
    def root_namespace(self) -> str:
        return self._settings.root_namespace

    @property
    def settings(self) -> MeshSettings:
        return self._settings

    def captured(self, source: WorkloadSource) -> bool:
        """Only the node that a workload is on can say that it is captured."""
        nodes = self._captured.get((source.namespace, source.name), ())
        return source.joins_by_labels and not source.is_host_network and source.node in nodes

    def is_running_on(self, namespace: str, service_account: str, node: str) -> bool:
        """Whether a workload of that service account is on the node: what the CA wants to know."""
        return bool(node) and any(
            source.node == node for source in self.index.sources_as(namespace, service_account)
        )

    def is_waypoint_on(self, namespace: str, name: str, node: str) -> bool:
        """Whether a workload of that waypoint is on the node."""
        return bool(node) and node in self.index.waypoint_nodes(namespace, name)

    def notes(self) -> Iterator[Note]:
        for notes in self._notes.values():
            yield from notes

    def names_at(self, key: str) -> Iterable[str]:
        """The resources that have an address, as `network/address`: workloads by uid, services by name."""
        return self._aliases.get(key, ())

    def find(self, key: str) -> list[Resource]:
        """By resource name or alias, the way on-demand clients ask: addresses only. A service brings its
        endpoints along.
        """
        addresses = self.resources[ADDRESS]
        names = [key] if key in addresses else sorted(self._aliases.get(key, ()))
        found: dict[str, Resource] = {}
        for name in names:
            found[name] = addresses[name]
            owner = self.index.owner_of(name)
            if owner is None:
                continue
            for uid in sorted(self.index.members(owner, self.index.objects[owner])):
                member = addresses.get(uid)
                if member is not None and name in member.services:
                    found[uid] = member
        return list(found.values())

    def on_node(self, node: str) -> list[Resource]:
        found = (self.resources[ADDRESS].get(uid) for uid in sorted(self.index.sources_on(node)))
        return [resource for resource in found if resource is not None]

    # ---- compilation ----

    def _compile(self, dirt: Dirt) -> Delta:
        touched: _Touched = {}
        changed = {*dirt.objects, *dirt.services, *dirt.gateways}
        asking = {*self.providers.looking_for(dirt.hosts), *self._policies.secured_by(dirt)}
        for policy in sorted(dirt.policies | self._policies.attachments.dependent(changed) | asking):
            self._settle(policy, self._policies.compile(policy), touched)
        if dirt.is_static_strict:
            made = [static_strict(self._settings)] if self.index.peers else []
            self._settle("static strict", (made, ()), touched)
        destinations = self.treatment.rules_changed(dirt.rule_hosts)
        destinations |= self.treatment.materials_changed(dirt.objects)
        for service in sorted(dirt.services):
            destinations |= self._settle_service(service, touched)
        for uid in sorted(dirt.workloads):
            destinations |= self._settle_workload(uid, touched)
        for name, required in self._required.changed():
            touched[(AUTHORIZATION, name)] = required
        for name in sorted(destinations):
            made = self.treatment.compile(name, lambda uid: self._current(uid, touched))
            self._settle(DestinationOf(name), (made, ()), touched)
        return self._commit(touched, dirt.forced)

    def _settle_service(self, ref: Ref, touched: _Touched) -> set[str]:
        """Returns the services whose destinations may be others now."""
        before = self._outputs.get(ref, ())
        outcome = self._service(ref)
        self._settle(ref, outcome, touched)
        names = {key[1] for key in (*before, *self._outputs.get(ref, ())) if key[0] == ADDRESS}
        return self.treatment.service_changed(ref, names, outcome[0])

    def _settle_workload(self, uid: str, touched: _Touched) -> set[str]:
        """Returns the services whose destinations may be others now."""
        before = self.resources[ADDRESS].get(uid)
        self._settle(uid, self._workload(uid), touched)
        return self.treatment.workload_changed(before, touched.get((ADDRESS, uid)))

    def _current(self, uid: str, touched: _Touched) -> Resource | None:
        """A workload as it will be once the changes are committed."""
        key = (ADDRESS, uid)
        return touched[key] if key in touched else self.resources[ADDRESS].get(uid)

    def _settle(
        self,
        unit: _Unit,
        outcome: tuple[list[Resource], tuple[Note, ...]],
        touched: _Touched,
    ) -> None:
        made, notes = outcome
        self.compiled += 1
        for key in self._outputs.pop(unit, ()):
            touched.setdefault(key, None)
        for resource in made:
            touched[(resource.type_url, resource.name)] = resource
        if made:
            self._outputs[unit] = tuple((each.type_url, each.name) for each in made)
        self._notes.pop(unit, None)
        if notes:
            self._notes[unit] = notes

    def _commit(self, touched: _Touched, forced: set[str]) -> Delta:
        upserts: list[Resource] = []
        removed: list[_ResourceKey] = []
        for key, new in sorted(touched.items(), key=lambda item: item[0]):
            held = self.resources[key[0]]
            old = held.get(key[1])
            if new is None:
                if old is not None:
                    del held[key[1]]
                    removed.append(key)
            elif old != new:
                held[key[1]] = new
                upserts.append(new)
            elif key[1] in forced:
                upserts.append(new)
            self._file_aliases(old, new)
        return Delta(tuple(upserts), tuple(removed))

    def _file_aliases(self, old: Resource | None, new: Resource | None) -> None:
        for alias in old.aliases if old is not None else ():
            held = self._aliases.get(alias)
            if held is not None and old is not None:
                held.discard(old.name)
                if not held:
                    del self._aliases[alias]
        for alias in new.aliases if new is not None else ():
            assert new is not None
            self._aliases.setdefault(alias, set()).add(new.name)

    # -- services --

    def _service(self, ref: Ref) -> tuple[list[Resource], tuple[Note, ...]]:
        service = self.index.service(ref)
        if service is None:
            self._look(ref, ())
            return [], ()
        notes: list[Note] = []
        enrolment = self._enrol(ref, self.enrolling(service))
        notes += enrolment.notes
        if ref.kind == WAYPOINT_SERVICE and not self.index.replicas(ref).known:
            return [], ()
        made: list[Resource] = []
        for host in self.index.hosts_of(service):
            owner = self.index.owner_of(service_name(ref.namespace, host))
            if owner != ref and ref.kind == WAYPOINT_SERVICE:
                continue  # the author's own service stands for the waypoint
            if owner != ref:
                text = f"{owner} already has the host {host} in this namespace; that one counts"
                notes.append(Note(ref, Reason.SHADOWED, text))
                continue
            addresses = self._addresses(service, host, notes)
            around = ServiceSurroundings(
                hostname=host,
                addresses=addresses,
                network=self.places.mesh_network(),
                scope=self.places.scope(service),
                waypoint=enrolment.address,
                weighted_waypoints=enrolment.weighted,
                is_canonical=isinstance(service, Service) or self._is_canonical(ref, host, addresses),
                is_ingress_through_waypoint=enrolment.address is not None and self._ingress(service),
            )
            made.append(compile_service(service, around))
            if enrolment.bound:
                made.append(self._routes(service, host, addresses, enrolment))
        return made, tuple(notes)

    def _routes(
        self, service: Service | ServiceEntry, host: str, addresses: tuple[str, ...], enrolment: Enrolment
    ) -> Resource:
        ref = service.meta.ref
        waypoints = tuple(f"{each.namespace}/{each.name}" for each in enrolment.bound)
        at = ServiceHost(ref, host, frozenset(each.namespace for each in enrolment.bound))
        return compile_routes(
            ServedService(ref.namespace, host, waypoints, addresses),
            attach(self.index, at, ports_of(service), candidates_on(self.index, at)).ports,
            Resolvers(resolver(self.index), TargetResolver(self.index, at.waypoint_namespaces).resolve),
        )

    def enrolling(self, service: Service | ServiceEntry) -> Enrolling:
        meta = service.meta
        namespace = self.index.namespace(meta.namespace)
        return Enrolling(
            meta.ref,
            meta.labels,
            meta.namespace,
            self.places.namespace_labels(meta.namespace),
            FOR_SERVICES,
            meta.annotations,
            namespace.meta.annotations if namespace is not None else {},
        )

    def enrolment(self, service: Service | ServiceEntry) -> Enrolment:
        """Which waypoints a service goes through; looked up anew."""
        return find_waypoint(self.enrolling(service), self.index, self.places.mesh_network())

    def _is_canonical(self, ref: Ref, host: str, addresses: tuple[str, ...]) -> bool:
        """An entry never stands before a Service of the same hostname or address, in any namespace."""
        return self.index.canonical_entry(host) == ref and not any(
            self.index.is_address_of_service(address) for address in addresses
        )

    def _addresses(self, service: Service | ServiceEntry, host: str, notes: list[Note]) -> tuple[str, ...]:
        if service.addresses:
            return service.addresses
        if isinstance(service, ServiceEntry):
            given = tuple(address for own, address in service.status_addresses if own in ("", host))
            if given:
                return given
            is_wanted = service.resolution is not Resolution.NONE and not host.startswith("*")
        else:
            is_wanted = not service.is_headless
        if not is_wanted or service.meta.labels.get(keys.AUTO_ALLOCATE) == "false":
            return ()
        name = service_name(service.meta.namespace, host)
        try:
            return self.virtual_addresses.addresses(name, self.index.claims.__contains__)
        except AddressesExhausted as error:
            notes.append(Note(service.meta.ref, Reason.NO_ADDRESS, error.text))
            return ()

    def _ingress(self, service: Service | ServiceEntry) -> bool:
        own = service.meta.labels.get(keys.INGRESS_USE_WAYPOINT)
        return is_true(
            own
            if own is not None
            else self.places.namespace_labels(service.meta.namespace).get(keys.INGRESS_USE_WAYPOINT)
        )

    # -- workloads --

    def _workload(self, uid: str) -> tuple[list[Resource], tuple[Note, ...]]:
        source = self.index.sources.get(uid)
        if source is None:
            self._look(uid, ())
            self._required.hold(uid, None)
            return [], ()
        notes: list[Note] = []
        enrolment = self.enrolment_of(source)
        # What only the namespace asks for is reported there once, not at each workload.
        if keys.USE_WAYPOINT in source.labels:
            notes += enrolment.notes
        joined = list(self._joined(source, notes))
        required, looked = self._requirement(source, enrolment, joined)
        self._required.hold(uid, required)
        of = gateway_of(source)
        self._look(uid, (*enrolment.looked, *looked, *((of,) if of is not None else ())))
        around = Surroundings(
            network=self.places.network(source),
            locality=self.places.locality(source),
            services={name: each.ports for name, each in sorted(_by_name(joined), key=lambda pair: pair[0])},
            policies=(
                *(self._policies_of(source) if source.has_policies else ()),
                *((required.name,) if required is not None else ()),
            ),
            waypoint=enrolment.address,
            is_ready=self.index.is_ready(source),
            is_captured=self.captured(source) or (source.is_redirected and not source.is_host_network),
        )
        made = [compile_workload(source, around, self._settings)]
        services = {each.service.meta.ref: each.names for each in joined}
        limits = self.index.limits.of(source.namespace, source.labels, services)
        limited = compile_connection_limits(uid, source.node, limits)
        if limited is not None:
            made.append(limited)
        return made, tuple(notes)

    def enrolment_of(self, source: WorkloadSource) -> Enrolment:
        """Which waypoints connections to the workload's own address go through; looked up anew."""
        if not source.may_have_waypoint:
            return Enrolment()
        labels = self.places.namespace_labels(source.owner.namespace)
        enrolling = Enrolling(source.owner, source.labels, source.owner.namespace, labels, FOR_WORKLOADS)
        return find_waypoint(enrolling, self.index, self.places.mesh_network())

    def _requirement(
        self, source: WorkloadSource, own: Enrolment, joined: list[_Joined]
    ) -> tuple[Resource | None, tuple[Ref, ...]]:
        """The policy for `mycelia.io/waypoint-required`, and the Gateways that it depends on."""
        labels = self.places.namespace_labels(source.namespace)
        if not asks_whole(source, labels) and not any(asks(each.service.meta.labels) for each in joined):
            return None, ()
        serving = [
            Serving(each.service.meta.labels, each.ports, self.enrolment(each.service)) for each in joined
        ]
        made = requirement(Reached(source, labels, own, serving), self.index, self._settings)
        looked = [gateway for each in serving for gateway in each.enrolment.looked]
        return made, tuple(looked)

    def _policies_of(self, source: WorkloadSource) -> tuple[str, ...]:
        own = sorted(
            policy_key(policy)
            for ref in self.index.policy_selectors.matching(source.namespace, source.labels)
            if isinstance(policy := self.index.objects[ref], AuthorizationPolicy)
        )
        levels = self._policies.levels(source.namespace, self.index.own_peer(source))
        return (*own, *policy_keys(levels, self._settings))

    def _joined(self, source: WorkloadSource, notes: list[Note]) -> Iterator[_Joined]:
        """Services it is an endpoint of, with the ports that lead to it."""
        for ref in sorted(self._services_of(source)):
            service = self.index.service(ref)
            if service is None:
                continue
            names = tuple(
                name
                for host in self.index.hosts_of(service)
                if not source.hosts or host in source.hosts
                if self.index.owner_of(name := service_name(ref.namespace, host)) == ref
            )
            yield _Joined(service, names, self._ports(service, source, notes))

    def _services_of(self, source: WorkloadSource) -> set[Ref]:
        if source.joining is Joining.INLINE:
            return {source.owner}
        if source.joining is Joining.SLICE:
            ref = Ref(Kind.SERVICE.value, source.namespace, source.service)
            return {ref} if self._takes_slices(ref) else set()
        found = set(self.index.service_selectors.matching(source.namespace, source.labels))
        if source.joining is Joining.BY_POD_LABELS:
            for slice_ in self.index.slices_of_pod((source.namespace, source.name)):
                ref = Ref(Kind.SERVICE.value, slice_.meta.namespace, slice_.service)
                if self._takes_slices(ref) and self.index.is_named_by(slice_, source):
                    found.add(ref)
        return found

    def _takes_slices(self, ref: Ref) -> bool:
        """Slices of a service with a selector are copies of what the selector says already."""
        service = self.index.service(ref)
        return isinstance(service, Service) and not service.selector

    def _ports(self, service: Service | ServiceEntry, source: WorkloadSource, notes: list[Note]) -> PortPairs:
        if isinstance(service, ServiceEntry):
            return entry_ports(service, source)
        if source.joining is Joining.SLICE:
            return slice_ports(service, source.named_ports)
        if not service.selector:
            pairs: dict[int, int] = {}
            for slice_ in self.index.slices_of_pod((source.namespace, source.name)):
                if slice_.service == service.meta.name and self.index.is_named_by(slice_, source):
                    pairs.update(slice_ports(service, slice_.ports))
            return tuple(sorted(pairs.items()))
        ports, missing = service_ports(service, source)
        notes += [
            Note(
                source.owner,
                Reason.PORT_NOT_FOUND,
                f"has no port named {name}, which {service.meta.ref} targets; the port is left out here",
            )
            for name in missing
        ]
        return ports

    # -- shared --

    def _enrol(self, unit: _Unit, enrolling: Enrolling) -> Enrolment:
        enrolment = find_waypoint(enrolling, self.index, self.places.mesh_network())
        self._look(unit, enrolment.looked)
        return enrolment

    def _look(self, unit: _Unit, gateways: Iterable[Ref]) -> None:
        for before in self._looked.pop(unit, ()):
            held = self._lookers[before]
            held.discard(unit)
            if not held:
                del self._lookers[before]
        looked = tuple(dict.fromkeys(gateways))
        if looked:
            self._looked[unit] = looked
            for gateway in looked:
                self._lookers.setdefault(gateway, set()).add(unit)
