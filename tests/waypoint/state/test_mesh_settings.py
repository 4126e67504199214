"""What MeshConfig says for all requests: defaults that destinations override, and what is refused."""

from __future__ import annotations

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import PLACE, WEB, destination, endpoint, put, seconds, web_service
from transport.http_path import PathNormalization
from waypoint.state.destinations import Keepalive
from waypoint.state.mesh_settings import MESH_SETTINGS_TYPE, MeshSettings
from waypoint.state.retry import DEFAULT_POLICY
from waypoint.state.store import WaypointState


def made() -> WaypointState:
    state = WaypointState(PLACE, clock=lambda: 0.0, random=lambda: 0.5)
    assert put(state, web_service(), endpoint("a", 80)) == {}
    return state


def connect_timeout_s(state: WaypointState) -> float:
    cluster = state.cluster(WEB, 80)
    assert cluster is not None
    return cluster.circuit.pool.connect_timeout_s


def keepalive(state: WaypointState) -> Keepalive | None:
    cluster = state.cluster(WEB, 80)
    assert cluster is not None
    return cluster.circuit.pool.keepalive


def test_without_a_word_istios_defaults_hold() -> None:
    state = made()
    assert state.mesh_settings == MeshSettings(PathNormalization.BASE, DEFAULT_POLICY, None)
    assert connect_timeout_s(state) == 10.0


def test_the_connect_timeout_is_for_destinations_that_say_nothing() -> None:
    state = made()
    assert connect_timeout_s(state) == 10.0
    put(state, pb.MeshSettings(connect_timeout=seconds(3)))
    assert connect_timeout_s(state) == 3.0
    other = pb.TrafficPolicy(connection_pool=pb.ConnectionPool(maximum_pending=5))
    put(state, destination(other))
    assert connect_timeout_s(state) == 3.0
    own = pb.TrafficPolicy(connection_pool=pb.ConnectionPool(connect_timeout=seconds(7)))
    put(state, destination(own))
    assert connect_timeout_s(state) == 7.0
    put(state, destination())
    state.apply(MESH_SETTINGS_TYPE, (), ["mesh"])
    assert connect_timeout_s(state) == 10.0


def test_what_is_not_known_leaves_the_last_good_settings() -> None:
    state = made()
    level = pb.MeshSettings.DECODE_AND_MERGE_SLASHES
    assert put(state, pb.MeshSettings(path_normalization=level)) == {}
    assert state.mesh_settings.normalization is PathNormalization.DECODE_AND_MERGE_SLASHES
    assert "not known" in put(state, pb.MeshSettings(path_normalization=9))["mesh"]  # type: ignore[arg-type]
    assert state.apply(MESH_SETTINGS_TYPE, [("mesh", b"\xff")], ()) == {"mesh": "it is no MeshSettings"}
    unknown = pb.RetryPolicy(attempts=1, on=["sometimes"])
    assert "sometimes" in put(state, pb.MeshSettings(default_retries=unknown))["mesh"]
    assert state.mesh_settings.normalization is PathNormalization.DECODE_AND_MERGE_SLASHES


def test_the_keepalive_is_for_destinations_that_say_nothing() -> None:
    state = made()
    assert keepalive(state) is None
    put(state, pb.MeshSettings(keepalive=pb.TcpKeepalive(idle=seconds(30))))
    assert keepalive(state) == Keepalive(9, 30, 75)
    own = pb.ConnectionPool(keepalive=pb.TcpKeepalive(probes=3, interval=seconds(0.2)))
    put(state, destination(pb.TrafficPolicy(connection_pool=own)))
    assert keepalive(state) == Keepalive(3, 7200, 1)
