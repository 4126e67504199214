"""Key sets of token issuers: who wants which, and what was fetched. Pure: fetching is config/jwks's.

A source is a URI, or `issuer:` and an issuer that says itself where its keys are (OpenID discovery).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from config.objects import Ref
from config.policy_rules import JwtRule

DISCOVERY: Final = "issuer:"


@dataclass(frozen=True, slots=True)
class KeySet:
    """`text` is the last good one; `problem` says why there is none, or no newer one."""

    text: str = ""
    problem: str = ""


def source_of(rule: JwtRule) -> str:
    """Empty: the keys are in the manifest."""
    if rule.jwks:
        return ""
    return rule.jwks_uri or DISCOVERY + rule.issuer


class KeySets:
    def __init__(self) -> None:
        self._wanted: dict[str, dict[Ref, float]] = {}  # source -> who wants it, and how long it waits
        self._of: dict[Ref, tuple[str, ...]] = {}
        self._held: dict[str, KeySet] = {}

    def want(self, policy: Ref, rules: Iterable[JwtRule]) -> None:
        """All that a policy needs from now on; nothing ends it."""
        sources = {source: rule.timeout_ms / 1000 for rule in rules if (source := source_of(rule))}
        for source, timeout_s in sources.items():
            self._wanted.setdefault(source, {})[policy] = timeout_s
        for source in self._of.pop(policy, ()):
            if source not in sources:
                users = self._wanted[source]
                del users[policy]
                if not users:
                    del self._wanted[source]
                    self._held.pop(source, None)
        if sources:
            self._of[policy] = tuple(sources)

    @property
    def wanted(self) -> Mapping[str, float]:
        """Source -> seconds that a fetch may take."""
        return {source: min(users.values()) for source, users in self._wanted.items()}

    def put(self, source: str, found: KeySet) -> set[Ref]:
        """Returns the policies that are to be compiled again."""
        if source not in self._wanted or self._held.get(source) == found:
            return set()
        self._held[source] = found
        return set(self._wanted[source])

    def of(self, rule: JwtRule) -> KeySet:
        source = source_of(rule)
        return self._held.get(source, KeySet()) if source else KeySet(rule.jwks)
