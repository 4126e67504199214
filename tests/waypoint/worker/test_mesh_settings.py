"""MeshConfig's defaults through a real proxy."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import endpoint, prefix, routes, rule, seconds, web_service
from tests.waypoint.worker.routing_kit import App, Reply, Waypoint

ON_5XX = pb.RetryPolicy(attempts=3, on=["5xx"], backoff=seconds(0.001))


def test_retries_of_the_mesh_are_for_rules_that_say_nothing() -> None:
    own = rule("own", prefix("/own"), retries=pb.RetryPolicy(attempts=0))
    with (
        App("a", lambda _: Reply(500)) as app,
        Waypoint(web_service(), endpoint("a", app.port), routes(own, rule("r"))) as waypoint,
    ):
        waypoint.get("/a")
        assert len(app.seen) == 1
        waypoint.put(pb.MeshSettings(default_retries=ON_5XX))
        waypoint.get("/a")
        assert len(app.seen) == 1 + 4
        waypoint.get("/own")
        assert len(app.seen) == 1 + 4 + 1


@pytest.mark.parametrize(
    ("level", "path"),
    [
        (pb.MeshSettings.NONE, "/a%2D//b/../c%2Fd"),
        (pb.MeshSettings.BASE, "/a-//c%2Fd"),
        (pb.MeshSettings.MERGE_SLASHES, "/a-/c%2Fd"),
        (pb.MeshSettings.DECODE_AND_MERGE_SLASHES, "/a-/c/d"),
    ],
)
def test_paths_are_read_routed_and_forwarded_as_the_mesh_says(
    level: pb.MeshSettings.PathNormalization.ValueType, path: str
) -> None:
    with App() as app, Waypoint(web_service(), endpoint("a", app.port), routes()) as waypoint:
        waypoint.put(pb.MeshSettings(path_normalization=level))
        assert waypoint.get("/a%2D//b/../c%2Fd")[0] == 200
        assert app.seen[-1].path == path
