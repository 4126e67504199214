"""Policies that several workloads list under one name: there while one of them does. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.compile.resource import Resource


class SharedPolicies:
    """Equal names mean equal resources."""

    def __init__(self) -> None:
        self._policies: dict[str, Resource] = {}
        self._holders: dict[str, set[str]] = {}
        self._held: dict[str, str] = {}  # uid -> name
        self._changed: set[str] = set()

    def hold(self, uid: str, policy: Resource | None) -> None:
        """`policy` is what the workload lists from now on."""
        name = policy.name if policy is not None else ""
        before = self._held.get(uid, "")
        if before == name:
            return
        if before:
            del self._held[uid]
            self._holders[before].discard(uid)
            self._changed.add(before)
        if policy is not None:
            self._held[uid] = name
            self._policies[name] = policy
            self._holders.setdefault(name, set()).add(uid)
            self._changed.add(name)

    def changed(self) -> Iterator[tuple[str, Resource | None]]:
        """What is other than at the last call, by name; None: nobody lists it any more."""
        for name in sorted(self._changed):
            if self._holders[name]:
                yield name, self._policies[name]
            else:
                del self._holders[name], self._policies[name]
                yield name, None
        self._changed.clear()
