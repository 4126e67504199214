"""Telemetry to what waypoints log. Pure."""

from __future__ import annotations

from typing import Final

from config.compile.resource import TELEMETRY, Resource, make_resource
from config.objects import Telemetry
from proto.mycelia import attachment_pb2
from proto.mycelia import telemetry_pb2 as pb

# What every waypoint has without being told: its standard output.
BUILT_IN_LOGS: Final = frozenset({"envoy"})


def unknown_providers(telemetry: Telemetry) -> tuple[str, ...]:
    """In the order of the object."""
    named = [name for step in telemetry.logging for name in step.providers]
    return tuple(dict.fromkeys(name for name in named if name not in BUILT_IN_LOGS))


def compile_telemetry(
    telemetry: Telemetry,
    attachment: attachment_pb2.Attachment,
    waypoints: tuple[str, ...],
    *,
    root_namespace: str,
) -> Resource:
    """Steps whose providers are all unknown are left out: what was chosen before them goes on."""
    meta = telemetry.meta
    level = pb.Telemetry.TARGET
    if telemetry.is_general:
        level = pb.Telemetry.MESH if meta.namespace == root_namespace else pb.Telemetry.NAMESPACE
    message = pb.Telemetry(
        namespace=meta.namespace,
        name=meta.name,
        attachment=attachment,
        level=level,
        order=_order(telemetry),
    )
    for step in telemetry.logging:
        known = [name for name in step.providers if name in BUILT_IN_LOGS]
        if known or not step.providers:
            message.logging.add(providers=known, disabled=step.is_disabled, filter=step.filter)
    return make_resource(TELEMETRY, f"{meta.namespace}/{meta.name}", message, waypoints=waypoints)


def _order(telemetry: Telemetry) -> int:
    """Seconds since the epoch; files without a creation time count as youngest (Meta.age_key)."""
    created = telemetry.meta.created
    return (1 << 63) if created is None else max(int(created.timestamp()), 0)
