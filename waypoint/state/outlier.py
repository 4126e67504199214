"""Which hosts are left out for a while because they fail (waypoint-facts 8).

Invariants: no more than max(1, `maximum_ejection_percent` of the hosts) are ejected at once; a host comes
back in the first sweep after its time; the time grows with each ejection and shrinks with each sweep in which
the host is in. Detection is inline: the failure that fills the count ejects at once.
"""

from __future__ import annotations

import enum

from waypoint.state.destinations import OutlierSettings
from waypoint.state.hosts import Host

_LONGEST_EJECTION_S = 300.0
_GATEWAY_ERRORS = (502, 503, 504)


class Cause(enum.Enum):
    """Why a host was ejected."""

    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_ERRORS = "consecutive_gateway_errors"
    CONSECUTIVE_LOCAL_FAILURES = "consecutive_local_failures"


class OutlierDetector:
    """Detection for the hosts of one destination. Whoever calls refreshes the balancer after a change."""

    __slots__ = ("_ejected", "_settings", "overflows")

    def __init__(self, settings: OutlierSettings) -> None:
        self._settings = settings
        self._ejected: set[Host] = set()
        self.overflows = 0  # ejections that the limit prevented

    @property
    def ejected(self) -> int:
        return len(self._ejected)

    def on_response(self, host: Host, status: int, host_count: int, now: float) -> Cause | None:
        """A response came; for gRPC, `status` is that of flags.http_status_of. Says why it was ejected."""
        host.consecutive_local_failures = 0
        return self._count(host, status, host_count, now)

    def on_local_failure(
        self, host: Host, host_count: int, now: float, *, is_timeout: bool = False
    ) -> Cause | None:
        """No response: connect failure, reset or timeout. Counts as 503 (504) unless these are split off."""
        settings = self._settings
        if not settings.splits_local_failures:
            return self._count(host, 504 if is_timeout else 503, host_count, now)
        host.consecutive_local_failures += 1
        limit = settings.consecutive_local_failures
        if not limit or host.consecutive_local_failures < limit:
            return None
        host.consecutive_local_failures = 0
        return self._eject(host, host_count, now, Cause.CONSECUTIVE_LOCAL_FAILURES)

    def sweep(self, hosts: list[Host], now: float) -> list[Host]:
        """To be called each `interval_s`: those who come back; the others' records improve."""
        returned: list[Host] = []
        for host in hosts:
            if host.ejected_until is None:
                host.ejections = max(0, host.ejections - 1)
            elif now >= host.ejected_until:
                self._return(host)
                returned.append(host)
        return returned

    def forget(self, host: Host) -> None:
        """The host left the service."""
        self._ejected.discard(host)
        host.ejected_until = None

    def _count(self, host: Host, status: int, host_count: int, now: float) -> Cause | None:
        if status < 500:
            host.consecutive_5xx = 0
            host.consecutive_gateway_errors = 0
            return None
        settings = self._settings
        cause = None
        if status in _GATEWAY_ERRORS:
            host.consecutive_gateway_errors += 1
            limit = settings.consecutive_gateway_errors
            if limit and host.consecutive_gateway_errors >= limit:
                host.consecutive_gateway_errors = 0
                cause = self._eject(host, host_count, now, Cause.CONSECUTIVE_GATEWAY_ERRORS)
        else:
            host.consecutive_gateway_errors = 0
        host.consecutive_5xx += 1
        if settings.consecutive_5xx and host.consecutive_5xx >= settings.consecutive_5xx:
            host.consecutive_5xx = 0
            cause = cause or self._eject(host, host_count, now, Cause.CONSECUTIVE_5XX)
        return cause

    def _eject(self, host: Host, host_count: int, now: float, cause: Cause) -> Cause | None:
        if host.ejected_until is not None:
            return None
        ejected = len(self._ejected)
        if ejected and 100 * (ejected + 1) > self._settings.maximum_ejection_percent * host_count:
            self.overflows += 1
            return None
        host.ejections += 1
        base_s = self._settings.base_ejection_s
        host.ejected_until = now + min(base_s * host.ejections, max(_LONGEST_EJECTION_S, base_s))
        self._ejected.add(host)
        return cause

    def _return(self, host: Host) -> None:
        self._ejected.discard(host)
        host.ejected_until = None
        host.consecutive_5xx = 0
        host.consecutive_gateway_errors = 0
        host.consecutive_local_failures = 0
