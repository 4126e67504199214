"""xxHash64 against published values; shares and disruption of the ring and of Maglev's table."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waypoint.state.hashing import MAGLEV_SIZE, MAXIMUM_RING, build_maglev, build_ring, xxhash64

PRIME = 2003


def named(count: int, weight: int = 1) -> list[tuple[str, int]]:
    return [(f"Kubernetes//Pod/shop/web-{number}", weight) for number in range(count)]


@pytest.mark.parametrize(
    ("data", "seed", "value"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"abc", 0, 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1),
        (b"", 1, 0xD5AFBA1336A3BE4B),
    ],
)
def test_published_hashes(data: bytes, seed: int, value: int) -> None:
    assert xxhash64(data, seed) == value


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_a_hash_is_64_bits(data: bytes, seed: int) -> None:
    assert 0 <= xxhash64(data, seed) < 1 << 64


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
@settings(max_examples=25)
def test_maglev_shares_follow_the_weights(weights: list[int]) -> None:
    hosts = [(f"host-{number}", weight) for number, weight in enumerate(weights)]
    slots = Counter(build_maglev(hosts, PRIME).slots)
    for index, weight in enumerate(weights):
        assert slots[index] == pytest.approx(PRIME * weight / sum(weights), abs=2)


@given(st.integers(2, 25), st.data())
@settings(max_examples=25)
def test_maglev_moves_few_keys_when_a_host_leaves(count: int, data: st.DataObject) -> None:
    hosts = named(count)
    gone = data.draw(st.integers(0, count - 1))
    left = hosts[:gone] + hosts[gone + 1 :]
    before, after = build_maglev(hosts, PRIME), build_maglev(left, PRIME)
    moved = sum(
        hosts[old][0] != left[new][0]
        for old, new in zip(before.slots, after.slots, strict=True)
        if old != gone
    )
    assert moved <= PRIME * 0.25


def test_maglev_does_not_depend_on_the_order_of_hosts() -> None:
    hosts = [("a", 1), ("b", 2), ("c", 3)]
    one, other = build_maglev(hosts, PRIME), build_maglev(hosts[::-1], PRIME)
    assert [hosts[index][0] for index in one.slots] == [hosts[::-1][index][0] for index in other.slots]


def test_maglev_with_very_uneven_weights_is_built_in_bounded_steps() -> None:
    slots = Counter(build_maglev([*named(200), ("heavy", 1_000_000)], PRIME).slots)
    assert slots[200] > PRIME * 0.99


def test_the_full_table_has_envoys_size() -> None:
    assert len(build_maglev(named(3)).slots) == MAGLEV_SIZE


@given(st.integers(2, 20), st.data())
@settings(max_examples=25)
def test_a_ring_moves_only_the_keys_of_the_host_that_leaves(count: int, data: st.DataObject) -> None:
    hosts = named(count)
    gone = data.draw(st.integers(0, count - 1))
    left = hosts[:gone] + hosts[gone + 1 :]
    # As many places for each host before and after: then nothing but the gone host's places change.
    before, after = build_ring(hosts, 32 * count), build_ring(left, 32 * (count - 1))
    for number in range(200):
        key = xxhash64(b"key-%d" % number)
        old = before.pick(key)
        if old != gone:
            assert hosts[old] == left[after.pick(key)]


def test_a_ring_has_its_least_size_and_shares_by_weight() -> None:
    ring = build_ring([("a", 1), ("b", 3)])
    assert len(ring.places) == 1024
    assert Counter(ring.hosts) == {0: 256, 1: 768}
    assert list(ring.places) == sorted(ring.places)


def test_a_ring_is_bounded() -> None:
    assert len(build_ring([("a", 1)], 8 << 20).places) == MAXIMUM_RING


def test_a_key_beyond_the_last_place_goes_to_the_first() -> None:
    ring = build_ring(named(3))
    assert ring.pick((1 << 64) - 1) == ring.hosts[0]
