"""What MeshConfig says for all of a waypoint's requests: waypoint.proto's MeshSettings, checked. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from proto.mycelia import waypoint_pb2 as pb
from transport.http_path import PathNormalization
from waypoint.state.destinations import Keepalive, TrafficPolicy, tcp_keepalive
from waypoint.state.errors import RoutesRejected
from waypoint.state.retry import DEFAULT_POLICY
from waypoint.state.rules import RetryPolicy, retry_policy, seconds

MESH_SETTINGS_TYPE: Final = "type.googleapis.com/mycelia.waypoint.MeshSettings"
_LEVELS: Final = {
    pb.MeshSettings.BASE: PathNormalization.BASE,
    pb.MeshSettings.NONE: PathNormalization.NONE,
    pb.MeshSettings.MERGE_SLASHES: PathNormalization.MERGE_SLASHES,
    pb.MeshSettings.DECODE_AND_MERGE_SLASHES: PathNormalization.DECODE_AND_MERGE_SLASHES,
}


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """`connect_timeout_s` None: the destination's own default."""

    normalization: PathNormalization = PathNormalization.BASE
    retries: RetryPolicy = DEFAULT_POLICY
    connect_timeout_s: float | None = None
    keepalive: Keepalive | None = None

    def completed(self, policy: TrafficPolicy) -> TrafficPolicy:
        """A destination's policy, with what it leaves to the mesh."""
        pool = policy.pool
        if self.connect_timeout_s is not None and not pool.has_connect_timeout:
            pool = replace(pool, connect_timeout_s=self.connect_timeout_s)
        if self.keepalive is not None and pool.keepalive is None:
            pool = replace(pool, keepalive=self.keepalive)
        return policy if pool is policy.pool else replace(policy, pool=pool)


def parse_mesh_settings(content: bytes) -> MeshSettings:
    """Raises RoutesRejected."""
    message = pb.MeshSettings()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected("it is no MeshSettings") from error
    level = _LEVELS.get(message.path_normalization)
    if level is None:
        raise RoutesRejected(f"path normalisation {message.path_normalization} is not known")
    return MeshSettings(
        level,
        retry_policy(message.default_retries) if message.HasField("default_retries") else DEFAULT_POLICY,
        seconds(message.connect_timeout) or None,
        tcp_keepalive(message.keepalive) if message.HasField("keepalive") else None,
    )


def updated(
    held: MeshSettings, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
) -> tuple[MeshSettings, dict[str, str]]:
    """The settings after a batch, and name -> reason of what was refused: that leaves them as they were."""
    rejected: dict[str, str] = {}
    if any(True for _ in removed):
        held = MeshSettings()
    for name, content in upserts:
        try:
            held = parse_mesh_settings(content)
        except RoutesRejected as error:
            rejected[name] = error.text
    return held, rejected
