"""Status conditions of XBackendTrafficPolicies and BackendTLSPolicies, for each target. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.compile.client_tls import problems, roots_of
from config.notes import Condition, Reason
from config.objects import (
    BackendPolicy,
    BackendTarget,
    BackendTlsPolicy,
    BackendTrafficPolicy,
    Ref,
    Service,
    ServiceEntry,
    TlsMaterial,
)
from config.registry.backend_policies import target_ref
from config.registry.registry import Registry
from config.traffic_policies import Tls


def of_backend_policy(registry: Registry, policy: BackendPolicy) -> Iterator[Condition]:
    ref = policy.meta.ref
    for target in policy.targets:
        reason, text = _verdict(registry, policy, target)
        parent = str(target_ref(policy, target)) + (f" section {target.section}" if target.section else "")
        yield Condition(ref, "Accepted", reason is Reason.ACCEPTED, reason, text, parent)
        if isinstance(policy, BackendTlsPolicy):
            reason, text = _resolved(registry, policy)
            yield Condition(ref, "ResolvedRefs", reason is Reason.RESOLVED_REFS, reason, text, parent)
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
    found = materials_of(registry, policy.tls)
    if not policy.tls.trusts_system and not roots_of(policy.tls, found):
        why = "; ".join(problems(policy.tls, found))
        return Reason.NO_VALID_CA, f"{why}: requests get 503 rather than go to whom nobody has verified"
    return Reason.ACCEPTED, f"holds{_reached(registry, service)} where no DestinationRule has tls"


def materials_of(registry: Registry, tls: Tls) -> dict[Ref, TlsMaterial]:
    """What is there of what is referred to."""
    held = {ref: registry.index.objects.get(ref) for ref in tls.refs}
    return {ref: each for ref, each in held.items() if isinstance(each, TlsMaterial)}


def _resolved(registry: Registry, policy: BackendTlsPolicy) -> tuple[Reason, str]:
    wrong = problems(policy.tls, materials_of(registry, policy.tls))
    if policy.tls.bad_refs:
        return Reason.INVALID_KIND, "; ".join(wrong)
    return (Reason.INVALID_CA_REF, "; ".join(wrong)) if wrong else (Reason.RESOLVED_REFS, "all are there")


def _reached(registry: Registry, service: Service | ServiceEntry) -> str:
    ref = service.meta.ref
    names = [f"{ref.namespace}/{host}" for host in registry.index.hosts_of(service)]
    is_reached = any(name in registry.treatment.reach for name in names)
    return "" if is_reached else ", once a waypoint sends there,"
