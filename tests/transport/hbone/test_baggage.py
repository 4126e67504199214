"""The baggage header of ztunnel-facts 2.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.hbone.baggage import Baggage, encode_baggage, parse_baggage

FULL = Baggage("Kubernetes", "shop", "deployment", "cart", "cart", "v2", "west", "west-1")
FULL_TEXT = (
    b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,"
    b"service.version=v2,cloud.region=west,cloud.availability_zone=west-1"
)


def test_members_come_in_istios_order() -> None:
    assert encode_baggage(FULL) == FULL_TEXT
    assert parse_baggage([FULL_TEXT]) == FULL


def test_unknown_members_are_left_out() -> None:
    assert (
        encode_baggage(Baggage(namespace="shop", revision="v1"))
        == b"k8s.namespace.name=shop,service.version=v1"
    )
    assert encode_baggage(Baggage()) == b""


@pytest.mark.parametrize("bad", ["a,b", "a=b", "a b", "a\r\nx: y", "é", "a\0"])
def test_a_value_that_could_break_the_header_is_left_out(bad: str) -> None:
    assert encode_baggage(Baggage(namespace=bad, service_name="s")) == b"service.name=s"


@pytest.mark.parametrize("kind", ["deployment", "cronjob", "pod", "job"])
def test_the_four_workload_keys_are_equivalent(kind: str) -> None:
    parsed = parse_baggage([f"k8s.{kind}.name=w".encode()])
    assert parsed is not None
    assert (parsed.workload_type, parsed.workload_name) == (kind, "w")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([b""], None),
        ([b"k8s.namespace.name=\xff"], None),
        ([b"k8s.namespace.name=a\x01"], None),
        ([b"x" * 9000], None),
        ([b"k8s.namespace.name=a", b"service.name=b"], Baggage(namespace="a", service_name="b")),
        ([b"k8s.namespace.name=,service.name=b"], Baggage(service_name="b")),
        ([b"unknown=1,service.name"], Baggage()),
        ([b"service.name=a=b"], Baggage(service_name="a")),
        ([b" service.name = a ;p=1"], Baggage(service_name="a")),
    ],
)
def test_parsing(values: list[bytes], expected: Baggage | None) -> None:
    assert parse_baggage(values) == expected


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_break_the_parser(values: list[bytes]) -> None:
    parse_baggage(values)


@given(
    st.builds(
        Baggage,
        *[st.text(max_size=10)] * 2,
        st.sampled_from(["pod", "job"]),
        *[st.text(max_size=10)] * 5,
    )
)
def test_what_is_encoded_is_read_back_or_left_out(baggage: Baggage) -> None:
    encoded = encode_baggage(baggage)
    parsed = parse_baggage([encoded]) or Baggage()
    assert parsed.namespace in (baggage.namespace, "", baggage.namespace.partition(";")[0])
