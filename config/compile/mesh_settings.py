"""MeshConfig's defaults for requests, as waypoints hear them. Pure."""

from __future__ import annotations

from typing import Final

from config.compile.messages import duration, keepalive
from config.compile.resource import MESH_SETTINGS, Resource, make_resource
from config.compile.virtual_services import retry_policy
from config.mesh_defaults import MeshDefaults, PathNormalization
from proto.mycelia import waypoint_pb2 as pb

NAME: Final = "mesh"
_LEVELS: Final = {
    PathNormalization.NONE: pb.MeshSettings.NONE,
    PathNormalization.BASE: pb.MeshSettings.BASE,
    PathNormalization.MERGE_SLASHES: pb.MeshSettings.MERGE_SLASHES,
    PathNormalization.DECODE_AND_MERGE_SLASHES: pb.MeshSettings.DECODE_AND_MERGE_SLASHES,
}


def compile_mesh_settings(defaults: MeshDefaults, waypoints: tuple[str, ...]) -> Resource:
    message = pb.MeshSettings(path_normalization=_LEVELS[defaults.path_normalization])
    if defaults.retries is not None:
        message.default_retries.CopyFrom(retry_policy(defaults.retries))
    if defaults.connect_timeout_ms is not None:
        message.connect_timeout.CopyFrom(duration(defaults.connect_timeout_ms))
    if defaults.keepalive is not None:
        message.keepalive.CopyFrom(keepalive(defaults.keepalive))
    return make_resource(MESH_SETTINGS, NAME, message, waypoints=waypoints)
