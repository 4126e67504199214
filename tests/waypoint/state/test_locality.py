"""Which endpoints come first from where a waypoint stands (waypoint-facts 7, config-api 3, 11)."""

from __future__ import annotations

import pytest

from dataplane.state.model import Locality, Workload
from proto.mycelia import waypoint_pb2 as pb
from transport.spiffe import SpiffeId
from waypoint.state.locality import LocalityPolicy, Pattern, locality_policy, weights
from waypoint.state.place import Place

HERE = Place("shop", "wp", network="n", node="node-a", cluster_id="c", locality=Locality("eu", "eu-1", "a"))
IDENTITY = SpiffeId("cluster.local", "shop", "web")


def workload(uid: str, place: str, *, node: str = "", network: str = "n", capacity: int = 1) -> Workload:
    region, zone, subzone = (*place.split("/"), "", "")[:3]
    return Workload(
        uid,
        uid,
        "shop",
        IDENTITY,
        network=network,
        node=node,
        cluster_id="c",
        locality=Locality(region, zone, subzone),
        capacity=capacity,
    )


def policy(*scopes: pb.Locality.Scope.ValueType, **fields: object) -> LocalityPolicy:
    terms = [pb.Locality.Term(same=scope) for scope in scopes]
    return locality_policy(pb.Locality(terms=terms, **fields))  # type: ignore[arg-type]


REGIONS = (pb.Locality.REGION, pb.Locality.ZONE, pb.Locality.SUBZONE)


@pytest.mark.parametrize(
    ("place", "level"),
    [("eu/eu-1/a", 0), ("eu/eu-1/b", 1), ("eu/eu-2/a", 2), ("us/eu-1/a", 3), ("", 3)],
)
def test_terms_count_without_a_gap_from_the_first(place: str, level: int) -> None:
    assert policy(*REGIONS).level(workload("a", place), HERE) == level


@pytest.mark.parametrize(("place", "level"), [("eu/eu-2", 2), ("asia", 3), ("us", 4), ("", 4)])
def test_a_failover_region_comes_before_the_others(place: str, level: int) -> None:
    failover = pb.Locality.RegionFailover(to="asia", **{"from": "eu"})
    assert policy(*REGIONS, failovers=[failover]).level(workload("a", place), HERE) == level


def test_a_failover_from_another_region_changes_nothing() -> None:
    failover = pb.Locality.RegionFailover(to="asia", **{"from": "us"})
    found = policy(*REGIONS, failovers=[failover])
    assert {found.level(workload("a", place), HERE) for place in ("asia", "us")} == {3}


def test_strict_terms_leave_the_others_out() -> None:
    found = policy(pb.Locality.NODE, is_strict=True)
    assert found.level(workload("a", "", node="node-a"), HERE) == 0
    assert found.level(workload("b", "", node="node-b"), HERE) is None
    assert found.level(workload("c", ""), Place("shop", "wp")) is None  # no node is no common node


def test_networks_clusters_and_named_workloads_are_terms() -> None:
    named = pb.Locality.Term(workloads=pb.Locality.Workloads(uids=["a"]))
    terms = [pb.Locality.Term(same=pb.Locality.NETWORK), pb.Locality.Term(same=pb.Locality.CLUSTER), named]
    found = locality_policy(pb.Locality(terms=terms))
    assert found.level(workload("a", ""), HERE) == 0
    assert found.level(workload("b", ""), HERE) == 1
    assert found.level(workload("a", "", network="other"), HERE) == 3


def test_nothing_said_is_all_alike() -> None:
    found = policy()
    assert {found.level(workload("a", place), HERE) for place in ("eu/eu-1/a", "us")} == {0}


def distribution(source: str, **shares: int) -> pb.Locality.Distribution:
    to = {name.replace("_", "/").replace("X", "*"): percent for name, percent in shares.items()}
    return pb.Locality.Distribution(to=to, **{"from": source})


def test_localities_share_as_they_are_told_whatever_their_sizes() -> None:
    found = policy(distributions=[distribution("us/*", us=100), distribution("eu/*", eu_X=80, us_X=20)])
    chosen = found.distribution(HERE)
    assert chosen is not None
    many = [workload(f"eu-{number}", "eu/eu-2") for number in range(4)]
    one, other = workload("us", "us/us-1", capacity=3), workload("asia", "asia")
    shares = weights(chosen, [*many, one, other])
    assert {shares[each.uid] for each in many} == {200_000}
    assert shares["us"] == 200_000
    assert "asia" not in shares


def test_an_endpoint_belongs_to_the_most_specific_locality() -> None:
    (chosen,) = policy(distributions=[distribution("*", eu=70, **{"eu_eu-1": 30})]).distributions
    assert [pattern for pattern, _ in chosen.shares] == [Pattern("eu", "eu-1"), Pattern("eu")]
    shares = weights(chosen, [workload("a", "eu/eu-1/x"), workload("b", "eu/eu-2")])
    assert shares == {"a": 300_000, "b": 700_000}


def test_without_a_distribution_for_this_place_all_are_alike() -> None:
    found = policy(distributions=[distribution("us", us=100)])
    assert found.distribution(HERE) is None
    assert found.level(workload("a", "asia"), HERE) == 0
