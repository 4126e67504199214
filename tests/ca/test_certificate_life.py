"""Stages of a certificate's life, what its dates say about clocks, and steps of the wall clock."""

from __future__ import annotations

import datetime as dt

import pytest

from ca.certificate_life import CertificateLife, Dates, Stage, skew_of
from ca.clock_watch import ClockWatch
from tests.ca.harness import DAY, HOUR, NOW, WEB


def life(begin: dt.datetime | None, *, problem: str = "") -> CertificateLife:
    dates = None if begin is None else Dates(begin, NOW, NOW + DAY)
    return CertificateLife(WEB, dates, None, 0, problem, None, "")


@pytest.mark.parametrize(
    ("hours", "stage"),
    [
        (-5, Stage.GOOD),
        (0, Stage.GOOD),
        (14.3, Stage.GOOD),
        (14.4, Stage.LATE),
        (19.1, Stage.LATE),
        (19.2, Stage.CRITICAL),
        (23.99, Stage.CRITICAL),
        (24, Stage.EXPIRED),
        (1000, Stage.EXPIRED),
    ],
)
def test_alarms_are_at_60_and_80_percent(hours: float, stage: Stage) -> None:
    assert life(NOW).stage(NOW + hours * HOUR) is stage


def test_without_a_certificate_it_is_missing_once_an_attempt_has_failed() -> None:
    assert life(None).stage(NOW) is Stage.WAITING
    assert life(None, problem="no route").stage(NOW) is Stage.MISSING


def test_life_is_counted_from_the_moment_it_was_received() -> None:
    """An authority dates back by two minutes, which must not be most of a minute's life."""
    short = Dates(NOW, NOW - dt.timedelta(minutes=2), NOW + dt.timedelta(minutes=1))
    assert short.used(NOW) == 0.0
    assert short.used(NOW + dt.timedelta(seconds=30)) == pytest.approx(0.5)


def test_a_beginning_after_the_end_counts_from_the_dates() -> None:
    """Received under a clock that was far ahead and is not any more."""
    assert Dates(NOW + DAY, NOW, NOW + DAY).used(NOW + 12 * HOUR) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (NOW, ""),
        (NOW + dt.timedelta(minutes=30), ""),
        (NOW - HOUR, "3600 s behind the CA's"),
        (NOW + 3 * HOUR, "up to 10800 s ahead of the CA's"),
        (NOW + DAY + HOUR, "at least 3600 s ahead of the CA's"),
    ],
)
def test_dates_of_a_fresh_answer_name_the_skew(now: dt.datetime, said: str) -> None:
    found = skew_of(NOW, NOW + DAY, now)
    assert said in found
    assert bool(found) is bool(said)


class Clocks:
    def __init__(self) -> None:
        self.real = 1_000_000.0
        self.boot = 50.0

    def watch(self) -> ClockWatch:
        return ClockWatch(lambda: self.real, lambda: self.boot)

    def go_on(self, seconds: float, *, slewed_s: float = 0.0) -> None:
        self.real += seconds + slewed_s
        self.boot += seconds


def test_sleep_and_slewing_are_no_steps() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.go_on(8 * 3600)  # CLOCK_BOOTTIME goes on while the machine sleeps
    assert watch.look() == 0.0
    for _ in range(10_000):
        clocks.go_on(5, slewed_s=0.0025)
        assert watch.look() == 0.0
    assert watch.steps == 0


@pytest.mark.parametrize("by_s", [3600.0, -86400.0, 2.5])
def test_a_step_is_noticed_once_with_its_size(by_s: float) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.go_on(5)
    clocks.real += by_s
    assert watch.look() == pytest.approx(by_s)
    assert watch.look() == 0.0
    assert watch.steps == 1
    assert watch.last_step_s == pytest.approx(by_s)
