"""The objects in force and what points at what, so that a change finds everything that depends on it.

`replace` files one object and adds to `Dirt` whatever must be compiled again: too much is allowed (equal
bytes are not sent), too little is not. Marks are made against the state on both sides of each step, so the
objects of a batch can come in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from config import keys, objects
from config.compile.authorization import is_for_node_proxies
from config.compile.service import service_name, takes_unready
from config.kinds.gateway import WAYPOINT_CLASS
from config.objects import (
    ROUTE_KINDS,
    Kind,
    MeshObject,
    PeerAuthentication,
    Ref,
    Service,
    ServiceEntry,
)
from config.registry import workload_source
from config.registry.backend_policies import BackendPolicies
from config.registry.host_index import is_matched
from config.registry.indexed_sets import discard, put_or_discard, put_or_discard_value
from config.registry.limit_index import LimitIndex
from config.registry.object_views import (
    WAYPOINT_SERVICE,
    addresses_of,
    endpoints_view,
    label_of,
    waypoint_service,
)
from config.registry.route_index import RouteIndex
from config.registry.rule_index import RuleIndex
from config.registry.selectors import EVERYWHERE, Labels, SelectorIndex
from config.registry.source_book import Place, SourceBook
from config.registry.virtual_index import VirtualIndex
from config.registry.waypoint_processes import ALL, WaypointWord, WaypointWords, gateway_of
from config.registry.waypoints import CLASS_REF, Replicas
from config.registry.workload_source import WorkloadSource
from config.settings import MeshSettings


@dataclass(slots=True)
class Dirt:
    """What is to be compiled again."""

    workloads: set[str] = field(default_factory=set)  # by uid
    services: set[Ref] = field(default_factory=set)
    policies: set[Ref] = field(default_factory=set)  # AuthorizationPolicy and PeerAuthentication
    gateways: set[Ref] = field(default_factory=set)  # whoever looked at one is to be compiled again
    is_gateway_class: bool = False  # ... or at any of them
    is_static_strict: bool = False
    objects: set[Ref] = field(default_factory=set)  # whatever was filed or taken away
    hosts: set[str] = field(default_factory=set)  # that a service had or has
    rule_hosts: set[str] = field(default_factory=set)  # hosts (or wildcards) with other DestinationRules
    # Sent again even if their bytes are the same: a node proxy has forgotten them.
    forced: set[str] = field(default_factory=set)


_ATTACHED: Final = frozenset(
    kind.value
    for kind in (
        Kind.REQUEST_AUTHENTICATION,
        Kind.RATE_LIMIT_POLICY,
        Kind.ENVOY_FILTER,
        Kind.FILTER_POLICY,
        Kind.TELEMETRY,
    )
)


class ObjectIndex:
    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self.objects: dict[Ref, MeshObject] = {}
        self._book = SourceBook()
        self.sources = self._book.sources
        self.service_selectors: SelectorIndex[Ref] = SelectorIndex()
        self.policy_selectors: SelectorIndex[Ref] = SelectorIndex()
        self.peer_selectors: SelectorIndex[Ref] = SelectorIndex()
        self.limits = LimitIndex(settings)
        self.claims: dict[str, set[Ref]] = {}  # service name -> the objects that want it
        self.hosts: dict[str, set[Ref]] = {}  # hostname -> the objects that want it, in any namespace
        self.peers: set[Ref] = set()
        self.routes = RouteIndex()
        self.virtual = VirtualIndex(settings.cluster_domain)
        self.rules = RuleIndex(settings, self.objects.get)
        self.backend_policies = BackendPolicies(self.objects.get)
        self._words = WaypointWords()
        # Address -> Services and ServiceEntries that name it themselves.
        self._services_at: dict[str, set[Ref]] = {}
        self._services_in: dict[str, set[Ref]] = {}
        self._slices_of_service: dict[Place, set[Ref]] = {}
        self._slices_of_pod: dict[Place, set[Ref]] = {}
        self._telemetries: dict[str, set[Ref]] = {}  # by namespace
        self._registration_policies: dict[str, set[Ref]] = {}  # by namespace
        self._general_peers: dict[str, set[Ref]] = {}  # without selector, by namespace

    # ---- questions ----

    @property
    def cluster_domain(self) -> str:
        return self._settings.cluster_domain

    def namespace(self, name: str) -> objects.Namespace | None:
        found = self.objects.get(Ref(Kind.NAMESPACE.value, "", name))
        return found if isinstance(found, objects.Namespace) else None

    def node(self, name: str) -> objects.Node | None:
        found = self.objects.get(Ref(Kind.NODE.value, "", name))
        return found if isinstance(found, objects.Node) else None

    def gateway(self, ref: Ref) -> objects.Gateway | None:
        found = self.objects.get(ref)
        return found if isinstance(found, objects.Gateway) else None

    def gateway_class(self) -> objects.GatewayClass | None:
        """The waypoints' own."""
        found = self.objects.get(CLASS_REF)
        return found if isinstance(found, objects.GatewayClass) else None

    def replicas(self, gateway: Ref) -> Replicas:
        sources = self.replica_sources(gateway)
        return Replicas(len(sources), sum(self.is_ready(source) for source in sources))

    def replica_sources(self, gateway: Ref) -> list[WorkloadSource]:
        uids = self._book.replicas.get((gateway.namespace, gateway.name), ())
        return [self.sources[uid] for uid in sorted(uids)]

    def word_of(self, source: WorkloadSource) -> WaypointWord | None:
        """What the node of a waypoint's workload says of it; None where it has no say."""
        place = gateway_of(source)
        return self._words.of(source, self.gateway(place)) if place is not None else None

    def is_ready(self, source: WorkloadSource) -> bool:
        word = self.word_of(source)
        return source.is_ready and (word is None or word.is_ready)

    def is_waypoint(self, source: WorkloadSource) -> bool:
        """Whether the workload is a replica of a waypoint; also while its Gateway is not there (yet)."""
        ref = gateway_of(source)
        gateway = self.gateway(ref) if ref is not None else None
        return ref is not None and (gateway is None or gateway.class_name == WAYPOINT_CLASS)

    def waypoint_accounts(self, gateway: Ref) -> set[str]:
        """The service accounts that a waypoint runs under: its workloads', else what its Gateway says."""
        found = self.gateway(gateway)
        said = found.meta.annotations.get(keys.GATEWAY_ACCOUNT) if found is not None else None
        accounts = {source.service_account for source in self.replica_sources(gateway)}
        return accounts or {said or gateway.name}

    def waypoint_nodes(self, namespace: str, name: str) -> set[str]:
        return {self.sources[uid].node for uid in self._book.replicas.get((namespace, name), ())}

    def waypoint_hostname(self, gateway: Ref) -> str:
        return f"{gateway.name}.{gateway.namespace}.svc.{self._settings.cluster_domain}"

    def service(self, ref: Ref) -> Service | ServiceEntry | None:
        found = self.objects.get(ref)
        return found if isinstance(found, Service | ServiceEntry) else None

    def sources_at(self, namespace: str, name: str) -> list[WorkloadSource]:
        """Pods before WorkloadEntries."""
        return [self.sources[uid] for uid in sorted(self._book.by_name.get((namespace, name), ()))]

    def sources_as(self, namespace: str, service_account: str) -> Iterator[WorkloadSource]:
        return (self.sources[uid] for uid in self._book.by_account.get((namespace, service_account), ()))

    def sources_in(self, namespace: str) -> Iterator[WorkloadSource]:
        return (self.sources[uid] for uid in sorted(self._book.by_namespace.get(namespace, ())))

    def sources_on(self, node: str) -> Iterable[str]:
        return self._book.by_node.get(node, ())

    def slices_of_pod(self, place: Place) -> Iterator[objects.EndpointSlice]:
        for ref in sorted(self._slices_of_pod.get(place, ())):
            found = self.objects[ref]
            assert isinstance(found, objects.EndpointSlice)
            yield found

    def is_any_selected(self, place: str, selector: Labels) -> bool:
        """Whether a selector of a namespace (empty: of all) finds a workload."""
        return any(True for _ in self._book.labels.selected(place, selector))

    def is_named_by(self, slice_: objects.EndpointSlice, source: WorkloadSource) -> bool:
        """Whether the slice means this very Pod, and not a former one of that name."""
        place = (source.namespace, source.name)
        return slice_.meta.namespace == source.namespace and any(
            endpoint.pod == place and self._is_pod(place, endpoint.pod_uid) for endpoint in slice_.endpoints
        )

    def telemetries(self, namespace: str) -> Iterable[Ref]:
        return self._telemetries.get(namespace, ())

    def registration_policies(self, namespace: str) -> Iterable[Ref]:
        return self._registration_policies.get(namespace, ())

    def general_peer(self, namespace: str) -> PeerAuthentication | None:
        """The oldest PeerAuthentication of a namespace that has no selector."""
        return self._oldest_peer(self._general_peers.get(namespace, ()))

    def own_peer(self, source: WorkloadSource) -> PeerAuthentication | None:
        """The oldest one whose selector picks the workload."""
        return self._oldest_peer(self.peer_selectors.matching(source.namespace, source.labels))

    def _oldest_peer(self, refs: Iterable[Ref]) -> PeerAuthentication | None:
        found = [peer for ref in refs if isinstance(peer := self.objects[ref], PeerAuthentication)]
        return min(found, key=lambda peer: peer.meta.age_key, default=None)

    def owner_of(self, name: str) -> Ref | None:
        """Who has a service name: a Service before any ServiceEntry, that before a waypoint's own; then
        the oldest."""
        return min(self.claims.get(name, ()), key=self._claim_key, default=None)

    def canonical_entry(self, hostname: str) -> Ref | None:
        """The object that a hostname means first, over all namespaces."""
        return min(self.hosts.get(hostname, ()), key=self._claim_key, default=None)

    def is_address_of_service(self, address: str) -> bool:
        """Whether a Kubernetes Service has the address; an entry on it is second to that Service."""
        return any(ref.kind == Kind.SERVICE.value for ref in self._services_at.get(address, ()))

    def _claim_key(self, ref: Ref) -> tuple[bool, bool, object, Ref]:
        age = self.objects[ref].meta.age_key
        return ref.kind != Kind.SERVICE.value, ref.kind == WAYPOINT_SERVICE, age, ref

    def hosts_of(self, service: MeshObject | None) -> tuple[str, ...]:
        """The hostnames that the data plane is told of."""
        match service:
            case Service(is_external_name=False, meta=meta):
                return (f"{meta.name}.{meta.namespace}.svc.{self._settings.cluster_domain}",)
            case ServiceEntry(hosts=hosts, resolution=resolution):
                return () if resolution is objects.Resolution.DYNAMIC_DNS else hosts
            case _:
                return ()

    def members(self, ref: Ref, service: MeshObject | None) -> set[str]:
        """Uids of all that serves the service, or did with this selector."""
        if isinstance(service, ServiceEntry):
            inline = self._book.by_owner.get(ref, ())
            return {*inline, *self._book.labels.selected(ref.namespace, service.selector)}
        if not isinstance(service, Service):
            return set()
        found = set(self._book.labels.selected(ref.namespace, service.selector))
        for slice_ref in self._slices_of_service.get((ref.namespace, ref.name), ()):
            found |= self._slice_members(slice_ref)
        return found

    def _slice_members(self, ref: Ref) -> set[str]:
        found = set(self._book.by_owner.get(ref, ()))
        slice_ = self.objects.get(ref)
        if isinstance(slice_, objects.EndpointSlice):
            for endpoint in slice_.endpoints:
                if endpoint.pod is not None:
                    found |= self._book.by_name.get(endpoint.pod, set())
        return found

    # ---- changes ----

    def waypoints_said(self, node: str, words: Mapping[Place, WaypointWord], dirt: Dirt) -> None:
        """Takes all that a node says of the waypoints that it runs."""
        changed = self._words.said(node, words)
        for uid in self._book.by_node.get(node, ()):
            source = self.sources[uid]
            if gateway_of(source) and (ALL in changed or (source.namespace, source.name) in changed):
                dirt.workloads.add(uid)
                self._waypoint_changed(source, dirt)

    def replace(self, ref: Ref, new: MeshObject | None, dirt: Dirt) -> None:
        """Files `new` in the place of what `ref` named; None removes it."""
        old = self.objects.get(ref)
        if old is None and new is None:
            return
        dirt.objects.add(ref)
        match ref.kind:
            case Kind.SERVICE.value | Kind.SERVICE_ENTRY.value | "WaypointService":
                self._replace_service(ref, old, new, dirt)
            case Kind.GATEWAY.value:
                self._file(ref, new)
                dirt.gateways.add(ref)
                self.replace(Ref(WAYPOINT_SERVICE, ref.namespace, ref.name), waypoint_service(new), dirt)
            case Kind.GATEWAY_CLASS.value:
                self._file(ref, new)
                dirt.is_gateway_class = dirt.is_gateway_class or ref == CLASS_REF
            case kind if kind in ROUTE_KINDS:
                self._file(ref, new)
                dirt.services |= self.routes.put(ref, new)
            case Kind.VIRTUAL_SERVICE.value:
                self._file(ref, new)
                dirt.services |= self.services_named(self.virtual.put(ref, new))
            case Kind.DESTINATION_RULE.value:
                self._file(ref, new)
                self._rules_changed(self.rules.put(ref, new), dirt)
            case Kind.BACKEND_TRAFFIC_POLICY.value | Kind.BACKEND_TLS_POLICY.value:
                self._file(ref, new)
                for service in self.backend_policies.put(ref, new):
                    dirt.rule_hosts.update(self.hosts_of(self.objects.get(service)))
            case Kind.ENDPOINT_SLICE.value:
                self._replace_slice(ref, old, new, dirt)
            case Kind.AUTHORIZATION_POLICY.value:
                self._replace_policy(ref, old, new, dirt)
            case kind if kind in _ATTACHED:
                self._replace_attached(ref, old, new, dirt)
            case Kind.PEER_AUTHENTICATION.value:
                self._replace_peer(ref, old, new, dirt)
            case _:
                self._file(ref, new)
                self._replace_simple(ref, old, new, dirt)

    def _file(self, ref: Ref, new: MeshObject | None) -> None:
        if new is None:
            self.objects.pop(ref, None)
        else:
            self.objects[ref] = new

    def _replace_simple(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        match ref.kind:
            case Kind.NAMESPACE.value:
                self._namespace_changed(ref.name, old, new, dirt)
            case Kind.NODE.value:
                dirt.workloads |= self._book.by_node.get(ref.name, set())
            case Kind.POD.value:
                is_known = isinstance(new, objects.Pod)
                self._put_sources(
                    ref,
                    workload_source.of_pod(new, self._settings) if isinstance(new, objects.Pod) else [],
                    dirt,
                )
                had = isinstance(old, objects.Pod)
                if had != is_known or (old and new and old.meta.uid != new.meta.uid):
                    for slice_ref in list(self._slices_of_pod.get((ref.namespace, ref.name), ())):
                        self._put_slice_sources(slice_ref, dirt)
            case Kind.WORKLOAD_ENTRY.value:
                made = (
                    workload_source.of_workload_entry(new, self._settings)
                    if isinstance(new, objects.WorkloadEntry)
                    else []
                )
                self._put_sources(ref, made, dirt)
            case Kind.REGISTRATION_POLICY.value:
                put_or_discard(self._registration_policies, ref.namespace, ref, is_there=new is not None)
            case Kind.MESH_CONFIG.value:
                dirt.policies.add(ref)
            case _:
                pass  # ServiceAccounts and ReferenceGrants matter to nobody here

    def _rules_changed(self, hosts: set[str], dirt: Dirt) -> None:
        """Other policies, and perhaps other subsets to send to."""
        dirt.rule_hosts |= hosts
        dirt.services |= self.services_named(self.virtual.hosts_that_send_to(hosts))

    def services_named(self, patterns: Iterable[str]) -> set[Ref]:
        """Whoever wants a host that one of these names or wildcards matches."""
        found: set[Ref] = set()
        for pattern in patterns:
            if not pattern.startswith("*"):
                found |= self.hosts.get(pattern, set())
                continue
            for host, refs in self.hosts.items():
                if is_matched(pattern, host):
                    found |= refs
        return found

    def _namespace_changed(
        self, name: str, old: MeshObject | None, new: MeshObject | None, dirt: Dirt
    ) -> None:
        if old and new and (old.meta.labels, old.meta.annotations) == (new.meta.labels, new.meta.annotations):
            return
        dirt.workloads |= self._book.by_namespace.get(name, set())
        dirt.services |= self._services_in.get(name, set())
        is_root = name == self._settings.root_namespace
        if is_root and label_of(old, keys.NETWORK) != label_of(new, keys.NETWORK):
            dirt.workloads.update(self.sources)
            dirt.services.update(*self._services_in.values())

    def _replace_service(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        names = {service_name(ref.namespace, host) for each in (old, new) for host in self.hosts_of(each)}
        owners = {name: self.owner_of(name) for name in names}
        hosts = {host for each in (old, new) for host in self.hosts_of(each)}
        dirt.hosts |= hosts
        before = self.members(ref, old)
        for host in self.hosts_of(old):
            discard(self.claims, service_name(ref.namespace, host), ref)
            discard(self.hosts, host, ref)
        addresses = {address for each in (old, new) for address in addresses_of(each)}
        for address in addresses_of(old):
            discard(self._services_at, address, ref)
        self._file(ref, new)
        for address in addresses_of(new):
            self._services_at.setdefault(address, set()).add(ref)
        for address in addresses if ref.kind == Kind.SERVICE.value else ():
            dirt.services |= self._services_at.get(address, set())
        for host in self.hosts_of(new):
            self.claims.setdefault(service_name(ref.namespace, host), set()).add(ref)
            self.hosts.setdefault(host, set()).add(ref)
        put_or_discard(self._services_in, ref.namespace, ref, is_there=new is not None)
        self.service_selectors.put(ref, ref.namespace, self._selector_of(new))
        if ref.kind == Kind.SERVICE_ENTRY.value:
            made = (
                workload_source.of_service_entry(new, self._settings) if isinstance(new, ServiceEntry) else []
            )
            self._put_sources(ref, made, dirt)
        dirt.services.add(ref)
        dirt.services |= self.routes.users_of(ref, hosts)
        dirt.services |= self.services_named(self.virtual.hosts_that_send_to(hosts))
        for host in hosts:
            dirt.services |= {
                each for each in self.hosts.get(host, ()) if isinstance(self.objects[each], ServiceEntry)
            }
        if endpoints_view(old) != endpoints_view(new):
            dirt.workloads |= before | self.members(ref, new)
        self._ownership_changed(owners, dirt)
        self._health_policy_changed(ref, old, new, dirt)

    def _selector_of(self, service: MeshObject | None) -> dict[str, str]:
        if isinstance(service, Service) and not service.is_external_name:
            return dict(service.selector)
        return dict(service.selector) if isinstance(service, ServiceEntry) else {}

    def _ownership_changed(self, owners: dict[str, Ref | None], dirt: Dirt) -> None:
        for name, before in owners.items():
            if before == self.owner_of(name):
                continue
            for claimant in self.claims.get(name, ()):
                dirt.services.add(claimant)
                dirt.workloads |= self.members(claimant, self.objects[claimant])

    def _health_policy_changed(
        self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt
    ) -> None:
        """A node proxy drops unready endpoints for good: it must hear of them again when they count."""
        if isinstance(old, Service) and isinstance(new, Service) and takes_unready(new) > takes_unready(old):
            unready = {uid for uid in self.members(ref, new) if not self.sources[uid].is_ready}
            dirt.workloads |= unready
            dirt.forced |= unready

    def _replace_slice(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        dirt.workloads |= self._slice_members(ref)
        if isinstance(old, objects.EndpointSlice):
            discard(self._slices_of_service, (ref.namespace, old.service), ref)
            for endpoint in old.endpoints:
                if endpoint.pod is not None:
                    discard(self._slices_of_pod, endpoint.pod, ref)
        self._file(ref, new)
        if isinstance(new, objects.EndpointSlice):
            self._slices_of_service.setdefault((ref.namespace, new.service), set()).add(ref)
            for endpoint in new.endpoints:
                if endpoint.pod is not None:
                    self._slices_of_pod.setdefault(endpoint.pod, set()).add(ref)
        self._put_slice_sources(ref, dirt)
        dirt.workloads |= self._slice_members(ref)

    def _put_slice_sources(self, ref: Ref, dirt: Dirt) -> None:
        slice_ = self.objects.get(ref)
        made = (
            workload_source.of_slice(slice_, self._settings, self._is_pod)
            if isinstance(slice_, objects.EndpointSlice)
            else []
        )
        self._put_sources(ref, made, dirt)

    def _is_pod(self, place: Place, uid: str) -> bool:
        pod = self.objects.get(Ref(Kind.POD.value, *place))
        return pod is not None and (not uid or not pod.meta.uid or pod.meta.uid == uid)

    def _replace_policy(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        dirt.policies.add(ref)
        self._file(ref, new)
        before, after = self._attachment(old), self._attachment(new)
        if before == after:
            return
        place = EVERYWHERE if ref.namespace == self._settings.root_namespace else ref.namespace
        for selector in (before, after):
            dirt.workloads |= set(self._book.labels.selected(place, selector))
        self.policy_selectors.put(ref, place, after)

    def _replace_attached(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        self._file(ref, new)
        dirt.policies.add(ref)
        dirt.workloads |= self._limited(old) | self._limited(new)
        self.limits.put(ref, new)
        if ref.kind == Kind.TELEMETRY.value:
            # Which of its namespace's is the oldest may be another one now.
            put_or_discard(self._telemetries, ref.namespace, ref, is_there=new is not None)
            dirt.policies |= self._telemetries.get(ref.namespace, set())

    def _limited(self, policy: MeshObject | None) -> set[str]:
        """The workloads whose connections it limits."""
        if not isinstance(policy, objects.RateLimitPolicy) or not policy.connections:
            return set()
        ref = policy.meta.ref
        if policy.targets:
            found = (self.members(each, self.objects.get(each)) for each in self.limits.services(policy))
            return set().union(*found)
        if policy.selector:
            return set(self._book.labels.selected(self.limits.place(ref), policy.selector))
        if ref.namespace == self._settings.root_namespace:
            return set(self.sources)
        return set(self._book.by_namespace.get(ref.namespace, set()))

    def _attachment(self, policy: MeshObject | None) -> dict[str, str]:
        """The selector by which workloads list the policy; empty if they do not."""
        if isinstance(policy, objects.AuthorizationPolicy) and is_for_node_proxies(policy, self._settings):
            return dict(policy.selector)
        return {}

    def _replace_peer(self, ref: Ref, old: MeshObject | None, new: MeshObject | None, dirt: Dirt) -> None:
        dirt.is_static_strict = True
        dirt.policies.add(ref)
        is_root = ref.namespace == self._settings.root_namespace
        self._file(ref, new)
        put_or_discard_value(self.peers, ref, is_there=new is not None)
        for each in (old, new):
            if isinstance(each, PeerAuthentication) and not each.selector:
                inside = self._book.by_namespace.get(ref.namespace, set())
                dirt.workloads |= set(self.sources) if is_root else inside
                dirt.policies |= {peer for peer in self.peers if is_root or peer.namespace == ref.namespace}
            elif isinstance(each, PeerAuthentication) and not is_root:
                dirt.workloads |= set(self._book.labels.selected(ref.namespace, each.selector))
        is_general = isinstance(new, PeerAuthentication) and not new.selector
        put_or_discard(self._general_peers, ref.namespace, ref, is_there=is_general)
        selects = isinstance(new, PeerAuthentication) and not is_root
        selector = new.selector if isinstance(new, PeerAuthentication) and selects else {}
        self.peer_selectors.put(ref, ref.namespace, selector)

    def _put_sources(self, owner: Ref, made: list[WorkloadSource], dirt: Dirt) -> None:
        for source in self._book.put(owner, made):
            dirt.workloads.add(source.uid)
            self._waypoint_changed(source, dirt)

    def _waypoint_changed(self, source: WorkloadSource, dirt: Dirt) -> None:
        ref = gateway_of(source)
        if ref is not None:
            dirt.gateways.add(ref)
            dirt.services.add(Ref(WAYPOINT_SERVICE, ref.namespace, ref.name))
