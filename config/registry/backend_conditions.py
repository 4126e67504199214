"""Status conditions of XBackendTrafficPolicies and BackendTLSPolicies, for each target. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.notes import Condition, Reason
from config.objects import BackendPolicy, BackendTarget, BackendTrafficPolicy, Service, ServiceEntry
from config.registry.backend_policies import target_ref
from config.registry.registry import Registry


def of_backend_policy(registry: Registry, policy: BackendPolicy) -> Iterator[Condition]:
    ref = policy.meta.ref
    for target in policy.targets:
        reason, text = _verdict(registry, policy, target)
        parent = str(target_ref(policy, target)) + (f" section {target.section}" if target.section else "")
        yield Condition(ref, "Accepted", reason is Reason.ACCEPTED, reason, text, parent)
    if isinstance(policy, BackendTrafficPolicy) and policy.unsupported:
        text = f"{', '.join(policy.unsupported)} is not supported: it has no effect"
        yield Condition(ref, "PartiallyInvalid", is_true=True, reason=Reason.UNSUPPORTED_VALUE, message=text)


def _verdict(registry: Registry, policy: BackendPolicy, target: BackendTarget) -> tuple[Reason, str]:
    key = target_ref(policy, target)
    service = registry.index.service(key)
    if service is None:
        return Reason.TARGET_NOT_FOUND, f"there is no {key}"
    if target.section and target.section not in {port.name for port in service.ports}:
        return Reason.TARGET_NOT_FOUND, f"{key} has no port named {target.section}"
    oldest = registry.index.backend_policies.oldest(policy.meta.ref.kind, key, target.section)
    if oldest is not None and oldest is not policy:
        return Reason.SHADOWED, f"{oldest.meta.ref} is older and counts"
    if isinstance(policy, BackendTrafficPolicy):
        return (
            Reason.ACCEPTED,
            f"holds{_reached(registry, service)} where no DestinationRule has a retryBudget",
        )
    text = "TLS to backends is not supported: waypoints answer with 503 rather than send in plaintext"
    return Reason.UNSUPPORTED_VALUE, text


def _reached(registry: Registry, service: Service | ServiceEntry) -> str:
    ref = service.meta.ref
    names = [f"{ref.namespace}/{host}" for host in registry.index.hosts_of(service)]
    is_reached = any(name in registry.treatment.reach for name in names)
    return "" if is_reached else ", once a waypoint sends there,"
