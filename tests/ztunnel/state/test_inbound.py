"""Facts 2.3, 2.12, 4.2, 4.3, 4.4 and 1.2: every row, and the inbound cases of 14.4."""

from __future__ import annotations

import pytest

from proto.istio import workload_pb2 as pb
from tests.dataplane.state.builders import get, mesh, service, workload
from ztunnel.state.inbound import (
    Authority,
    InboundTarget,
    Refusal,
    is_illegal_inbound,
    is_self_call,
    parse_authority,
    resolve_inbound,
    spoofed_source,
)

OWN = workload("own", "10.0.0.2", services={"default/web.default": {80: 8080}})


def resolve(
    authority: str | bytes, *resources: pb.Workload | pb.Service, own: pb.Workload = OWN, ip: str = "10.0.0.2"
) -> InboundTarget | Refusal:
    state = mesh(own, *resources)
    return resolve_inbound(authority, ip, get(state, own.uid), state, "")


def accepted(result: InboundTarget | Refusal) -> InboundTarget:
    assert isinstance(result, InboundTarget), result
    return result


def status(result: InboundTarget | Refusal) -> int:
    assert isinstance(result, Refusal), result
    return result.status


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3.4:80", Authority(80, ip="1.2.3.4")),
        ("[2001:db8::1]:80", Authority(80, ip="2001:db8::1")),
        ("[::ffff:1.2.3.4]:80", Authority(80, ip="1.2.3.4")),
        ("[2001:0db8:0:0::1]:80", Authority(80, ip="2001:db8::1")),
        ("web.default.svc:80", Authority(80, hostname="web.default.svc")),
        ("WEB:80", Authority(80, hostname="web")),
        (b"web:65535", Authority(65535, hostname="web")),
    ],
)
def test_authority(text: str | bytes, expected: Authority) -> None:
    assert parse_authority(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "web", "web:", ":80", "1.2.3.4", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:8a", "1.2.3.4:\u0661",
     "2001:db8::1:80", "[2001:db8::1]", "[2001:db8::1:80", "[1.2.3.4]:80", "[web]:80", "[fe80::1%eth0]:80",
     "web default:80", "user@web:80", "web/x:80", "a" * 300 + ":80", b"w\xffb:80", "http://web:80",
     "web:000080"],
)  # fmt: skip
def test_authority_that_is_neither_form_is_refused(text: str | bytes) -> None:
    assert parse_authority(text) is None
    assert status(resolve(text)) == 400


def test_own_address_is_accepted_with_the_port_as_given() -> None:
    assert accepted(resolve("10.0.0.2:8080")).address == ("10.0.0.2", 8080)


def test_another_address_is_a_mismatch() -> None:
    result = resolve("10.0.0.3:8080")
    assert result == Refusal(400, "ip mismatch: 10.0.0.3 != 10.0.0.2")


def test_another_address_of_a_known_service_is_a_mismatch_too() -> None:
    assert status(resolve("10.1.0.1:80", service("web.default", "10.1.0.1"))) == 400


@pytest.mark.parametrize("is_proxy", [True, False])
def test_an_application_tunnel_accepts_any_address(is_proxy: bool) -> None:
    own = workload("own", "10.0.0.2", app_tunnel=(is_proxy, 15088))
    target = accepted(resolve("10.9.9.9:80", own=own))
    assert target.address == ("10.0.0.2", 15088)
    assert target.is_localhost is is_proxy
    assert target.proxy_destination == (("10.9.9.9", 80) if is_proxy else None)
    assert target.dial_address == (("127.0.0.1", 15088) if is_proxy else ("10.0.0.2", 15088))


def test_application_tunnel_with_port_zero_keeps_the_requested_port() -> None:
    own = workload("own", "10.0.0.2", app_tunnel=(True, 0))
    assert accepted(resolve("10.9.9.9:81", own=own)).address == ("10.0.0.2", 81)


def test_localhost_tunnel_can_be_switched_off() -> None:
    own = workload("own", "10.0.0.2", app_tunnel=(True, 15088))
    state = mesh(own)
    target = resolve_inbound(
        "10.9.9.9:80", "10.0.0.2", get(state, "own"), state, "", is_localhost_tunnel=False
    )
    assert accepted(target).dial_address == ("10.0.0.2", 15088)
    assert accepted(target).proxy_destination == ("10.9.9.9", 80)


def test_waypoint_service_that_contains_us_is_accepted() -> None:
    own = workload("own", "10.0.0.2", services={"default/wp.default": {15008: 15008}})
    wp = service("wp.default", ports={15008: 15008})
    for destination in (
        service("web.default", "10.1.0.1", waypoint="default/wp.default:15008"),
        workload("web", "10.1.0.1", waypoint="default/wp.default:15008"),
    ):
        assert accepted(resolve("10.1.0.1:80", wp, destination, own=own)).address == ("10.0.0.2", 80)


def test_waypoint_service_without_us_is_a_mismatch() -> None:
    wp = service("wp.default", ports={15008: 15008})
    web = service("web.default", "10.1.0.1", waypoint="default/wp.default:15008")
    assert status(resolve("10.1.0.1:80", wp, web)) == 400


