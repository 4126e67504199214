"""Which RateLimitPolicies limit connections to which workloads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from config.objects import Kind, MeshObject, RateLimitPolicy, Ref
from config.registry.selectors import EVERYWHERE, Labels, SelectorIndex
from config.settings import MeshSettings


class LimitIndex:
    """Policies with `connections`, by what they are about."""

    def __init__(self, settings: MeshSettings) -> None:
        self._root = settings.root_namespace
        self._policies: dict[Ref, RateLimitPolicy] = {}
        self._selectors: SelectorIndex[Ref] = SelectorIndex()
        self._whole: dict[str, set[Ref]] = {}  # by namespace, or EVERYWHERE
        self._on: dict[Ref, set[Ref]] = {}  # service -> policies

    def put(self, ref: Ref, policy: MeshObject | None) -> None:
        self._remove(ref)
        if not isinstance(policy, RateLimitPolicy) or not policy.connections:
            return
        self._policies[ref] = policy
        for service in self.services(policy):
            self._on.setdefault(service, set()).add(ref)
        if policy.selector:
            self._selectors.put(ref, self.place(ref), policy.selector)
        elif not policy.targets:
            self._whole.setdefault(self.place(ref), set()).add(ref)

    def _remove(self, ref: Ref) -> None:
        old = self._policies.pop(ref, None)
        if old is None:
            return
        self._selectors.remove(ref)
        for service in self.services(old):
            self._on.get(service, set()).discard(ref)
        self._whole.get(self.place(ref), set()).discard(ref)

    def place(self, ref: Ref) -> str:
        """Where its selector looks."""
        return EVERYWHERE if ref.namespace == self._root else ref.namespace

    @staticmethod
    def services(policy: RateLimitPolicy) -> tuple[Ref, ...]:
        kinds = (Kind.SERVICE.value, Kind.SERVICE_ENTRY.value)
        namespace = policy.meta.namespace
        return tuple(Ref(each.kind, namespace, each.name) for each in policy.targets if each.kind in kinds)

    def of(
        self, namespace: str, labels: Labels, services: Mapping[Ref, Iterable[str]]
    ) -> Iterator[tuple[RateLimitPolicy, tuple[str, ...]]]:
        """In order. `services`: those that the workload is an endpoint of, with their resource names."""
        if not self._policies:
            return
        found: dict[Ref, set[str]] = {}
        for service, names in services.items():
            for ref in self._on.get(service, ()):
                found.setdefault(ref, set()).update(names)
        for place in (namespace, EVERYWHERE):
            found.update((ref, set()) for ref in self._whole.get(place, ()))
        found.update((ref, set()) for ref in self._selectors.matching(namespace, labels))
        for ref in sorted(found):
            yield self._policies[ref], tuple(sorted(found[ref]))
