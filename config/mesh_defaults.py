"""MeshConfig's defaults for requests: how paths are normalised, what is repeated, how long a connect takes.
Values only, checked by `config.kinds.mesh_config`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from config.traffic_policies import TcpKeepalive
from config.virtual_routes import Retries


class PathNormalization(enum.Enum):
    """Each does all that the one before it does (waypoint-facts 3.1)."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


@dataclass(frozen=True, slots=True)
class MeshDefaults:
    """`retries` where a route says nothing, None: what is safe; `connect_timeout_ms` where a DestinationRule
    says nothing, None: Istio's 10 s; `keepalive` likewise, None: the waypoint's own.
    """

    path_normalization: PathNormalization = PathNormalization.BASE
    retries: Retries | None = None
    connect_timeout_ms: int | None = None
    keepalive: TcpKeepalive | None = None