def test_waypoint_workload_that_owns_our_address_is_accepted() -> None:
    web = workload("web", "10.1.0.1", waypoint="|10.0.0.2:15008")
    assert accepted(resolve("10.1.0.1:80", web)).address == ("10.0.0.2", 80)
    other = workload("web", "10.1.0.1", waypoint="|10.0.0.7:15008")
    assert status(resolve("10.1.0.1:80", other, workload("x", "10.0.0.7"))) == 400


def test_weighted_waypoints_are_not_consulted() -> None:
    web = service("web.default", "10.1.0.1", weighted={"|10.0.0.2:15008": 1})
    assert status(resolve("10.1.0.1:80", web)) == 400


def test_address_of_another_network_is_not_ours() -> None:
    web = workload("web", "10.1.0.1", network="far", waypoint="|10.0.0.2:15008")
    assert status(resolve("10.1.0.1:80", web)) == 400


# --- hostnames ---


def test_hostname_takes_the_endpoints_own_port() -> None:
    target = accepted(resolve("web.default:80", service("web.default", "10.1.0.1", ports={80: 0})))
    assert target.address == ("10.0.0.2", 8080)
    assert target.service is not None


def test_hostname_falls_back_to_the_services_target_port() -> None:
    own = workload("own", "10.0.0.2")
    target = accepted(resolve("web.default:80", service("web.default", ports={80: 7070}), own=own))
    assert target.address == ("10.0.0.2", 7070)


@pytest.mark.parametrize("ports", [{81: 81}, {80: 0}])
def test_hostname_without_port_is_503(ports: dict[int, int]) -> None:
    own = workload("own", "10.0.0.2")
    assert status(resolve("web.default:80", service("web.default", ports=ports), own=own)) == 503


def test_unknown_hostname_is_503() -> None:
    assert status(resolve("nothing.default:80")) == 503


def test_best_service_of_a_hostname() -> None:
    one = service("web.example", namespace="a", ports={80: 1001})
    canonical = service("web.example", namespace="b", ports={80: 1002}, canonical=True)
    own_namespace = service("web.example", namespace="default", ports={80: 1003})
    assert accepted(resolve("web.example:80", one, canonical, own_namespace)).address[1] == 1003
    assert accepted(resolve("web.example:80", one, canonical)).address[1] == 1002
    assert accepted(resolve("web.example:80", one)).address[1] == 1001


@pytest.mark.parametrize(
    ("vips", "expected"),
    [
        (("far|10.9.0.1", "10.1.0.1"), ("10.1.0.1", 80)),
        (("fd00:1::1", "10.1.0.1"), ("10.1.0.1", 80)),
        (("fd00:1::1",), ("fd00:1::1", 80)),
        (("far|10.9.0.1", "fd00:1::1"), ("fd00:1::1", 80)),
    ],
)
def test_proxy_header_names_a_vip_of_the_service(vips: tuple[str, ...], expected: tuple[str, int]) -> None:
    own = workload("own", "10.0.0.2", app_tunnel=(True, 15088))
    target = accepted(resolve("web.default:80", service("web.default", *vips), own=own))
    assert target.proxy_destination == expected


def test_proxy_header_without_any_vip_is_503() -> None:
    own = workload("own", "10.0.0.2", app_tunnel=(True, 15088))
    assert status(resolve("web.default:80", service("web.default"), own=own)) == 503


# --- ports of the proxy ---


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_illegal_port_is_503_after_resolution(port: int) -> None:
    assert status(resolve(f"10.0.0.2:{port}")) == 503
    own = workload("own", "10.0.0.2")
    assert status(resolve("web.default:80", service("web.default", ports={80: port}), own=own)) == 503
    tunnelled = workload("own", "10.0.0.2", app_tunnel=(False, port))
    assert status(resolve("10.0.0.2:80", own=tunnelled)) == 503


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (("127.0.0.1", 15001), True),
        (("127.8.8.8", 15006), True),
        (("::1", 15008), True),
        (("10.0.0.2", 15008), False),
        (("127.0.0.1", 80), False),
    ],
)
def test_outbound_self_call(destination: tuple[str, int], expected: bool) -> None:
    assert is_self_call(destination) is expected


def test_inbound_plaintext_guard_looks_at_the_port_alone() -> None:
    assert is_illegal_inbound(("10.0.0.2", 15008))
    assert not is_illegal_inbound(("10.0.0.2", 8080))


# --- spoofing ---


@pytest.mark.parametrize(
    ("peer", "target", "is_spoofing", "expected"),
    [
        ("10.0.0.1", InboundTarget(("10.0.0.2", 80)), True, "10.0.0.1"),
        ("10.0.0.2", InboundTarget(("10.0.0.2", 80)), True, None),
        ("10.0.0.1", InboundTarget(("10.0.0.2", 80)), False, None),
        ("fd00::1", InboundTarget(("10.0.0.2", 80)), True, None),
        ("10.0.0.1", InboundTarget(("10.0.0.2", 80), is_localhost=True), True, "127.0.0.1"),
        ("fd00::1", InboundTarget(("fd00::2", 80), is_localhost=True), True, "::1"),
        ("fd00::1", InboundTarget(("fd00::2", 80)), True, "fd00::1"),
    ],
)
def test_source_of_the_application_side(
    peer: str, target: InboundTarget, is_spoofing: bool, expected: str | None
) -> None:
    assert spoofed_source(peer, target, is_spoofing=is_spoofing) == expected
