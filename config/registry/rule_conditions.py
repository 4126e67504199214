"""Status conditions of DestinationRules: where they hold, and what in them has no effect. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.compile.client_tls import problems
from config.compile.destinations import unsupported_priority
from config.notes import Condition, Reason
from config.objects import DestinationRule, Ref
from config.registry.backend_conditions import materials_of
from config.registry.registry import Registry
from config.registry.rule_index import Effective
from config.traffic_policies import Policy, PolicySet

_MAX_NAMED = 10


def of_destination_rule(registry: Registry, rule: DestinationRule) -> Iterator[Condition]:
    ref = rule.meta.ref
    if rule.is_for_workloads:
        text = "workloadSelector: rules for certain clients are for sidecars; it applies to nothing here"
        yield Condition(ref, "Accepted", is_true=False, reason=Reason.UNSUPPORTED_VALUE, message=text)
        return
    verdicts: dict[tuple[Reason, str], list[str]] = {}
    for name, service in _services(registry, rule):
        for verdict in _verdicts(registry, rule, name):
            verdicts.setdefault(verdict, []).append(str(service))
    if not verdicts:
        text = f"no service has the host {registry.index.rules.host_of(rule)}"
        yield Condition(ref, "Accepted", is_true=False, reason=Reason.NO_PARENT, message=text)
    for (reason, text), services in verdicts.items():
        is_true = reason is Reason.ACCEPTED
        yield Condition(ref, "Accepted", is_true, reason, f"{_named(services)}: {text}")
    problems = list(_problems(registry, rule))
    if problems:
        text = "; ".join(problems)
        yield Condition(ref, "PartiallyInvalid", is_true=True, reason=Reason.UNSUPPORTED_VALUE, message=text)


def _named(services: list[str]) -> str:
    unique = list(dict.fromkeys(services))
    more = f" and {len(unique) - _MAX_NAMED} more" if len(unique) > _MAX_NAMED else ""
    return f"{', '.join(unique[:_MAX_NAMED])}{more}"


def _services(registry: Registry, rule: DestinationRule) -> Iterator[tuple[str, Ref]]:
    """(name in the address book, owner) of all that the host means."""
    index = registry.index
    host = index.rules.host_of(rule)
    for ref in sorted(index.services_named([host])):
        for hostname in index.hosts_of(index.service(ref)):
            name = f"{ref.namespace}/{hostname}"
            if index.rules.is_about(rule, hostname) and index.owner_of(name) == ref:
                yield name, ref


def _verdicts(registry: Registry, rule: DestinationRule, name: str) -> Iterator[tuple[Reason, str]]:
    """As the waypoints of each namespace see it."""
    namespace, _, hostname = name.partition("/")
    reached = registry.treatment.reach.waypoints(name)
    if not reached:
        yield Reason.WAITING_FOR_WAYPOINT, "no waypoint sends there: nothing applies the rule"
    for waypoint_namespace in reached:
        rules = registry.index.rules.effective(hostname, namespace, waypoint_namespace)
        seen = f"at waypoints of namespace {waypoint_namespace}"
        if rule.meta.ref in rules.rules:
            yield Reason.ACCEPTED, f"holds {seen}{_but(rule, rules)}"
        elif rules.rules:
            text = f"has no effect {seen}: {rules.rules[0]} comes before it"
            yield Reason.SHADOWED, text
        else:
            yield (
                Reason.NO_EFFECT,
                f"has no effect {seen}: it is in another namespace, or not exported to them",
            )


def _but(rule: DestinationRule, rules: Effective) -> str:
    parts: list[str] = []
    if rule.has_policies and rules.leading != rule.meta.ref:
        parts.append(f"its trafficPolicy has no effect, that of {rules.leading} is older")
    lost = [each.name for each in rule.subsets if each not in rules.subsets]
    if lost:
        parts.append(f"subset {', '.join(lost)} is there already in an older rule")
    return "".join(f"; {part}" for part in parts)


def _problems(registry: Registry, rule: DestinationRule) -> Iterator[str]:
    yield from _of_policies(registry, "trafficPolicy", rule.policies)
    for subset in rule.subsets:
        if subset.policies is not None:
            yield from _of_policies(registry, f"subset {subset.name}", subset.policies)


def _of_policies(registry: Registry, where: str, policies: PolicySet) -> Iterator[str]:
    yield from _of_policy(registry, where, policies.general)
    for port, policy in policies.ports.items():
        yield from _of_policy(registry, f"{where}, port {port}", policy)


def _of_policy(registry: Registry, where: str, policy: Policy) -> Iterable[str]:
    tls = policy.tls
    unsupported = ", ".join(filter(None, (tls.problem if tls is not None else "", policy.unsupported)))
    if tls is not None:
        for problem in problems(tls, materials_of(registry, tls)):
            yield f"{where}: {problem}; requests that it is for get 503"
    if unsupported:
        yield f"{where}: {unsupported} is not supported; requests that it is for get 503"
    setting = policy.balancing.locality if policy.balancing is not None else None
    if setting is not None and (labels := unsupported_priority(setting)):
        yield f"{where}: failoverPriority is used up to label {labels}, whose value at waypoints is unknown"
