"""How much of a certificate's life is used, and which alarm that is. Pure: the time is an argument.

A certificate is renewed at half of its life. Whoever is at 60 % has failed for a tenth of it, and at 80 %
there is little time left to mend the cause; both are alarms while the certificate still works.

Life begins where the certificate's dates say, or where it was received if that is later: authorities date
back by minutes, which is much of a short life.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from transport.spiffe import SpiffeId

FIRST_ALARM_AT = 0.6
SECOND_ALARM_AT = 0.8
BACKDATE_TOLERANCE = dt.timedelta(hours=1)


class Stage(enum.IntEnum):
    """Higher is worse. `WAITING`: the first attempt has not ended yet."""

    WAITING = 0
    GOOD = 1
    LATE = 2  # 60 % of the life is used without a successful renewal
    CRITICAL = 3  # 80 %
    MISSING = 4  # there never was one, and the last attempt failed
    EXPIRED = 5

    @property
    def is_alarm(self) -> bool:
        return self >= Stage.LATE

    @property
    def is_usable(self) -> bool:
        return self in {Stage.GOOD, Stage.LATE, Stage.CRITICAL}


@dataclass(frozen=True, slots=True)
class Dates:
    """`begin` is where life is counted from."""

    begin: dt.datetime
    not_before: dt.datetime
    not_after: dt.datetime

    def used(self, now: dt.datetime) -> float:
        """0 when it is fresh, 1 when it has expired; never outside."""
        if now >= self.not_after:
            return 1.0
        # A clock that was ahead when the certificate came, and is not any more, leaves no life to count.
        begin = self.begin if self.begin < self.not_after else self.not_before
        whole_s = (self.not_after - begin).total_seconds()
        return min(max((now - begin).total_seconds() / whole_s, 0.0), 1.0)

    def stage(self, now: dt.datetime) -> Stage:
        used = self.used(now)
        if used >= 1.0:
            return Stage.EXPIRED
        if used >= SECOND_ALARM_AT:
            return Stage.CRITICAL
        return Stage.LATE if used >= FIRST_ALARM_AT else Stage.GOOD


@dataclass(frozen=True, slots=True)
class CertificateLife:
    """One identity at one moment. `dates` None: no certificate was ever received."""

    identity: SpiffeId
    dates: Dates | None
    renew_at: dt.datetime | None
    failures: int
    problem: str  # why the last failed attempt failed; empty if none ever did
    problem_at: dt.datetime | None
    skew: str  # what the dates of the CA's last answer say about the clocks; empty: nothing odd

    def stage(self, now: dt.datetime) -> Stage:
        if self.dates is None:
            return Stage.MISSING if self.problem else Stage.WAITING
        return self.dates.stage(now)

    def remaining_s(self, now: dt.datetime) -> float:
        """Negative after the end; zero without a certificate."""
        return 0.0 if self.dates is None else (self.dates.not_after - now).total_seconds()


def skew_of(not_before: dt.datetime, not_after: dt.datetime, now: dt.datetime) -> str:
    """What a fresh answer's dates say about our clock against the CA's; empty where they agree.

    A certificate that was made this moment can neither begin later nor have ended. One that began long ago
    means that our clock is ahead, or that the CA dates back further than any that we know of.
    """
    here = f"here it is {now.isoformat()}"
    if now < not_before:
        return (
            f"this host's clock is at least {_seconds(not_before - now)} behind the CA's: a certificate that "
            f"was just issued is not valid before {not_before.isoformat()}, {here}"
        )
    if now >= not_after:
        return (
            f"this host's clock is at least {_seconds(now - not_after)} ahead of the CA's: "
            f"a certificate that was just issued expired at {not_after.isoformat()}, {here}"
        )
    if now - not_before > BACKDATE_TOLERANCE:
        return (
            f"this host's clock may be up to {_seconds(now - not_before)} ahead of the CA's: "
            f"a certificate that was just issued is dated {not_before.isoformat()}, {here}"
        )
    return ""


def _seconds(span: dt.timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
