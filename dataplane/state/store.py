"""The mesh state of one process: what the control plane has announced, indexed for the questions of the
data path.

Invariants: the answers are a function of the resources held and of the order in which they last
arrived, never of the history before (a test compares with a rebuild from scratch). Applying one
resource touches only what it names. Differences from Istio's node proxy, both on the safe side:
endpoints of a service that goes away and comes back are still its endpoints, and an endpoint that was
unhealthy is used again as soon as health or the service's policy allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from dataplane.state.balance import EndpointSet
from dataplane.state.errors import ResourceRejected
from dataplane.state.model import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    WORKLOAD_TYPE,
    Service,
    Vip,
    Workload,
    decode_address,
    decode_workload,
    ip_number,
)
from dataplane.state.policy import Action, Policy, PolicyScope, decode_policy

_POD_MARK = "//Pod/"
_MAX_POLICY_SETS = 4096

# Called with the old workload (None: it is new) and the new one (None: it is gone).
WorkloadWatcher = Callable[[Workload | None, Workload | None], None]


class PolicySet:
    """The policies of one workload, sorted by what they do; `unknown` are keys that name no policy we
    have.
    """

    __slots__ = ("allow", "deny", "dry_allow", "dry_deny", "unknown")

    def __init__(self, policies: Iterable[Policy], unknown: Iterable[str]) -> None:
        by_kind: dict[tuple[Action, bool], list[Policy]] = {}
        for policy in policies:
            by_kind.setdefault((policy.action, policy.is_dry_run), []).append(policy)
        self.deny = tuple(by_kind.get((Action.DENY, False), ()))
        self.allow = tuple(by_kind.get((Action.ALLOW, False), ()))
        self.dry_deny = tuple(by_kind.get((Action.DENY, True), ()))
        self.dry_allow = tuple(by_kind.get((Action.ALLOW, True), ()))
        self.unknown = tuple(unknown)


class MeshState:
    """Workloads, services, endpoints and policies. Not thread-safe; reads are valid until the next
    `apply`.
    """

    def __init__(self, on_workload: WorkloadWatcher | None = None) -> None:
        self.generation = 0
        self.policy_generation = 0
        self._on_workload = on_workload
        self._workloads: dict[str, Workload] = {}
        self._by_ip: dict[tuple[str, str], Workload] = {}
        # Addresses that several workloads claim, in order of arrival; the best one is in _by_ip.
        self._contested: dict[tuple[str, str], list[Workload]] = {}
        self._by_name: dict[tuple[str, str], dict[str, Workload]] = {}
        self._by_hostname: dict[tuple[str, str], dict[str, Workload]] = {}
        self._services: dict[str, Service] = {}
        self._services_by_hostname: dict[str, dict[str, Service]] = {}
        self._services_by_vip: dict[tuple[str, str], dict[str, Service]] = {}
        self._ranges = _VipRanges()
        self._endpoints: dict[str, EndpointSet] = {}
        self._policies: dict[str, Policy] = {}
        self._scoped_policies: dict[str, dict[str, Policy]] = {}
        self._policy_sets: dict[tuple[str, tuple[str, ...]], PolicySet] = {}

    # --- changes ---

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
    ) -> dict[str, str]:
        """Apply one batch, removals after upserts; returns name -> reason of each resource refused.

        A refused resource leaves its last good version in place; the others of the batch are applied.
        """
        is_policy = type_url == AUTHORIZATION_TYPE
        if not is_policy and type_url not in (ADDRESS_TYPE, WORKLOAD_TYPE):
            return {name: f"unknown resource type {type_url}" for name, _ in upserts}
        rejected: dict[str, str] = {}
        is_changed = False
        for name, value in upserts:
            try:
                if is_policy:
                    self._put_policy(decode_policy(name, value))
                else:
                    self._put(decode_address(value) if type_url == ADDRESS_TYPE else decode_workload(value))
            except ResourceRejected as error:
                rejected[name] = error.text
            else:
                is_changed = True
        for name in removed:
            is_changed |= self._remove_policy(name) if is_policy else self._remove_address(name)
        if is_changed:
            self.generation += 1
            if is_policy:
                self.policy_generation += 1
                self._policy_sets.clear()
        return rejected

    def _put(self, resource: Workload | Service) -> None:
        if isinstance(resource, Workload):
            self._put_workload(resource)
        else:
            self._put_service(resource)

    def _put_workload(self, workload: Workload) -> None:
        old = self._workloads.pop(workload.uid, None)
        if old is not None:
            self._unindex_workload(old, keep_endpoints=workload.services)
        self._workloads[workload.uid] = workload
        if not workload.is_host_network:
            for address in workload.addresses:
                self._claim_address((workload.network, address), workload)
        self._by_name.setdefault((workload.namespace, workload.name), {})[workload.uid] = workload
        if workload.hostname:
            self._by_hostname.setdefault((workload.namespace, workload.hostname), {})[workload.uid] = workload
        for key in workload.services:
            endpoints = self._endpoints.get(key)
            if endpoints is None:
                endpoints = self._endpoints[key] = EndpointSet()
            endpoints.put(workload)
        if self._on_workload is not None:
            self._on_workload(old, workload)

    def _unindex_workload(
        self, workload: Workload, keep_endpoints: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        if not workload.is_host_network:
            for address in workload.addresses:
                self._release_address((workload.network, address), workload.uid)
        _discard(self._by_name, (workload.namespace, workload.name), workload.uid)
        if workload.hostname:
            _discard(self._by_hostname, (workload.namespace, workload.hostname), workload.uid)
        for key in workload.services:
            endpoints = self._endpoints[key]
            endpoints.remove(workload.uid)
            if not endpoints.workloads and key not in keep_endpoints:
                del self._endpoints[key]

    def _claim_address(self, key: tuple[str, str], workload: Workload) -> None:
        holder = self._by_ip.get(key)
        if holder is None:
            self._by_ip[key] = workload
            return
        claims = self._contested.setdefault(key, [holder])
        claims.append(workload)
        self._by_ip[key] = _best_claim(claims)

    def _release_address(self, key: tuple[str, str], uid: str) -> None:
        claims = self._contested.get(key)
        if claims is None:
            holder = self._by_ip.get(key)
            if holder is not None and holder.uid == uid:
                del self._by_ip[key]
            return
        claims[:] = [claim for claim in claims if claim.uid != uid]
        if len(claims) == 1:
            del self._contested[key]
        self._by_ip[key] = _best_claim(claims)

    def _put_service(self, service: Service) -> None:
        key = service.key
        self._remove_service(key)
        self._services[key] = service
        self._services_by_hostname.setdefault(service.hostname, {})[key] = service
        for vip in service.vips:
            if vip.length is None:
                self._services_by_vip.setdefault((vip.network, vip.address), {})[key] = service
            else:
                self._ranges.put(vip, key, service)

    def _remove_service(self, key: str) -> bool:
        service = self._services.pop(key, None)
        if service is None:
            return False
        _discard(self._services_by_hostname, service.hostname, key)
        for vip in service.vips:
            if vip.length is None:
                _discard(self._services_by_vip, (vip.network, vip.address), key)
            else:
                self._ranges.remove(vip, key)
        endpoints = self._endpoints.get(key)
        if endpoints is not None:
            endpoints.forget_tables()
        return True

    def _remove_address(self, name: str) -> bool:
        workload = self._workloads.pop(name, None)
        if workload is None:
            return self._remove_service(name)
        self._unindex_workload(workload)
        if self._on_workload is not None:
            self._on_workload(workload, None)
        return True

    def _put_policy(self, policy: Policy) -> None:
        self._remove_policy(policy.key)
        self._policies[policy.key] = policy
        if policy.scope is not PolicyScope.WORKLOAD_SELECTOR:
            namespace = "" if policy.scope is PolicyScope.GLOBAL else policy.namespace
            self._scoped_policies.setdefault(namespace, {})[policy.key] = policy

    def _remove_policy(self, key: str) -> bool:
        policy = self._policies.pop(key, None)
        if policy is None:
            return False
        if policy.scope is not PolicyScope.WORKLOAD_SELECTOR:
            _discard(
                self._scoped_policies, "" if policy.scope is PolicyScope.GLOBAL else policy.namespace, key
            )
        return True

    # --- questions ---

    @property
    def workloads(self) -> Mapping[str, Workload]:
        return MappingProxyType(self._workloads)

    @property
    def services(self) -> Mapping[str, Service]:
        return MappingProxyType(self._services)

    @property
    def policies(self) -> Mapping[str, Policy]:
        return MappingProxyType(self._policies)

    def workload_by_uid(self, uid: str) -> Workload | None:
        return self._workloads.get(uid)

    def workload_by_ip(self, network: str, ip: str) -> Workload | None:
        return self._by_ip.get((network, ip))

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        found = self._by_hostname.get((namespace, hostname))
        return next(iter(found.values())) if found else None

    def local_workload(self, name: str, namespace: str, service_account: str, node: str) -> Workload | None:
        """The workload of a pod on this node; an empty `node` makes every workload local (facts 3.1)."""
        for workload in self._by_name.get((namespace, name), {}).values():
            if workload.identity.service_account == service_account and (not node or workload.node == node):
                return workload
        return None

    def service_by_key(self, namespace: str, hostname: str) -> Service | None:
        return self._services.get(f"{namespace}/{hostname}")

    def service_by_hostname(self, hostname: str, namespace: str) -> Service | None:
        """The best service of that name: in `namespace`, then canonical, then first; private ones stay
        hidden.
        """
        return _best_service(self._services_by_hostname.get(hostname, {}).values(), namespace)

    def services_by_vip(self, network: str, ip: str) -> Sequence[Service]:
        """All services with exactly this address, in order of arrival."""
        return tuple(self._services_by_vip.get((network, ip), {}).values())

    def service_by_vip(self, network: str, ip: str, namespace: str) -> Service | None:
        """What a client in `namespace` means by `ip`: an exact address beats a range (facts 3.2)."""
        exact = self._services_by_vip.get((network, ip))
        if exact:
            service = _best_service(exact.values(), namespace)
            if service is not None:
                return service
        return self._ranges.find(network, ip, namespace) if self._ranges.is_used else None

    def services_by_range(self, network: str, ip: str) -> Iterator[Service]:
        """All services whose range includes the address, the longest prefix first."""
        return self._ranges.holding(network, ip)

    def endpoints(self, service: Service) -> EndpointSet | None:
        return self._endpoints.get(service.key)

    def staged_services(self) -> Iterator[tuple[str, EndpointSet]]:
        """Services that workloads name and that nobody has announced."""
        return ((key, endpoints) for key, endpoints in self._endpoints.items() if key not in self._services)

    def policies_of(self, workload: Workload) -> PolicySet:
        """Its namespace's policies, the global ones, and those it lists by key."""
        cache_key = (workload.namespace, workload.authorization_policies)
        found = self._policy_sets.get(cache_key)
        if found is None:
            if len(self._policy_sets) >= _MAX_POLICY_SETS:
                self._policy_sets.clear()
            found = self._policy_sets[cache_key] = self._collect_policies(*cache_key)
        return found

    def _collect_policies(self, namespace: str, listed: tuple[str, ...]) -> PolicySet:
        chosen = dict(self._scoped_policies.get("", {}))
        if namespace:
            chosen.update(self._scoped_policies.get(namespace, {}))
        unknown = []
        for key in listed:
            policy = self._policies.get(key)
            if policy is None:
                unknown.append(key)
            else:
                chosen[key] = policy
        return PolicySet(chosen.values(), unknown)


