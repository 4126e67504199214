"""Whether the RegistrationPolicies of a namespace let a node register a workload. Pure; no means no."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from config.kinds.registration_policy import FORBIDDEN_LABELS
from config.objects import Kind, RegistrationPolicy
from config.registry.capture import Attached, Registration
from config.registry.registry import Registry


def refusal(
    node: str,
    attached: Attached,
    addresses: tuple[str, ...],
    registration: Registration,
    policies: Iterable[RegistrationPolicy],
) -> str:
    """Why the node may not register it; empty if it may. One policy must allow all of it."""
    if not addresses:
        return "it has no address: none is given, and none was found in its network namespace"
    for key in sorted(set(registration.labels) & FORBIDDEN_LABELS):
        return f"label {key} is never taken from a node"
    for address in addresses:
        if not _is_usable(address):
            return f"{address} is no address of a workload"
    reasons = [_refusal(node, attached, addresses, registration, policy) for policy in policies]
    if not reasons:
        return f"there is no RegistrationPolicy in namespace {attached.namespace}"
    return "" if "" in reasons else "; ".join(reasons)


def policies_of(namespace: str, registry: Registry) -> Iterator[RegistrationPolicy]:
    index = registry.index
    for ref in sorted(index.registration_policies(namespace)):
        found = index.objects[ref]
        assert isinstance(found, RegistrationPolicy)
        yield found


def _refusal(
    node: str,
    attached: Attached,
    addresses: Iterable[str],
    registration: Registration,
    policy: RegistrationPolicy,
) -> str:
    name = f"{Kind.REGISTRATION_POLICY.value} {policy.meta.namespace}/{policy.meta.name}"
    if not _matches(node, policy.nodes):
        return f"{name} does not list node {node}"
    if not _matches(attached.service_account, policy.accounts):
        return f"{name} does not list service account {attached.service_account}"
    for address in addresses:
        if not _is_within(address, policy.networks):
            return f"{name} lists no network with address {address}"
    if registration.network and not _matches(registration.network, policy.network_names):
        return f"{name} does not list the network name {registration.network}"
    for key, value in sorted(registration.labels.items()):
        if not _matches(value, policy.labels.get(key, ())):
            return f"{name} does not allow label {key}={value}"
    return ""


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(
        text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern for pattern in patterns
    )


def _is_within(address: str, networks: Iterable[str]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(each) for each in networks)


def _is_usable(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_multicast or found.is_unspecified or found.is_link_local)
