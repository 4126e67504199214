"""Which waypoints a Telemetry object is for, and which of several of them counts. Pure.

Without targets it is told to all waypoints: which of their services it is about is decided there, by
namespace. Of several for the same place the oldest counts and the others are reported (config-api 14). It
protects nothing, so whatever is wrong with it leaves things as they are without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from config.compile.client_tls import compile_tls
from config.compile.destinations import policy_for
from config.compile.mesh_settings import compile_mesh_settings
from config.compile.resource import Resource
from config.compile.telemetry import (
    DEFAULT_COLLECTOR,
    Providers,
    compile_defaults,
    compile_telemetry,
    unknown_collectors,
    unknown_logs,
)
from config.extension_providers import FileAccessLog, OtlpAccessLog, ProviderService, SpanCollector
from config.mesh_defaults import MeshDefaults
from config.notes import Note, Reason
from config.objects import Kind, MeshConfig, MeshObject, Ref, Telemetry, TlsMaterial
from config.observing import MeshObserving
from config.registry.attached_policies import Enrolments, all_waypoints, attach_policy
from config.registry.waypoints import CLASS_REF
from proto.mycelia import attachment_pb2 as pb
from proto.mycelia.waypoint_pb2 import ClientTls

MESH_CONFIG_NAME: Final = "istio"


@dataclass(frozen=True, slots=True)
class Observed:
    resources: list[Resource]
    notes: tuple[Note, ...]
    depends_on: frozenset[Ref]


def attach_telemetry(telemetry: Telemetry, registry: Enrolments) -> Observed:
    ref = telemetry.meta.ref
    mesh_config = Ref(Kind.MESH_CONFIG.value, registry.root_namespace, MESH_CONFIG_NAME)
    providers = _providers(registry.index.objects.get(mesh_config), registry)
    notes = list(_provider_notes(telemetry, providers))
    if telemetry.selector:
        text = "waypoints are chosen by targetRefs; a selector picks workloads, which log nothing of requests"
        return Observed([], (*notes, Note(ref, Reason.NO_EFFECT, text)), frozenset())
    older = _older(telemetry, registry)
    if telemetry.is_general:
        if older:
            text = f"{older[0].meta.ref} is older and counts for the namespace; this one has no effect"
            return Observed([], (*notes, Note(ref, Reason.SHADOWED, text)), frozenset())
        names = tuple(f"{each.namespace}/{each.name}" for each in all_waypoints(registry.index))
        attachment, depends_on = pb.Attachment(), frozenset({CLASS_REF})
    else:
        attaching = attach_policy(telemetry, registry)
        notes += attaching.notes(ref)
        notes += _conflicts(telemetry, older)
        names, attachment, depends_on = attaching.waypoints, attaching.message(), attaching.depends_on
    made = []
    if names:
        root = registry.root_namespace
        made.append(compile_telemetry(telemetry, attachment, names, root_namespace=root, providers=providers))
    return Observed(made, tuple(notes), depends_on | {mesh_config})


def attach_mesh_config(mesh: MeshConfig, registry: Enrolments) -> Observed:
    """What holds for all waypoints before any Telemetry object says something."""
    if mesh.meta.namespace != registry.root_namespace:
        return Observed([], (), frozenset())
    observing, providers = mesh.observing, _providers(mesh, registry)
    notes = tuple(_default_notes(mesh, providers))
    names = tuple(f"{each.namespace}/{each.name}" for each in all_waypoints(registry.index))
    says_something = replace(observing, metrics=None) != MeshObserving()
    made = []
    if names and says_something:
        made.append(compile_defaults(observing, registry.root_namespace, names, providers))
    if names and mesh.defaults != MeshDefaults():
        made.append(compile_mesh_settings(mesh.defaults, names))
    return Observed(made, notes, frozenset({CLASS_REF}))


def _default_notes(mesh: MeshConfig, providers: Providers) -> Iterator[Note]:
    observing = mesh.observing
    unknown = {
        "accessLogging": [name for name in observing.logs if name not in providers.log_names],
        "tracing": [name for name in observing.tracing[:1] if name not in providers.collectors],
        "metrics": [name for name in observing.metrics or () if name != "prometheus"],
    }
    for field, names in unknown.items():
        if names:
            text = f"defaultProviders.{field}: {', '.join(names)} is no provider of that kind here"
            yield Note(mesh.meta.ref, Reason.UNSUPPORTED_VALUE, f"{text}; it is not used")


def _providers(mesh_config: MeshObject | None, registry: Enrolments) -> Providers:
    if not isinstance(mesh_config, MeshConfig):
        return Providers()
    found = {each.name: each.config for each in mesh_config.providers}
    if mesh_config.observing.collector is not None:
        found[DEFAULT_COLLECTOR] = mesh_config.observing.collector
    places = {
        name: each.service for name, each in found.items() if isinstance(each, SpanCollector | OtlpAccessLog)
    }
    secured = {name: _tls(place, registry) for name, place in places.items()}
    return Providers(
        {name: each for name, each in found.items() if isinstance(each, SpanCollector)},
        {name: each for name, each in found.items() if isinstance(each, FileAccessLog | OtlpAccessLog)},
        {name: tls for name, tls in secured.items() if tls is not None},
    )


def _tls(place: ProviderService, registry: Enrolments) -> ClientTls | str | None:
    """As the DestinationRules for a collector's host say that are for everybody; a string: why not."""
    index, root = registry.index, registry.root_namespace
    owner = index.canonical_entry(place.host) if not place.namespace else None
    namespace = place.namespace or (owner.namespace if owner is not None else root)
    rules = index.rules.effective(place.host, namespace, root)
    tls = policy_for(rules.policies, None, place.port).tls
    if tls is None:
        return None
    held = {ref: index.objects.get(ref) for ref in tls.refs}
    materials = {ref: each for ref, each in held.items() if isinstance(each, TlsMaterial)}
    return compile_tls(tls, place.host, (), materials)


