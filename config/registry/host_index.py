"""Host names as VirtualServices and DestinationRules write them, and what they match. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.objects import Ref

ANY_HOST = "*"


def resolve_host(host: str, namespace: str, cluster_domain: str) -> str:
    """A name without a dot is that of a Service in the namespace."""
    if "." in host or ":" in host or host == ANY_HOST:
        return host
    return f"{host}.{namespace}.svc.{cluster_domain}"


def specificity(pattern: str) -> tuple[bool, int]:
    """Sorts the more specific pattern first: whole names, then the longest wildcard."""
    return pattern.startswith("*"), -len(pattern)


def patterns_of(hostname: str) -> Iterator[str]:
    """All patterns that match a host name, the most specific first."""
    yield hostname
    labels = hostname.split(".")
    for start in range(1, len(labels)):
        pattern = "*." + ".".join(labels[start:])
        if pattern != hostname:
            yield pattern
    yield ANY_HOST


def is_matched(pattern: str, hostname: str) -> bool:
    if pattern in (ANY_HOST, hostname):
        return True
    return pattern.startswith("*.") and hostname.endswith(pattern[1:])


class HostIndex:
    """Objects by the patterns they name."""

    def __init__(self) -> None:
        self._named: dict[str, set[Ref]] = {}
        self._patterns: dict[Ref, frozenset[str]] = {}

    def put(self, ref: Ref, patterns: Iterable[str]) -> set[str]:
        """Files the patterns of an object in place of those it had; returns both."""
        before, after = self._patterns.pop(ref, frozenset()), frozenset(patterns)
        for pattern in before - after:
            self._named[pattern].discard(ref)
            if not self._named[pattern]:
                del self._named[pattern]
        for pattern in after - before:
            self._named.setdefault(pattern, set()).add(ref)
        if after:
            self._patterns[ref] = after
        return {*before, *after}

    def patterns(self, ref: Ref) -> frozenset[str]:
        return self._patterns.get(ref, frozenset())

    def matching(self, hostname: str) -> Iterator[tuple[str, Ref]]:
        """(pattern, object), the most specific pattern first."""
        for pattern in patterns_of(hostname):
            for ref in sorted(self._named.get(pattern, ())):
                yield pattern, ref

    def meant_by(self, patterns: Iterable[str]) -> set[Ref]:
        """Objects that name a host which one of the patterns matches."""
        found: set[Ref] = set()
        for pattern in patterns:
            if pattern.startswith("*"):
                for name, refs in self._named.items():
                    if is_matched(pattern, name):
                        found |= refs
            else:
                found |= self._named.get(pattern, set())
        return found
