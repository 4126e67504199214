"""PeerAuthentication to DENY policies (ztunnel-facts 7.6): plaintext is a connection without principal.

The mode of a workload: mesh, overridden by namespace, overridden by the workload's own; UNSET inherits; the
oldest object of a level counts; DISABLE acts like PERMISSIVE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from config.compile.authorization import text_match
from config.compile.resource import AUTHORIZATION, Resource, make_resource
from config.objects import MtlsMode, PeerAuthentication
from config.settings import MeshSettings
from proto.istio import authorization_pb2 as pb

STATIC_STRICT_NAME: Final = "istio_converted_static_strict"
CONVERTED_PREFIX: Final = "converted_peer_authentication_"


@dataclass(frozen=True, slots=True)
class Levels:
    """The objects that count for a workload, each the oldest of its level."""

    mesh: PeerAuthentication | None = None
    namespace: PeerAuthentication | None = None
    workload: PeerAuthentication | None = None


def static_strict_key(settings: MeshSettings) -> str:
    return f"{settings.root_namespace}/{STATIC_STRICT_NAME}"


def port_policy_key(peer: PeerAuthentication) -> str:
    return f"{peer.meta.namespace}/{CONVERTED_PREFIX}{peer.meta.name}"


def static_strict(settings: MeshSettings) -> Resource:
    """Denies every connection without identity."""
    message = pb.Authorization(
        name=STATIC_STRICT_NAME,
        namespace=settings.root_namespace,
        scope=pb.WORKLOAD_SELECTOR,
        action=pb.DENY,
        groups=[pb.Group(rules=[pb.Rules(matches=[_plaintext()])])],
    )
    return make_resource(AUTHORIZATION, static_strict_key(settings), message)


def is_strict(levels: Levels) -> bool:
    """The mode for ports that no port-level entry names."""
    strict = False
    for level in (levels.mesh, levels.namespace, levels.workload):
        if level is not None and level.mode is not MtlsMode.UNSET:
            strict = level.mode is MtlsMode.STRICT
    return strict


def odd_ports(levels: Levels) -> tuple[int, ...]:
    """Ports of the workload's own object whose mode differs from the rest's, in order."""
    peer = levels.workload
    if peer is None:
        return ()
    strict = is_strict(levels)
    return tuple(
        port
        for port, mode in sorted(peer.port_modes.items())
        if mode is not MtlsMode.UNSET and (mode is MtlsMode.STRICT) != strict
    )


def policy_keys(levels: Levels, settings: MeshSettings) -> tuple[str, ...]:
    """The keys a workload lists because of these objects."""
    if levels.workload is not None and odd_ports(levels):
        return (port_policy_key(levels.workload),)
    return (static_strict_key(settings),) if is_strict(levels) else ()


def port_policy(levels: Levels) -> Resource | None:
    """What `policy_keys` names for an object with ports that differ; None where none do."""
    ports, peer = odd_ports(levels), levels.workload
    if peer is None or not ports:
        return None
    if is_strict(levels):
        exempt = [pb.Rules(matches=[pb.Match(not_destination_ports=[port])]) for port in ports]
        groups = [pb.Group(rules=[*exempt, pb.Rules(matches=[_plaintext()])])]
    else:
        groups = [pb.Group(rules=[pb.Rules(matches=[_plaintext(port)])]) for port in ports]
    message = pb.Authorization(
        name=f"{CONVERTED_PREFIX}{peer.meta.name}",
        namespace=peer.meta.namespace,
        scope=pb.WORKLOAD_SELECTOR,
        action=pb.DENY,
        groups=groups,
    )
    return make_resource(AUTHORIZATION, port_policy_key(peer), message)


def _plaintext(port: int | None = None) -> pb.Match:
    return pb.Match(not_principals=[text_match("*")], destination_ports=[] if port is None else [port])