def _provider_notes(telemetry: Telemetry, providers: Providers) -> Iterator[Note]:
    ref = telemetry.meta.ref
    if unknown := unknown_logs(telemetry, providers.logs):
        known = ", ".join(("envoy", *sorted(providers.logs)))
        text = f"provider {', '.join(unknown)} of access logs is not known; known: {known}"
        yield Note(ref, Reason.UNSUPPORTED_VALUE, f"{text}. What was chosen without it goes on")
    if unknown := tuple(name for name in telemetry.metric_providers if name != "prometheus"):
        text = f"provider {', '.join(unknown)} of metrics is not known; known: prometheus. It changes nothing"
        yield Note(ref, Reason.UNSUPPORTED_VALUE, text)
    if unknown := unknown_collectors(telemetry, providers.collectors):
        known = ", ".join(sorted(providers.collectors)) or "none"
        text = f"provider {', '.join(unknown)} of tracing is not known; known in MeshConfig: {known}"
        yield Note(ref, Reason.UNSUPPORTED_VALUE, f"{text}. What was chosen without it goes on")


def _conflicts(telemetry: Telemetry, older: list[Telemetry]) -> Iterator[Note]:
    for target in telemetry.targets:
        first = next((each for each in older if target in each.targets), None)
        if first is not None:
            text = f"{target}: {first.meta.ref} is older and counts there"
            yield Note(telemetry.meta.ref, Reason.SHADOWED, text)


def _older(telemetry: Telemetry, registry: Enrolments) -> list[Telemetry]:
    """Of the same kind of place in the namespace, the oldest first."""
    objects = registry.index.objects
    found = [
        each
        for ref in registry.index.telemetries(telemetry.meta.namespace)
        if isinstance(each := objects[ref], Telemetry)
        and not each.selector
        and each.is_general == telemetry.is_general
        and each.meta.age_key < telemetry.meta.age_key
    ]
    return sorted(found, key=lambda each: each.meta.age_key)