class _VipRanges:
    """CIDR service addresses: by network and family, by prefix length (longest first), by prefix."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, int], dict[int, dict[int, dict[str, Service]]]] = {}

    @property
    def is_used(self) -> bool:
        return bool(self._tables)

    @staticmethod
    def _place(vip: Vip) -> tuple[tuple[str, int], int, int]:
        bits, number = ip_number(vip.address)
        length = bits if vip.length is None else vip.length
        return (vip.network, bits), length, number >> (bits - length)

    def put(self, vip: Vip, key: str, service: Service) -> None:
        family, length, prefix = self._place(vip)
        table = self._tables.setdefault(family, {})
        if length not in table:
            table[length] = {}
            self._tables[family] = table = dict(sorted(table.items(), reverse=True))
        table[length].setdefault(prefix, {})[key] = service

    def remove(self, vip: Vip, key: str) -> None:
        family, length, prefix = self._place(vip)
        table = self._tables.get(family, {})
        prefixes = table.get(length)
        if prefixes is None:  # two spellings of one range in one service: gone with the first
            return
        _discard(prefixes, prefix, key)
        if not prefixes:
            del table[length]
            if not table:
                del self._tables[family]

    def holding(self, network: str, ip: str) -> Iterator[Service]:
        bits, number = ip_number(ip)
        for length, prefixes in self._tables.get((network, bits), {}).items():
            yield from prefixes.get(number >> (bits - length), {}).values()

    def find(self, network: str, ip: str, namespace: str) -> Service | None:
        """In the caller's namespace first, then the longest prefix, then canonical."""
        bits, number = ip_number(ip)
        best: Service | None = None
        for length, prefixes in self._tables.get((network, bits), {}).items():
            candidates = prefixes.get(number >> (bits - length))
            if not candidates:
                continue
            service = _best_service(candidates.values(), namespace)
            if service is None:
                continue
            if service.namespace == namespace:
                return service
            best = best or service
        return best


