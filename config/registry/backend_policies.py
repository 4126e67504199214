"""XBackendTrafficPolicy and BackendTLSPolicy: what they say of a service below its DestinationRules. Pure.

They hold at every waypoint that sends to the service, whatever its namespace. Of several for one service, or
one port of it, the oldest counts. What a DestinationRule says comes before them, field by field; so a rule's
`tls` decides whether a BackendTLSPolicy has a say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from config.objects import (
    BackendPolicy,
    BackendTarget,
    BackendTlsPolicy,
    BackendTrafficPolicy,
    MeshObject,
    Ref,
    Service,
    ServiceEntry,
)
from config.traffic_policies import Budget, Policy, PolicySet, Tls

Find = Callable[[Ref], MeshObject | None]


@dataclass(frozen=True, slots=True)
class Said:
    """`port_tls` comes before `tls`."""

    budget: Budget | None = None
    tls: Tls | None = None
    port_tls: tuple[tuple[int, Tls], ...] = ()


def target_ref(policy: BackendPolicy, target: BackendTarget) -> Ref:
    return Ref(target.kind, policy.meta.namespace, target.name)


class BackendPolicies:
    """Policies by the services they target."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._on: dict[Ref, set[Ref]] = {}
        self._targets: dict[Ref, frozenset[Ref]] = {}

    def put(self, ref: Ref, new: MeshObject | None) -> set[Ref]:
        """Files one; returns the services that it targets and targeted."""
        after: frozenset[Ref] = frozenset()
        if isinstance(new, BackendTrafficPolicy | BackendTlsPolicy):
            after = frozenset(target_ref(new, each) for each in new.targets)
        before = self._targets.pop(ref, frozenset())
        for service in before:
            self._on[service].discard(ref)
            if not self._on[service]:
                del self._on[service]
        for service in after:
            self._on.setdefault(service, set()).add(ref)
        if after:
            self._targets[ref] = after
        return {*before, *after}

    def oldest(self, kind: str, service: Ref, section: str = "") -> BackendPolicy | None:
        """The one that counts for a service, or for one of its ports by name."""
        found = [
            policy
            for policy in self._policies(kind, service)
            if any(target_ref(policy, each) == service and each.section == section for each in policy.targets)
        ]
        return min(found, key=lambda policy: policy.meta.age_key, default=None)

    def _policies(self, kind: str, service: Ref) -> Iterator[BackendPolicy]:
        for ref in self._on.get(service, ()):
            policy = self._find(ref)
            if ref.kind == kind and isinstance(policy, BackendTrafficPolicy | BackendTlsPolicy):
                yield policy

    def said_of(self, service: Service | ServiceEntry) -> Said:
        ref = service.meta.ref
        traffic = self.oldest("XBackendTrafficPolicy", ref)
        whole = self.oldest("BackendTLSPolicy", ref)
        ports = [
            (port.number, policy.tls)
            for port in service.ports
            if port.name
            and isinstance(policy := self.oldest("BackendTLSPolicy", ref, port.name), BackendTlsPolicy)
        ]
        return Said(
            traffic.budget if isinstance(traffic, BackendTrafficPolicy) else None,
            whole.tls if isinstance(whole, BackendTlsPolicy) else None,
            tuple(ports),
        )


def below(policies: PolicySet, said: Said) -> PolicySet:
    """The rule's policies with what they leave unsaid."""
    general = policies.general
    general = replace(general, budget=general.budget or said.budget)
    ports = dict(policies.ports)
    for number, tls in said.port_tls:
        ports[number] = _with_tls(ports.get(number, general), tls)
    ports = {number: _with_tls(policy, said.tls) for number, policy in ports.items()}
    return PolicySet(_with_tls(general, said.tls), ports)


def _with_tls(policy: Policy, tls: Tls | None) -> Policy:
    return policy if policy.has_tls or tls is None else replace(policy, tls=tls, has_tls=True)
