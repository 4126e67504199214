"""Facts 11.2 (label order and values) and 4.8 (guesses)."""

from __future__ import annotations

from dataplane.state.labels import (
    LABEL_NAMES,
    NOBODY,
    guess_service,
    guess_source,
    labels_of,
    labels_of_baggage,
    traffic_labels,
    with_flags,
)
from tests.dataplane.state.builders import get, get_service, mesh, service, workload
from transport.spiffe import SpiffeId

ALICE = SpiffeId("cluster.local", "red", "alice")


def test_labels_in_the_documented_order() -> None:
    state = mesh(
        workload(
            "w",
            namespace="ns",
            account="sa",
            workload_name="deploy",
            canonical_name="canon",
            canonical_revision="v1",
            cluster_id="c1",
            locality=("r", "z", "s"),
        ),
        service("web.ns.svc", namespace="ns"),
    )
    own = get(state, "w")
    values = traffic_labels(
        "source",
        labels_of(own),
        own.identity,
        service=get_service(state, "ns/web.ns.svc"),
        destination=NOBODY,
        destination_principal=ALICE,
        is_mtls=True,
    )
    assert dict(zip(LABEL_NAMES, values, strict=True)) == {
        "reporter": "source",
        "source_workload": "deploy",
        "source_canonical_service": "canon",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "ns",
        "source_principal": "spiffe://cluster.local/ns/ns/sa/sa",
        "source_app": "canon",
        "source_version": "v1",
        "source_cluster": "c1",
        "destination_service": "web.ns.svc",
        "destination_service_namespace": "ns",
        "destination_service_name": "web",
        "destination_workload": "unknown",
        "destination_canonical_service": "unknown",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "unknown",
        "destination_principal": "spiffe://cluster.local/ns/red/sa/alice",
        "destination_app": "unknown",
        "destination_version": "unknown",
        "destination_cluster": "unknown",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
        "source_region": "r",
        "source_zone": "z",
        "destination_region": "",
        "destination_zone": "",
    }


def test_plaintext_has_no_guessed_principal() -> None:
    values = traffic_labels(
        "destination",
        NOBODY,
        None,
        service=None,
        destination=NOBODY,
        destination_principal=None,
        is_mtls=False,
    )
    by_name = dict(zip(LABEL_NAMES, values, strict=True))
    assert by_name["source_principal"] == "unknown"
    assert by_name["connection_security_policy"] == "unknown"
    assert by_name["destination_service"] == "unknown"


def test_baggage_names_the_app_by_the_workload() -> None:
    peer = labels_of_baggage(
        workload="deploy", canonical_service="canon", canonical_revision="v1", region="r"
    )
    assert (peer.app, peer.canonical_service, peer.version, peer.region) == ("deploy", "canon", "v1", "r")


def test_final_flags_replace_only_the_flags() -> None:
    values = traffic_labels(
        "source", NOBODY, None, service=None, destination=NOBODY, destination_principal=None, is_mtls=False
    )
    denied = with_flags(values, "DENY")
    assert [n for n, a, b in zip(LABEL_NAMES, values, denied, strict=True) if a != b] == ["response_flags"]
    assert with_flags(values, "-") is values


def test_source_is_found_by_address_unless_it_says_another_network() -> None:
    state = mesh(workload("w", "10.0.0.1", network="net"))
    found = get(state, "w")
    assert guess_source(state, "net", "10.0.0.1") is found
    assert guess_source(state, "net", "10.0.0.1", "NET") is found
    assert guess_source(state, "net", "10.0.0.1", "far") is None
    assert guess_source(state, "net", "10.0.0.2") is None


def test_service_guess() -> None:
    state = mesh(
        service("a.ns", namespace="ns", ports={80: 8080}),
        service("b.ns", namespace="ns", ports={80: 8080, 81: 0}),
        service("c.ns", namespace="ns", ports={80: 8080}),
        workload("w", services={"ns/a.ns": {80: 8080}, "ns/b.ns": {80: 8080, 81: 9090}, "ns/gone": {}}),
    )
    own = get(state, "w")

    def guess(port: int, host: str | None = None, by_authority: str | None = None) -> str | None:
        authority = None if by_authority is None else get_service(state, by_authority)
        found = guess_service(own, state, port, forwarded_host=host, authority_service=authority)
        return None if found is None else found.hostname

    assert guess(8080, "b.ns") == "b.ns"
    assert guess(8080, "c.ns") == "a.ns"  # not a service of ours: by port
    assert guess(8080, "c.ns", "ns/c.ns") == "c.ns"
    assert guess(8080, None, "ns/b.ns") == "b.ns"
    assert guess(8080) == "a.ns"
    assert guess(9090) == "b.ns"
    assert guess(1) is None
