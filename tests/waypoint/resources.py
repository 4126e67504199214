"""What a control plane tells a waypoint, in short: keyword arguments in, messages out, and into a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from dataplane.state.model import ADDRESS_TYPE
from proto.istio import workload_pb2 as mesh_pb
from proto.mycelia import authentication_pb2, authorization_l7_pb2, filter_pb2, rate_limit_pb2, telemetry_pb2
from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import address, service, workload
from waypoint.state.authentication import AUTHENTICATION_TYPE
from waypoint.state.authorization import AUTHORIZATION_TYPE
from waypoint.state.destinations import DESTINATION_TYPE
from waypoint.state.filters import FILTER_TYPE
from waypoint.state.mesh_settings import MESH_SETTINGS_TYPE
from waypoint.state.place import Place
from waypoint.state.rate_limits import RATE_LIMIT_TYPE
from waypoint.state.routes import ROUTES_TYPE
from waypoint.state.store import WaypointState
from waypoint.state.telemetry import TELEMETRY_TYPE

VIP = "10.96.0.1"
WEB = "default/web"
PLACE = Place("default", "waypoint")


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


def backend(service_key: str, weight: int = 1, port: int = 80, **fields: Any) -> pb.Backend:
    return pb.Backend(service=service_key, port=port, weight=weight, **fields)


def forward(*backends: pb.Backend) -> pb.Forward:
    return pb.Forward(backends=backends or (backend(WEB),))


def rule(name: str = "r", *matches: pb.HttpMatch, **fields: Any) -> pb.HttpRule:
    if not {"forward", "redirect", "direct_response"} & fields.keys():
        fields["forward"] = forward()
    return pb.HttpRule(name=name, matches=matches, **fields)


def prefix(path: str) -> pb.HttpMatch:
    return pb.HttpMatch(path=pb.PathMatch(prefix=path))


def routes(
    *rules: pb.HttpRule,
    key: str = WEB,
    protocol: int = pb.HTTP,
    port: int = 80,
    tcp: Sequence[pb.TcpRule] = (),
) -> pb.ServiceRoutes:
    namespace, _, hostname = key.partition("/")
    ports = [
        pb.PortRoutes(
            service_port=port,
            protocol=protocol,  # type: ignore[arg-type]
            http_rules=rules,
            tcp_rules=tcp,
        )
    ]
    return pb.ServiceRoutes(namespace=namespace, hostname=hostname, ports=ports)


def destination(policy: pb.TrafficPolicy | None = None, *, key: str = WEB, **fields: Any) -> pb.Destination:
    namespace, _, hostname = key.partition("/")
    return pb.Destination(namespace=namespace, hostname=hostname, policy=policy, **fields)


Resource = (
    mesh_pb.Workload
    | mesh_pb.Service
    | pb.ServiceRoutes
    | pb.Destination
    | pb.MeshSettings
    | authorization_l7_pb2.AuthorizationPolicy
    | authentication_pb2.RequestAuthentication
    | rate_limit_pb2.RateLimitPolicy
    | filter_pb2.FilterPolicy
    | telemetry_pb2.Telemetry
)


def put(state: WaypointState, *resources: Resource) -> dict[str, str]:
    """Apply each; returns what was refused."""
    refused: dict[str, str] = {}
    for each in resources:
        match each:
            case pb.ServiceRoutes():
                name = f"{each.namespace}/{each.hostname}"
                refused |= state.apply(ROUTES_TYPE, [(name, each.SerializeToString())], ())
            case pb.MeshSettings():
                refused |= state.apply(MESH_SETTINGS_TYPE, [("mesh", each.SerializeToString())], ())
            case pb.Destination():
                name = f"{each.namespace}/{each.hostname}"
                refused |= state.apply(DESTINATION_TYPE, [(name, each.SerializeToString())], ())
            case authorization_l7_pb2.AuthorizationPolicy():
                name = f"{each.namespace}/{each.name}"
                refused |= state.apply(AUTHORIZATION_TYPE, [(name, each.SerializeToString())], ())
            case authentication_pb2.RequestAuthentication():
                name = f"{each.namespace}/{each.name}"
                refused |= state.apply(AUTHENTICATION_TYPE, [(name, each.SerializeToString())], ())
            case rate_limit_pb2.RateLimitPolicy():
                name = f"{each.namespace}/{each.name}"
                refused |= state.apply(RATE_LIMIT_TYPE, [(name, each.SerializeToString())], ())
            case filter_pb2.FilterPolicy():
                name = f"{each.namespace}/{each.name}"
                refused |= state.apply(FILTER_TYPE, [(name, each.SerializeToString())], ())
            case telemetry_pb2.Telemetry():
                name = f"{each.namespace}/{each.name}"
                refused |= state.apply(TELEMETRY_TYPE, [(name, each.SerializeToString())], ())
            case _:
                refused |= state.apply(ADDRESS_TYPE, [address(each)], ())
    return refused


def web_service(*vips: str, key: str = WEB, **fields: Any) -> mesh_pb.Service:
    namespace, _, hostname = key.partition("/")
    return service(hostname, *(vips or (VIP,)), namespace=namespace, ports={80: 0}, **fields)


def endpoint(
    uid: str, port: int, *, key: str = WEB, ip: str = "127.0.0.1", **fields: Any
) -> mesh_pb.Workload:
    """A workload without HBONE at a real server's port."""
    return workload(uid, ip, hbone=False, services={key: {80: port}}, **fields)
