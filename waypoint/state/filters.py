"""FilterPolicy as it is told. Pure: whether the source is good is for those to find out who run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from proto.mycelia import filter_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.policies import Attached, check_name

FILTER_TYPE: Final = "type.googleapis.com/mycelia.waypoint.FilterPolicy"
DEFAULT_DEADLINE_S: Final = 0.1
DEFAULT_MEMORY_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class FilterPolicy:
    """Implements policies.Policy. `whole_body_bytes` 0: bodies come in chunks."""

    key: str
    attached: Attached
    source: str
    config: Mapping[str, Any]
    in_worker: bool
    deadline_s: float
    fails_open: bool
    whole_body_bytes: int
    memory_bytes: int
    order: int

    def __str__(self) -> str:
        return f"FilterPolicy/{self.key}"


def parse_filter(name: str, content: bytes) -> FilterPolicy:
    """Raises `RoutesRejected`."""
    message = pb.FilterPolicy()
    try:
        message.ParseFromString(content)
        config = json.loads(message.config or "{}")
    except (DecodeError, ValueError) as error:
        raise RoutesRejected("it is no FilterPolicy") from error
    if not isinstance(config, dict):
        raise RoutesRejected("config is no object")
    key = f"{message.namespace}/{message.name}"
    check_name(name, key)
    return FilterPolicy(
        key,
        Attached.of(message.attachment),
        message.source,
        config,
        message.in_worker,
        message.deadline.seconds + message.deadline.nanos / 1e9 or DEFAULT_DEADLINE_S,
        message.fails_open,
        message.whole_body_bytes,
        message.memory_bytes or DEFAULT_MEMORY_BYTES,
        message.order,
    )
