"""Policies to resources: which kind goes where, what it depends on, and what is to be said of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from config.compile.attached import AttachedPolicy, attached_notes, compile_attached
from config.compile.authorization import compile_policy
from config.compile.peer_authentication import Levels, port_policy
from config.compile.resource import Resource
from config.notes import Note, Reason
from config.objects import (
    AuthorizationPolicy,
    Kind,
    MeshConfig,
    PeerAuthentication,
    RateLimitPolicy,
    Ref,
    RequestAuthentication,
    Telemetry,
)
from config.policy_rules import JwtRule, PolicyAction
from config.registry.attached_policies import Attachments, Enrolments, attach_policy
from config.registry.key_sets import KeySets
from config.registry.object_index import Dirt
from config.registry.providers import Providers
from config.registry.telemetry import attach_mesh_config, attach_telemetry
from config.settings import MeshSettings
from proto.mycelia.authorization_l7_pb2 import ExternalAuthorizer

_MATERIALS: Final = frozenset({Kind.SECRET.value, Kind.MESH_CONFIG.value})


class PolicyCompiler:
    """Remembers what each policy depends on (`attachments`), which keys it wants and whom it asks."""

    def __init__(self, registry: Enrolments, settings: MeshSettings) -> None:
        self._registry = registry
        self._settings = settings
        self.attachments = Attachments()
        self.key_sets = KeySets()
        self.observers: set[Ref] = set()  # that may name collectors, whose TLS DestinationRules say
        self.providers = Providers(registry.index, settings.root_namespace)

    def compile(self, ref: Ref) -> tuple[list[Resource], tuple[Note, ...]]:
        """The resources of a policy, an object of telemetry or MeshConfig; none where it is gone."""
        policy = self._registry.index.objects.get(ref)
        if isinstance(policy, Telemetry | MeshConfig):
            self.observers.add(ref)
        else:
            self.observers.discard(ref)
        if isinstance(policy, AttachedPolicy) and policy.targets:
            return self._attached(policy)
        if isinstance(policy, Telemetry):
            observed = attach_telemetry(policy, self._registry)
            self.attachments.put(ref, observed.depends_on)
            return observed.resources, observed.notes
        if isinstance(policy, MeshConfig):
            observed = attach_mesh_config(policy, self._registry)
            self.attachments.put(ref, observed.depends_on)
            return observed.resources, observed.notes
        self.attachments.put(ref, frozenset())
        self.key_sets.want(ref, ())
        self.providers.forget(ref)
        if isinstance(policy, RequestAuthentication):
            text = "tokens are judged by waypoints, and only targetRefs lead to one; not enforced"
            return [], (Note(ref, Reason.NO_EFFECT, text),)
        if isinstance(policy, AuthorizationPolicy):
            compiled = compile_policy(policy, self._settings)
            return [compiled.resource] if compiled.resource is not None else [], compiled.notes
        if not isinstance(policy, PeerAuthentication):
            return [], ()  # of workloads, and counted there: RateLimitPolicy by selector or namespace
        if not policy.selector:
            return [], self._shadowed_peer(policy)
        if ref.namespace == self._settings.root_namespace:
            text = "a selector has no effect in the root namespace; the object applies to nothing"
            return [], (Note(ref, Reason.NO_EFFECT, text),)
        made = port_policy(self.levels(ref.namespace, policy))
        return [made] if made is not None else [], ()

    def _attached(self, policy: AttachedPolicy) -> tuple[list[Resource], tuple[Note, ...]]:
        ref, attaching = policy.meta.ref, attach_policy(policy, self._registry)
        is_custom = isinstance(policy, AuthorizationPolicy) and policy.action is PolicyAction.CUSTOM
        asked = {self.providers.mesh_ref} if is_custom else set()
        self.attachments.put(ref, attaching.depends_on | asked)
        if isinstance(policy, RateLimitPolicy) and not policy.limits:
            # Waypoints have nothing to do with it: only what is not there at all is worth a word.
            missing = (each for each in attaching.bound if each.reason is Reason.TARGET_NOT_FOUND)
            return [], tuple(Note(ref, each.reason, f"{each.target}: {each.text}") for each in missing)
        rules = policy.rules if isinstance(policy, RequestAuthentication) else ()
        self.key_sets.want(ref, rules if attaching.waypoints else ())
        made = []
        notes = [*attaching.notes(ref), *attached_notes(policy)]
        found = self._authorizer(policy, notes)
        if attaching.waypoints:

            def key_set(rule: JwtRule) -> str:
                found = self.key_sets.of(rule)
                if found.problem:
                    what = "the last good keys are used" if found.text else "tokens of this issuer get 401"
                    text = f"issuer {rule.issuer}: {found.problem}; {what}"
                    notes.append(Note(ref, Reason.KEYS_NOT_FETCHED, text))
                return found.text

            message, waypoints = attaching.message(), attaching.waypoints
            made.append(compile_attached(policy, message, waypoints, key_set, found))
        return made, tuple(notes)

    def _authorizer(self, policy: AttachedPolicy, notes: list[Note]) -> ExternalAuthorizer | None:
        """Whom action CUSTOM asks."""
        ref = policy.meta.ref
        if not isinstance(policy, AuthorizationPolicy) or policy.action is not PolicyAction.CUSTOM:
            self.providers.forget(ref)
            return None
        found = self.providers.find(ref, policy.provider)
        if found.problem:
            text = f"provider {policy.provider} {found.problem}; whatever a rule holds for is denied"
            notes.append(Note(ref, Reason.PROVIDER_NOT_FOUND, text))
        return found.message

    def _shadowed_peer(self, peer: PeerAuthentication) -> tuple[Note, ...]:
        oldest = self._registry.index.general_peer(peer.meta.namespace)
        if oldest is None or oldest is peer:
            return ()
        text = f"{oldest.meta.ref} is older and counts for the namespace; this one has no effect"
        return (Note(peer.meta.ref, Reason.SHADOWED, text),)

    def secured_by(self, dirt: Dirt) -> Iterable[Ref]:
        """What a change of DestinationRules or certificates may be about."""
        is_material = any(ref.kind in _MATERIALS for ref in dirt.objects)
        return self.observers if dirt.rule_hosts or is_material else ()

    def levels(self, namespace: str, own: PeerAuthentication | None) -> Levels:
        """Whose word on mutual TLS counts in a namespace."""
        root = self._settings.root_namespace
        return Levels(
            mesh=self._registry.index.general_peer(root),
            namespace=self._registry.index.general_peer(namespace) if namespace != root else None,
            workload=own,
        )
