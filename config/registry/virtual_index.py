"""Which VirtualServices name which hosts, send to which, and take over whose routes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.objects import Kind, MeshObject, Ref, VirtualService
from config.registry.host_index import HostIndex, resolve_host
from config.virtual_routes import Delegate, HttpPart, Target


class VirtualIndex:
    def __init__(self, cluster_domain: str) -> None:
        self._domain = cluster_domain
        self._named = HostIndex()  # what they are routes of
        self._targets = HostIndex()  # where they send
        self._delegators: dict[Ref, set[Ref]] = {}  # delegate -> who takes its routes over
        self._delegates: dict[Ref, frozenset[Ref]] = {}

    def put(self, ref: Ref, new: MeshObject | None) -> set[str]:
        """Files one; returns the hosts whose routes may be others now."""
        virtual = new if isinstance(new, VirtualService) else None
        hosts = self._named.put(ref, self._hosts(virtual))
        self._targets.put(ref, self._target_hosts(virtual))
        after = frozenset(delegates_of(virtual)) if virtual is not None else frozenset[Ref]()
        for delegate in self._delegates.pop(ref, frozenset()):
            self._delegators[delegate].discard(ref)
            if not self._delegators[delegate]:
                del self._delegators[delegate]
        for delegate in after:
            self._delegators.setdefault(delegate, set()).add(ref)
        if after:
            self._delegates[ref] = after
        for root in self._delegators.get(ref, ()):
            hosts |= self._named.patterns(root)
        return hosts

    def on(self, hostname: str) -> Iterator[tuple[str, Ref]]:
        """(pattern, VirtualService) of a host, the most specific pattern first."""
        return self._named.matching(hostname)

    def hosts(self, ref: Ref) -> frozenset[str]:
        return self._named.patterns(ref)

    def delegators(self, ref: Ref) -> list[Ref]:
        return sorted(self._delegators.get(ref, ()))

    def hosts_that_send_to(self, patterns: Iterable[str]) -> set[str]:
        """The hosts whose routes lead to hosts of these patterns."""
        found: set[str] = set()
        for ref in self._targets.meant_by(patterns):
            found |= self._named.patterns(ref)
            for root in self._delegators.get(ref, ()):
                found |= self._named.patterns(root)
        return found

    def _hosts(self, virtual: VirtualService | None) -> Iterator[str]:
        if virtual is not None and virtual.is_for_mesh:
            for host in virtual.hosts:
                yield resolve_host(host, virtual.meta.namespace, self._domain)

    def _target_hosts(self, virtual: VirtualService | None) -> Iterator[str]:
        if virtual is not None:
            for target in targets_of(virtual):
                yield resolve_host(target.host, virtual.meta.namespace, self._domain)


def delegate_ref(delegate: Delegate) -> Ref:
    return Ref(Kind.VIRTUAL_SERVICE.value, delegate.namespace, delegate.name)


def delegates_of(virtual: VirtualService) -> Iterator[Ref]:
    if virtual.hosts:
        for part in virtual.http:
            if part.delegate is not None:
                yield delegate_ref(part.delegate)


def targets_of(virtual: VirtualService) -> Iterator[Target]:
    """All that it sends to, mirrors included."""
    for part in virtual.http:
        yield from http_targets(part)
    for stream in (*virtual.tls, *virtual.tcp):
        for each in stream.targets:
            yield each.target


def http_targets(part: HttpPart) -> Iterator[Target]:
    for each in part.targets:
        yield each.target
    for mirror in part.mirrors or ():
        yield mirror.target
