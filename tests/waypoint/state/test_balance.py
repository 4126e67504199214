"""Every algorithm, priorities with overflow and panic, slow start, stickiness (waypoint-facts 7)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.builders import host, hosts, request
from waypoint.state.balance import Balancer, of_subset, slow_start_factor
from waypoint.state.destinations import (
    Algorithm,
    CookieKey,
    HashKey,
    HeaderKey,
    OutlierSettings,
    ParameterKey,
    SourceKey,
    TrafficPolicy,
)
from waypoint.state.hashing import xxhash64
from waypoint.state.hosts import Host
from waypoint.state.priorities import choose_level, level_loads, levels
from waypoint.state.schedule import Schedule
from waypoint.state.session import endpoint_token
from waypoint.state.stickiness import stickiness

NO_PANIC = OutlierSettings()


def balancer(
    algorithm: Algorithm, chosen: list[Host], *, seed: int = 1, slow_start_s: float = 0.0, **fields: object
) -> Balancer:
    policy = TrafficPolicy(algorithm=algorithm, slow_start_s=slow_start_s, **fields)  # type: ignore[arg-type]
    return Balancer(policy, chosen, random.Random(seed).random)


def counts(chooser: Balancer, picks: int, now: float = 0.0) -> Counter[str]:
    found = (chooser.pick(now) for _ in range(picks))
    return Counter(each.member.uid for each in found if each is not None)


# --- algorithms ---


def test_least_request_takes_the_less_loaded_of_two() -> None:
    chosen = hosts(2)
    chosen[0].active = 5
    seen = counts(balancer(Algorithm.LEAST_REQUEST, chosen), 1000)
    assert seen["host-0"] == pytest.approx(250, abs=60)  # only if both choices fall on it


def test_least_request_with_weights_divides_them_by_load() -> None:
    chosen = [host("a", 3), host("b", 1)]
    assert counts(balancer(Algorithm.LEAST_REQUEST, chosen), 400)["a"] == pytest.approx(300, abs=2)
    chosen[0].active = 2
    assert counts(balancer(Algorithm.LEAST_REQUEST, chosen), 400)["a"] == pytest.approx(200, abs=2)


def test_round_robin_goes_round_exactly() -> None:
    chooser = balancer(Algorithm.ROUND_ROBIN, hosts(3))
    assert counts(chooser, 300) == {"host-0": 100, "host-1": 100, "host-2": 100}


def test_workers_do_not_begin_round_robin_with_the_same_host() -> None:
    first = {
        next(iter(counts(balancer(Algorithm.ROUND_ROBIN, hosts(5), seed=seed), 1))) for seed in range(30)
    }
    assert len(first) > 1


def test_random_follows_the_weights() -> None:
    assert counts(balancer(Algorithm.RANDOM, hosts(2)), 2000)["host-0"] == pytest.approx(1000, abs=100)
    weighed = [host("a", 9), host("b", 1)]
    assert counts(balancer(Algorithm.RANDOM, weighed), 2000)["b"] == pytest.approx(200, abs=60)


@pytest.mark.parametrize("algorithm", [Algorithm.RING_HASH, Algorithm.MAGLEV])
def test_a_key_keeps_its_host_while_others_fail(algorithm: Algorithm) -> None:
    chosen = hosts(5)
    chooser = balancer(algorithm, chosen, outlier_detection=NO_PANIC)
    keys = [xxhash64(b"%d" % number) for number in range(200)]
    before = [chooser.pick(0.0, key) for key in keys]
    chosen[2].ejected_until = 30.0
    chooser.refresh()
    for key, old in zip(keys, before, strict=True):
        now = chooser.pick(0.0, key)
        assert now is not chosen[2]
        if old is not chosen[2]:
            assert now is old


@pytest.mark.parametrize("algorithm", [Algorithm.RING_HASH, Algorithm.MAGLEV])
def test_without_a_key_a_consistent_hash_chooses_at_random(algorithm: Algorithm) -> None:
    assert len(counts(balancer(algorithm, hosts(5)), 100)) == 5


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_no_host_is_no_choice(algorithm: Algorithm) -> None:
    assert balancer(algorithm, []).pick(0.0, 7) is None


@given(
    st.lists(st.integers(1, 10), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.integers(1, 300),
)
def test_a_schedule_is_fair_to_one_turn(weights: list[int], chance: random.Random, picks: int) -> None:
    schedule = Schedule(list(range(len(weights))), lambda index: weights[index], chance.random)
    seen = Counter(schedule.pick() for _ in range(picks))
    for index, weight in enumerate(weights):
        share = picks * weight / sum(weights)
        # Each item's turns in the time that passed differ by one at most, from its own and all others' view.
        assert abs(seen[index] - share) <= 1 + weight * len(weights) / sum(weights)


@given(
    st.integers(1, 6), st.sampled_from(list(Algorithm)), st.sets(st.integers(0, 5)), st.integers(0, 2**64 - 1)
)
def test_only_available_hosts_are_chosen_without_panic(
    count: int, algorithm: Algorithm, ejected: set[int], key: int
) -> None:
    chosen = hosts(count)
    for number in ejected & set(range(count)):
        chosen[number].ejected_until = 1.0
    chooser = balancer(algorithm, chosen, outlier_detection=NO_PANIC)
    for key_hash in (None, key):
        found = chooser.pick(0.0, key_hash)
        assert (found is None) is all(not each.is_available for each in chosen)
        assert found is None or found.is_available


# --- hosts of earlier attempts, sessions, subsets ---


def test_hosts_already_tried_are_avoided() -> None:
    chosen = hosts(2)
    chooser = balancer(Algorithm.ROUND_ROBIN, chosen)
    assert {chooser.pick(0.0, tried=[chosen[0]]) for _ in range(10)} == {chosen[1]}


def test_a_lone_host_is_tried_again() -> None:
    chosen = hosts(1)
    assert balancer(Algorithm.LEAST_REQUEST, chosen).pick(0.0, tried=chosen) is chosen[0]


def test_a_key_whose_host_was_tried_goes_elsewhere() -> None:
    chosen = hosts(5)
    chooser = balancer(Algorithm.MAGLEV, chosen)
    own = chooser.pick(0.0, 12345)
    assert own is not None
    assert chooser.pick(0.0, 12345, [own]) is not own
    assert chooser.pick(0.0, 12345, [own], may_repeat=True) is own


def test_later_attempts_may_leave_the_locality() -> None:
    near = [host(f"near-{number}", 1, 0) for number in range(4)]
    far = [host("far", 1, 1)]
    chooser = balancer(Algorithm.ROUND_ROBIN, near + far)
    assert chooser.pick(0.0, tried=near[:1], may_go_remote=True) in near[1:]
    assert chooser.pick(0.0, tried=near[:2], may_go_remote=True) is far[0]
    assert chooser.pick(0.0, tried=near[:2]) in near[2:]
    assert chooser.pick(0.0, tried=[*near[:2], *far], may_go_remote=True) in near[2:]


def test_a_session_finds_its_host_while_it_is_available() -> None:
    chosen = hosts(3)
    chooser = balancer(Algorithm.LEAST_REQUEST, chosen)
    token = endpoint_token("host-1")
    assert chooser.by_token(token) is chosen[1]
    chosen[1].ejected_until = 1.0
    assert chooser.by_token(token) is None
    assert chooser.by_token("0" * 16) is None


def test_a_subset_is_the_hosts_it_names() -> None:
    assert [each.member.uid for each in of_subset(hosts(3), {"host-1", "other"})] == ["host-1"]


# --- priorities ---


@pytest.mark.parametrize(
    ("health", "panic_percent", "percents", "panics"),
    [
        ([(10, 10)], 50, (100,), (False,)),
        ([(10, 10), (10, 10)], 50, (100, 0), (False, False)),
        ([(8, 10), (10, 10)], 50, (100, 0), (False, False)),  # 80 % is enough: 1.4 · 80 > 100
        ([(7, 10), (10, 10)], 50, (98, 2), (False, False)),
        ([(5, 10), (10, 10)], 50, (70, 30), (False, False)),
        ([(0, 10), (10, 10)], 50, (0, 100), (False, False)),  # all is well elsewhere: no panic
        ([(0, 10), (5, 10), (10, 10)], 50, (0, 70, 30), (False, False, False)),
        ([(2, 10), (2, 10)], 50, (50, 50), (True, True)),  # 28 + 28, in proportion
        ([(2, 10), (1, 10)], 0, (67, 33), (False, False)),  # 28 + 14, in proportion
        ([(6, 10)], 50, (100,), (False,)),
        ([(4, 10)], 50, (100,), (True,)),
        ([(4, 10)], 0, (100,), (False,)),
        ([(0, 10)], 50, (100,), (True,)),
        ([(0, 10)], 0, (0,), (False,)),
        ([(0, 30), (0, 10)], 50, (75, 25), (True, True)),
        ([(1, 1000)], 0, (100,), (False,)),
        ([], 50, (), ()),
    ],
)
def test_levels_fill_in_order(
    health: list[tuple[int, int]], panic_percent: int, percents: tuple[int, ...], panics: tuple[bool, ...]
) -> None:
    loads = level_loads(health, panic_percent)
    assert (loads.percents, loads.is_panic) == (percents, panics)


@given(
    st.lists(
        st.integers(1, 300).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))),
        min_size=1,
    ),
    st.integers(0, 100),
)
def test_shares_are_a_hundred_or_nothing(health: list[tuple[int, int]], panic_percent: int) -> None:
    loads = level_loads(health, panic_percent)
    assert min(loads.percents) >= 0
    is_usable = any(healthy for healthy, _ in health) or panic_percent > 0
    assert sum(loads.percents) == (100 if is_usable else 0)


@pytest.mark.parametrize(("chance", "level"), [(0.0, 0), (0.69, 0), (0.7, 2), (0.999, 2)])
def test_a_number_chooses_a_level(chance: float, level: int) -> None:
    assert choose_level((70, 0, 30), chance) == level


def test_no_shares_no_level() -> None:
    assert choose_level((0, 0), 0.5) is None


def test_the_nearest_come_first_and_empty_levels_fall_out() -> None:
    far, near, region = host("far", 1, 3), host("near", 1, 0), host("region", 1, 2)
    assert levels([far, near, region]) == [[near], [region], [far]]
    assert levels([]) == []


def test_requests_overflow_to_the_next_locality() -> None:
    near = [host(f"near-{number}", 1, 0) for number in range(4)]
    far = [host(f"far-{number}", 1, 1) for number in range(4)]
    chooser = balancer(Algorithm.ROUND_ROBIN, near + far, outlier_detection=NO_PANIC)
    assert all(uid.startswith("near") for uid in counts(chooser, 100))
    near[0].ejected_until = near[1].ejected_until = 1.0
    chooser.refresh()
    seen = counts(chooser, 1000)
    assert sum(count for uid, count in seen.items() if uid.startswith("far")) == pytest.approx(300, abs=60)
    assert "near-0" not in seen
    for each in near:
        each.ejected_until = 1.0
    chooser.refresh()
    assert all(uid.startswith("far") for uid in counts(chooser, 100))


def test_in_panic_all_hosts_are_used() -> None:
    chosen = [host(str(number), is_healthy=number == 0) for number in range(4)]
    assert len(counts(balancer(Algorithm.ROUND_ROBIN, chosen), 40)) == 4
    assert counts(balancer(Algorithm.ROUND_ROBIN, chosen, outlier_detection=NO_PANIC), 40) == {"0": 40}


# --- slow start ---


@pytest.mark.parametrize(
    ("age", "factor"), [(0.0, 0.1), (1.0, 0.1), (5.0, 0.5), (9.0, 0.9), (10.0, 1.0), (99.0, 1.0)]
)
def test_a_young_host_has_a_part_of_its_weight(age: float, factor: float) -> None:
    assert slow_start_factor(age, 10.0) == pytest.approx(factor)


@pytest.mark.parametrize("algorithm", [Algorithm.LEAST_REQUEST, Algorithm.ROUND_ROBIN])
def test_a_new_host_gets_a_growing_share(algorithm: Algorithm) -> None:
    chooser = balancer(algorithm, [host("old", age=100.0), host("new")], slow_start_s=10.0)
    assert counts(chooser, 1100, now=0.0)["new"] == pytest.approx(100, abs=10)
    assert counts(chooser, 1500, now=5.0)["new"] == pytest.approx(500, abs=15)
    assert counts(chooser, 1000, now=11.0)["new"] == pytest.approx(500, abs=60)


# --- stickiness ---

FIXED: Callable[[], float] = lambda: 0.5  # noqa: E731 - a source of chance for tests


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, None),
        (HeaderKey(b"user"), b"eve"),
        (HeaderKey(b"other"), None),
        (ParameterKey(b"q"), b"1"),
        (ParameterKey(b"z"), None),
        (SourceKey(), b"10.1.2.3"),
        (CookieKey(b"id"), b"7"),
        (CookieKey(b"other"), None),
    ],
)
def test_what_decides_the_host(key: HashKey | None, value: bytes | None) -> None:
    facts = request("/?q=1", (b"user", b"eve"), (b"cookie", b"a=b; id=7"))
    found = stickiness(key, facts, "10.1.2.3", FIXED)
    assert found.key_hash == (None if value is None else xxhash64(value))
    assert found.set_cookie is None


@pytest.mark.parametrize(("ttl", "age"), [(0, b""), (60, b"; Max-Age=60")])
def test_a_missing_cookie_is_made_and_decides_at_once(ttl: int, age: bytes) -> None:
    made = stickiness(CookieKey(b"id", b"/shop", ttl), request(), "10.1.2.3", FIXED)
    assert made.set_cookie is not None
    name, value = made.set_cookie
    assert name == b"set-cookie"
    assert value.startswith(b"id=")
    assert value.endswith(age + b"; Path=/shop; HttpOnly")
    content = value.split(b";")[0]
    again = stickiness(CookieKey(b"id", b"/shop", ttl), request("/", (b"cookie", content)), "10.1.2.3", FIXED)
    assert again.key_hash == made.key_hash
    assert again.set_cookie is None
