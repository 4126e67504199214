"""Which DestinationRules hold for a host as a waypoint sees it (config-api 11). Pure.

Looked for in the waypoint's namespace, the service's and the root namespace; the first of them that has a
rule for the host decides, and in it the most specific host. Rules of one namespace for one host are put
together: subsets are joined, of policies for the whole host the first counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from config.objects import DestinationRule, MeshObject, Ref
from config.registry.delegation import is_exported
from config.registry.host_index import HostIndex, is_matched, resolve_host
from config.settings import MeshSettings
from config.traffic_policies import NO_POLICIES, PolicySet, Subset

Find = Callable[[Ref], MeshObject | None]


@dataclass(frozen=True, slots=True)
class Effective:
    """`rules` hold together, the oldest first; the policies are those of `leading`."""

    rules: tuple[Ref, ...] = ()
    leading: Ref | None = None
    policies: PolicySet = NO_POLICIES
    subsets: tuple[Subset, ...] = ()

    def has_subset(self, name: str) -> bool:
        return any(each.name == name for each in self.subsets)


NO_RULES: Final = Effective()


class RuleIndex:
    def __init__(self, settings: MeshSettings, find: Find) -> None:
        self._settings = settings
        self._find = find
        self._named = HostIndex()

    def put(self, ref: Ref, new: MeshObject | None) -> set[str]:
        """Files one; returns the hosts that it names and named."""
        rule = new if isinstance(new, DestinationRule) else None
        if rule is None or rule.is_for_workloads:
            return self._named.put(ref, ())
        return self._named.put(ref, (self.host_of(rule),))

    def host_of(self, rule: DestinationRule) -> str:
        return resolve_host(rule.host, rule.meta.namespace, self._settings.cluster_domain)

    def is_about(self, rule: DestinationRule, hostname: str) -> bool:
        return is_matched(self.host_of(rule), hostname)

    def effective(self, hostname: str, service: str, waypoint: str) -> Effective:
        """`service` and `waypoint` are namespaces."""
        root = self._settings.root_namespace
        # A root namespace's rules are for everybody: as a waypoint's own they would come too early.
        order = (service, root) if waypoint == root else (waypoint, service, root)
        for namespace in dict.fromkeys(order):
            found = self._in_namespace(hostname, namespace, waypoint)
            if found:
                return _merged(found)
        return NO_RULES

    def _in_namespace(self, hostname: str, namespace: str, waypoint: str) -> list[DestinationRule]:
        found: list[DestinationRule] = []
        specific = ""
        for pattern, ref in self._named.matching(hostname):
            rule = self._find(ref)
            if ref.namespace != namespace or not isinstance(rule, DestinationRule):
                continue
            if not is_exported(rule.export_to, namespace, waypoint):
                continue
            if found and pattern != specific:
                break
            found.append(rule)
            specific = pattern
        return sorted(found, key=lambda rule: rule.meta.age_key)


def _merged(rules: list[DestinationRule]) -> Effective:
    leading = next((rule for rule in rules if rule.has_policies), None)
    subsets: dict[str, Subset] = {}
    for rule in rules:
        for subset in rule.subsets:
            subsets.setdefault(subset.name, subset)
    return Effective(
        tuple(rule.meta.ref for rule in rules),
        leading.meta.ref if leading is not None else None,
        leading.policies if leading is not None else NO_POLICIES,
        tuple(subsets.values()),
    )
