"""How long may an exchange take? (waypoint-facts 4; authz-cases 11; gRPC over HTTP/2, `grpc-timeout`)

The whole exchange with all its attempts ends at the earlier of the route's timeout and the client's
`grpc-timeout`. A try ends at its own timeout, but never after the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from waypoint.state.rules import HttpRule

MAXIMUM_S: Final = 365 * 86400.0  # a longer one is as good as none, and no clock overflows with it

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds from the request's start (whole) and from each attempt's (per try); None: no limit."""

    whole_s: float | None = None
    per_try_s: float | None = None

    def try_ends_at(self, started_at: float, attempt_at: float) -> tuple[float | None, bool]:
        """When the attempt is over and whether that is the end of the whole exchange."""
        whole = None if self.whole_s is None else started_at + self.whole_s
        single = None if self.per_try_s is None else attempt_at + self.per_try_s
        if single is None or (whole is not None and whole <= single):
            return whole, whole is not None
        return single, False


NO_TIMEOUTS = Timeouts()


def timeouts(rule: HttpRule, grpc_timeout: bytes | None = None) -> Timeouts:
    """`grpc_timeout` is that header of a gRPC request; one that cannot be read is ignored, as at Envoy."""
    per_try = None if rule.retries is None else rule.retries.per_try_timeout_s
    whole = rule.timeout_s
    if grpc_timeout is not None:
        asked = parse_grpc_timeout(grpc_timeout)
        if asked is not None and (whole is None or asked < whole):
            whole = asked
    if whole is None and per_try is None:
        return NO_TIMEOUTS
    return Timeouts(whole, per_try)


def parse_grpc_timeout(value: bytes) -> float | None:
    """Seconds; None if it is no `1*8DIGIT unit`. More than a year counts as a year."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return min(int(digits) * unit, MAXIMUM_S)


def format_grpc_timeout(remaining_s: float) -> bytes:
    """What is passed on after some of the time is spent: the finest unit that fits in eight digits."""
    remaining_s = max(remaining_s, 0.0)
    for unit, size in ((b"n", 1e-9), (b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0)):
        count = int(remaining_s / size)
        if count < 100_000_000:
            return b"%d%b" % (count, unit)
    return b"%dH" % min(int(remaining_s / 3600), 99_999_999)
