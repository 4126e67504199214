"""Parts of waypoint.proto that several compilations write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration

from config.routing_rules import HeaderEdit
from config.traffic_policies import TcpKeepalive
from proto.mycelia import waypoint_pb2 as pb

DEFAULT_ATTEMPTS: Final = 2
DEFAULT_BACKOFF_MS: Final = 25


@dataclass(frozen=True, slots=True)
class Target:
    """Where a reference leads: a service of the address book and its port, or why it leads nowhere."""

    service: str = ""
    port: int = 0
    problem: str = ""


def duration(milliseconds: int) -> Duration:
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def header_changes(edit: HeaderEdit) -> pb.HeaderChanges:
    fields = pb.HeaderChanges.Field
    return pb.HeaderChanges(
        set=[fields(name=name, value=value) for name, value in edit.set],
        add=[fields(name=name, value=value) for name, value in edit.add],
        remove=edit.remove,
    )


def keepalive(found: TcpKeepalive) -> pb.TcpKeepalive:
    made = pb.TcpKeepalive(probes=found.probes)
    if found.idle_ms is not None:
        made.idle.CopyFrom(duration(found.idle_ms))
    if found.interval_ms is not None:
        made.interval.CopyFrom(duration(found.interval_ms))
    return made
