"""Is a connection allowed? (facts 7.1-7.4, authz-cases 8)

Order: an enforced DENY that matches, then a listed policy that is not known (ours, stricter than Istio's node
proxy: security fails closed), then "no ALLOW policies", then an ALLOW that matches, else denied.
Dry-run policies are evaluated only for their notes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.state.model import Workload
from dataplane.state.policy import Connection, Policy
from dataplane.state.store import MeshState, PolicySet

__all__ = ["Connection", "Verdict", "authorize"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`policy` is the key of the policy that decided, empty where none did; `reason` is empty when allowed.

    `dry_run` are notes about policies that are not enforced; `trace` is filled only when asked for.
    """

    is_allowed: bool
    policy: str = ""
    reason: str = ""
    dry_run: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()


_ALLOWED_WITHOUT_POLICY = Verdict(is_allowed=True)


def authorize(
    connection: Connection, destination: Workload, state: MeshState, *, is_traced: bool = False
) -> Verdict:
    """The verdict on `connection` to `destination`, the workload whose proxy asks."""
    policies = state.policies_of(destination)
    if is_traced:
        return _traced(connection, policies)
    dry_run = _dry_run_notes(connection, policies) if policies.dry_deny or policies.dry_allow else ()
    for policy in policies.deny:
        if policy.matches(connection):
            return _denied_by(policy, dry_run)
    if policies.unknown:
        return _unknown(policies, dry_run)
    if not policies.allow:
        return Verdict(is_allowed=True, dry_run=dry_run) if dry_run else _ALLOWED_WITHOUT_POLICY
    for policy in policies.allow:
        if policy.matches(connection):
            return Verdict(is_allowed=True, policy=policy.key, dry_run=dry_run)
    return Verdict(is_allowed=False, reason="allow policies exist, but none allowed", dry_run=dry_run)


def _denied_by(policy: Policy, dry_run: tuple[str, ...], trace: tuple[str, ...] = ()) -> Verdict:
    return Verdict(
        is_allowed=False,
        policy=policy.key,
        reason=f"explicitly denied by: {policy.key}",
        dry_run=dry_run,
        trace=trace,
    )


def _unknown(policies: PolicySet, dry_run: tuple[str, ...], trace: tuple[str, ...] = ()) -> Verdict:
    key = policies.unknown[0]
    return Verdict(
        is_allowed=False, policy=key, reason=f"unknown policy: {key}", dry_run=dry_run, trace=trace
    )


def _dry_run_notes(connection: Connection, policies: PolicySet) -> tuple[str, ...]:
    notes = [
        f"dry-run policy {policy.key} would deny"
        for policy in policies.dry_deny
        if policy.matches(connection)
    ]
    allowing = [policy.key for policy in policies.dry_allow if policy.matches(connection)]
    notes.extend(f"dry-run policy {key} would allow" for key in allowing)
    is_allowed_anyway = any(policy.matches(connection) for policy in policies.allow)
    if policies.dry_allow and not allowing and not is_allowed_anyway:
        notes.append("enforcing the dry-run ALLOW policies would deny: none allowed")
    return tuple(notes)


def _traced(connection: Connection, policies: PolicySet) -> Verdict:
    """The same decision, saying what was looked at."""
    trace: list[str] = []
    dry_run = _dry_run_notes(connection, policies)
    trace.extend(dry_run)
    for policy in policies.deny:
        is_match = policy.matches(connection)
        trace.extend(f"DENY {policy.key}: {line}" for line in policy.explain(connection))
        if is_match:
            return _denied_by(policy, dry_run, tuple(trace))
    if policies.unknown:
        trace.extend(f"listed policy {key} is not known" for key in policies.unknown)
        return _unknown(policies, dry_run, tuple(trace))
    if not policies.allow:
        trace.append("no ALLOW policies: allowed")
        return Verdict(is_allowed=True, dry_run=dry_run, trace=tuple(trace))
    for policy in policies.allow:
        is_match = policy.matches(connection)
        trace.extend(f"ALLOW {policy.key}: {line}" for line in policy.explain(connection))
        if is_match:
            return Verdict(is_allowed=True, policy=policy.key, dry_run=dry_run, trace=tuple(trace))
    return Verdict(
        is_allowed=False,
        reason="allow policies exist, but none allowed",
        dry_run=dry_run,
        trace=tuple(trace),
    )
