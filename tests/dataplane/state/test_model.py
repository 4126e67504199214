"""What is taken from the protobuf resources, what is refused, and with which reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.state.errors import ResourceRejected
from dataplane.state.model import (
    GatewayRef,
    Service,
    Vip,
    Workload,
    WorkloadType,
    canonical_ip,
    decode_address,
    ip_number,
)
from dataplane.state.store import MeshState
from proto.istio import workload_pb2 as pb
from tests.dataplane.state.builders import address, service, workload
from transport.spiffe import SpiffeId


def as_workload(message: pb.Workload) -> Workload:
    found = decode_address(address(message)[1])
    assert isinstance(found, Workload)
    return found


def as_service(message: pb.Service) -> Service:
    found = decode_address(address(message)[1])
    assert isinstance(found, Service)
    return found


def test_defaults_of_an_empty_workload() -> None:
    found = as_workload(pb.Workload(uid="u", namespace="ns"))
    assert found.identity == SpiffeId("cluster.local", "ns", "default")
    assert found.cluster_id == "Kubernetes"
    assert (found.capacity, found.is_healthy, found.is_hbone) == (1, True, False)


def test_every_workload_field() -> None:
    found = as_workload(
        workload(
            "c//Pod/ns/p",
            "10.0.0.1",
            "fd00::1",
            name="p",
            namespace="ns",
            account="sa",
            network="net",
            trust_domain="td",
            node="n",
            canonical_name="cn",
            canonical_revision="cr",
            workload_type=pb.JOB,
            workload_name="wn",
            native_tunnel=True,
            policies=["ns/a", "ns/b"],
            healthy=False,
            cluster_id="c",
            hostname="h.example",
            services={"ns/svc": {80: 8080}},
            waypoint="ns/wp.ns:15008",
            network_gateway="net|10.9.9.9:15009",
            app_tunnel=(True, 15088),
            locality=("r", "z", "s"),
            network_mode=pb.HOST_NETWORK,
            capacity=7,
        )
    )
    assert found.identity == SpiffeId("td", "ns", "sa")
    assert found.addresses == ("10.0.0.1", "fd00::1")
    assert found.waypoint == GatewayRef(15008, namespace="ns", hostname="wp.ns")
    assert found.network_gateway == GatewayRef(15009, network="net", address="10.9.9.9")
    assert found.workload_type is WorkloadType.JOB
    assert found.services == {"ns/svc": {80: 8080}}
    assert found.application_tunnel is not None
    assert (found.application_tunnel.is_proxy, found.application_tunnel.port) == (True, 15088)
    assert (found.locality.region, found.locality.zone, found.locality.subzone) == ("r", "z", "s")
    assert (found.is_host_network, found.capacity, found.is_healthy) == (True, 7, False)
    assert found.authorization_policies == ("ns/a", "ns/b")


def test_ports_are_truncated_to_16_bits() -> None:
    found = as_workload(workload("u", services={"ns/s": {65536 + 80: 65536 + 81}}))
    assert found.services == {"ns/s": {80: 81}}


def test_sans_that_are_no_identities_are_dropped() -> None:
    found = as_service(service("h", sans=["spiffe://td/ns/a/sa/b", "spiffe://td/x", "dns"]))
    assert found.identities == (SpiffeId("td", "a", "b"),)


@pytest.mark.parametrize(
    ("vip", "expected"),
    [
        ("10.0.0.1", Vip("", "10.0.0.1")),
        ("10.0.0.0/8", Vip("", "10.0.0.0", 8)),
        ("10.0.0.1/32", Vip("", "10.0.0.1")),
        ("net|fd00::/64", Vip("net", "fd00::", 64)),
        ("fd00::1/128", Vip("", "fd00::1")),
    ],
)
def test_vips(vip: str, expected: Vip) -> None:
    assert as_service(service("h", vip)).vips == (expected,)


def mutated(**fields: object) -> pb.Workload:
    return workload("u", "10.0.0.1", namespace="ns", **fields)  # type: ignore[arg-type]


def with_enum(field: str, number: int) -> pb.Workload:
    message = mutated()
    setattr(message, field, number)
    return message


REFUSED_WORKLOADS = [
    (pb.Workload(), "uid"),
    (pb.Workload(uid="u"), "identity"),
    (pb.Workload(uid="u", namespace="a/b"), "identity"),
    (pb.Workload(uid="u", namespace="ns", addresses=[b"123"]), "bytes"),
    (with_enum("tunnel_protocol", pb.LEGACY_ISTIO_MTLS), "tunnel protocol"),
    (with_enum("tunnel_protocol", 9), "tunnel protocol"),
    (with_enum("workload_type", 9), "workload type"),
    (with_enum("status", 9), "status"),
    (with_enum("network_mode", 9), "network mode"),
    (pb.Workload(uid="u", namespace="ns", waypoint=pb.GatewayAddress()), "destination"),
    (pb.Workload(uid="u", namespace="ns", services={"noslash": pb.PortList()}), "service key"),
    (
        pb.Workload(uid="u", namespace="ns", application_tunnel=pb.ApplicationTunnel(protocol=7)),  # type: ignore[arg-type]
        "application tunnel",
    ),
]


@pytest.mark.parametrize(("message", "reason"), REFUSED_WORKLOADS)
def test_unusable_workloads_are_refused(message: pb.Workload, reason: str) -> None:
    with pytest.raises(ResourceRejected, match=reason):
        decode_address(address(message)[1])


def bad_service(field: str, number: int) -> pb.Service:
    message = service("h", mode=1)
    if field == "ip_families":
        message.ip_families = number  # type: ignore[assignment]
    elif field == "routing_preference":
        message.load_balancing.routing_preference.append(number)  # type: ignore[arg-type]
    else:
        setattr(message.load_balancing, field, number)
    return message


@pytest.mark.parametrize(
    "message",
    [
        pb.Service(),
        bad_service("mode", 9),
        bad_service("health_policy", 9),
        bad_service("routing_preference", 0),
        bad_service("ip_families", 9),
        service("h", "10.0.0.0/33"),
        pb.Service(hostname="h", addresses=[pb.NetworkAddress(address=b"1")]),
        pb.Service(hostname="h", weighted_waypoints=[pb.WeightedWaypoint(weight=1)]),
    ],
)
def test_unusable_services_are_refused(message: pb.Service) -> None:
    with pytest.raises(ResourceRejected):
        decode_address(address(message)[1])


def test_unknown_visibility_is_public() -> None:
    message = service("h")
    message.visibility = 9  # type: ignore[assignment]
    assert as_service(message).is_namespace_private is False


def test_mapped_addresses_are_ipv4() -> None:
    assert canonical_ip(b"\x00" * 10 + b"\xff\xff\x01\x02\x03\x04") == "1.2.3.4"
    assert ip_number("1.2.3.4") == (32, 0x01020304)
    assert ip_number("nonsense") == (0, 0)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    """Whatever arrives is applied or refused with a reason; nothing else escapes."""
    state = MeshState()
    for type_url in (
        "type.googleapis.com/istio.workload.Address",
        "type.googleapis.com/istio.workload.Workload",
        "type.googleapis.com/istio.security.Authorization",
        "type.googleapis.com/unknown",
    ):
        rejected = state.apply(type_url, [("name", data)], ["name", "other"])
        assert set(rejected) <= {"name"}