def _best_service(services: Iterable[Service], namespace: str) -> Service | None:
    """Visible to `namespace`; in it, then canonical, then first."""
    best: Service | None = None
    for service in services:
        if service.is_namespace_private and service.namespace != namespace:
            continue
        if service.namespace == namespace:
            if (
                best is None
                or best.namespace != namespace
                or (service.is_canonical and not best.is_canonical)
            ):
                best = service
        elif best is None or (best.namespace != namespace and service.is_canonical and not best.is_canonical):
            best = service
    return best


def _best_claim(claims: Sequence[Workload]) -> Workload:
    """Among workloads on one address: pods, then HBONE, then healthy, then the one that arrived last."""
    return max(enumerate(claims), key=_claim_rank)[1]


def _claim_rank(claim: tuple[int, Workload]) -> tuple[int, bool, int]:
    arrival, workload = claim
    return 2 * (_POD_MARK in workload.uid) + workload.is_hbone, workload.is_healthy, arrival


_Key = TypeVar("_Key")
_Member = TypeVar("_Member")


def _discard(index: dict[_Key, dict[str, _Member]], key: _Key, member: str) -> None:
    """Take one member out of a two-level index, and the level with it when it was the last."""
    members = index.get(key)
    if members is not None:
        members.pop(member, None)
        if not members:
            del index[key]
